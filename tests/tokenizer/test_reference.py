"""Against llama.cpp's own vocabulary test files, case for case."""

from __future__ import annotations

import pytest

from runtime.gguf import ModelFile
from runtime.tokenizer import build_tokenizer

MARKER = "\n__ggml_vocab_test__\n"


@pytest.mark.parametrize(
    ("name", "round_trips"),
    [
        ("bert-bge", False),  # lower-cases, and marks only the beginnings of words
        ("deepseek-coder", True),
        ("gpt-2", True),
        ("llama-bpe", True),
        ("llama-spm", True),
        ("phi-3", True),
        ("qwen2", True),
    ],
)
def test_vocabulary(shared_dir, name, round_trips):
    path = shared_dir / "vocab" / f"ggml-vocab-{name}.gguf"
    tokenizer = build_tokenizer(ModelFile.open(path))
    with open(f"{path}.inp", encoding="utf-8", newline="") as file:
        texts = file.read().split(MARKER)
    with open(f"{path}.out", encoding="utf-8") as file:
        expected = [[int(word) for word in line.split()] for line in file.read().split("\n")]
    for text, ids in zip(texts, expected, strict=False):
        assert tokenizer.encode(text, add_special=False) == ids, repr(text)
        if round_trips:
            assert tokenizer.decode(ids) == text
    assert len(texts) > 40
    assert len(expected) >= len(texts)


def test_defaults_of_real_vocabularies(shared_dir):
    def load(name):
        return build_tokenizer(ModelFile.open(shared_dir / "vocab" / f"ggml-vocab-{name}.gguf"))

    llama3 = load("llama-bpe")
    assert llama3.add_bos
    assert llama3.eog_ids == {128001, 128009}
    assert llama3.encode("Hello") == [128000, 9906]
    assert llama3.encode("<|eot_id|>", add_special=False, parse_special=True) == [128009]
    assert len(llama3.encode("<|eot_id|>", add_special=False)) > 1
    bert = load("bert-bge")
    assert bert.encode("hello") == [101, 7592, 102]
    spm = load("llama-spm")
    assert spm.encode("Hello") == [1, 15043]
    assert spm.decode([1, 15043]) == "Hello"
    assert spm.encode("<s>Hello", add_special=False) == spm.encode("<s>Hello", add_special=False)
    assert 1 not in spm.encode("<s>Hello", add_special=False)


def test_pathological_text_takes_linear_time(shared_dir):
    import time

    tokenizers = [
        build_tokenizer(ModelFile.open(shared_dir / "vocab" / f"ggml-vocab-{name}.gguf"))
        for name in ("llama-spm", "gpt-2")
    ]
    for tokenizer in tokenizers:
        for run in ("A", " ", "\n", "7", "想", "e\u0301", "<|", "zq", " \n"):
            text = run * ((128 << 10) // len(run.encode()))
            start = time.thread_time()
            ids = tokenizer.encode(text, add_special=False, parse_special=True)
            assert time.thread_time() - start < 5
            assert tokenizer.decode(ids) == text


def test_other_threads_run_meanwhile(shared_dir):
    import threading
    import time

    tokenizer = build_tokenizer(ModelFile.open(shared_dir / "vocab" / "ggml-vocab-gpt-2.gguf"))
    worker = threading.Thread(target=tokenizer.encode, args=("A quick brown fox. " * 20_000,))
    worker.start()
    turns = 0
    while worker.is_alive():
        time.sleep(0.001)
        turns += 1
    assert turns > 10
