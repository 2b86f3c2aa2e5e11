"""Time and memory: long runs of a character, hostile runs for each regex, large vocabularies, streaming."""

from __future__ import annotations

import codecs
import resource
import subprocess
import sys
import time

import pytest

from runtime._native import split_words
from runtime.gguf import ModelFile
from runtime.tokenizer import build_tokenizer
from runtime.tokenizer.pretokenizers import PRE_TOKENIZERS

VOCABULARIES = ("bert-bge", "deepseek-coder", "gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2")
RUNS = ("A", "a", " ", "\n", "7", "想", "e\u0301", "<|", "zq", " \n", "'s", "aA", "🦙", "\u00a0", "-\n", "1 ")
FAMILIES = dict.fromkeys(PRE_TOKENIZERS.values())


def repeated(run: str, n_bytes: int) -> str:
    return run * (n_bytes // len(run.encode()))


@pytest.mark.parametrize("name", VOCABULARIES)
def test_runs_take_linear_time(shared_dir, name):
    tokenizer = build_tokenizer(ModelFile.open(shared_dir / "vocab" / f"ggml-vocab-{name}.gguf"))
    for run in RUNS:
        text = repeated(run, 64 << 10)
        start = time.thread_time()
        ids = tokenizer.encode(text, add_special=False, parse_special=True)
        assert time.thread_time() - start < 1, run  # quadratic work takes many times as long
        if name != "bert-bge":
            assert tokenizer.decode(ids) == text


def test_unigram_takes_linear_time(unigram_file):
    tokenizer = build_tokenizer(unigram_file()[0])
    for run in ("a", "x", " ", "abc", "想"):
        text = repeated(run, 1 << 20)
        start = time.thread_time()
        ids = tokenizer.encode(text, add_special=False)
        assert time.thread_time() - start < 1, run
        assert ids


@pytest.mark.parametrize("pre", FAMILIES, ids=[" ".join(pre.regexes)[:30] for pre in FAMILIES])
def test_no_regex_takes_quadratic_time(pre):
    for run in (*RUNS, "A1", "#", "\t", "A ", " A", "想A", "''", "/\n", "x\u0301 "):
        data = ("(" + repeated(run, 64 << 10) + "!").encode()
        start = time.thread_time()
        ends = split_words(list(pre.regexes), data)
        assert time.thread_time() - start < 1, run  # quadratic work takes many times as long
        assert ends[-1] == len(data)


_MEASURE = """
import sys, time
from runtime.gguf import ModelFile
from runtime.tokenizer import build_tokenizer
def anonymous():
    with open("/proc/self/smaps_rollup") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith("Rss:"))
file = ModelFile.open(sys.argv[1])
before, start = anonymous(), time.thread_time()
tokenizer = build_tokenizer(file)
print(time.thread_time() - start, (anonymous() - before) / 1024)
"""


def test_a_large_vocabulary_is_ready_soon_and_small(shared_dir):
    path = shared_dir / "vocab" / "ggml-vocab-llama-bpe.gguf"  # 128,256 tokens, 280,147 merges
    run = subprocess.run([sys.executable, "-c", _MEASURE, path], capture_output=True, text=True, check=True)
    seconds, mebibytes = map(float, run.stdout.split())
    assert mebibytes < 40
    assert seconds < 2  # 0.2 s on a machine with nothing else to do; ops/bench has the figures


def test_a_quarter_of_a_million_tokens(writer):
    """Gemma's size, without its texts: SentencePiece, scores in order."""
    w = writer("llama")
    pieces = [f"\u2581{i:x}" if i % 2 else f"{i:x}" for i in range(262_144 - 262)]
    single = [*"0123456789abcdef", "\u2581"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *single, *pieces]
    types = [2, 3, 3, *[6] * 256, *[1] * (len(single) + len(pieces))]
    w.gguf.add_token_list(tokens)
    w.gguf.add_token_scores([-float(i) for i in range(len(tokens))])
    w.gguf.add_token_types(types)
    file = w.write()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.thread_time()
    tokenizer = build_tokenizer(file)
    assert time.thread_time() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60 << 10
    assert tokenizer.decode(tokenizer.encode("1f 2e 3d")) == "1f 2e 3d"


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "llama-bpe", "phi-3"])
def test_streamed_bytes_are_whole_characters_and_the_text(shared_dir, name):
    tokenizer = build_tokenizer(ModelFile.open(shared_dir / "vocab" / f"ggml-vocab-{name}.gguf"))
    text = "Zürich 想要 🦙👩‍👩‍👧 \u0378 e\u0301 \U0010ffff नमस्ते\n\n\t."
    ids = tokenizer.encode(text, add_special=False)
    decoder = codecs.getincrementaldecoder("utf-8")("strict")  # raises for bytes that are no UTF-8
    pieces = [decoder.decode(tokenizer.token_bytes(i)) for i in ids]
    assert decoder.decode(b"", final=True) == ""
    assert "".join(pieces).removeprefix(" ") == text
