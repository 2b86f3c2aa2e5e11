"""Small vocabularies of every kind, written with the gguf package."""

from __future__ import annotations

import pytest
from gguf import GGUFWriter, TokenType

from runtime.gguf import ModelFile

_PRINTABLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
BYTE_CHARS = [chr(b) for b in sorted(_PRINTABLE)] + [chr(0x100 + i) for i in range(256 - len(_PRINTABLE))]


class Writer:
    """Collects tokenizer metadata; write() gives the opened file."""

    def __init__(self, path, kind):
        self.path = path
        self.gguf = GGUFWriter(path, "llama")
        self.gguf.add_tokenizer_model(kind)

    def write(self):
        self.gguf.write_header_to_file()
        self.gguf.write_kv_data_to_file()
        self.gguf.close()
        return ModelFile.open(self.path)


@pytest.fixture
def writer(tmp_path):
    """Make a Writer for a kind of tokenizer."""
    return lambda kind: Writer(tmp_path / f"{kind}.gguf", kind)


@pytest.fixture
def bpe_file(writer):
    """Byte-level BPE: all bytes, a few merges, <|end|> and <|im_start|> (control), <think> (user-defined)."""
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld"]
    tokens = [*BYTE_CHARS, *(m.replace(" ", "") for m in merges), "<|end|>", "<|im_start|>", "<think>"]
    types = [TokenType.NORMAL] * (len(tokens) - 3) + [
        TokenType.CONTROL,
        TokenType.CONTROL,
        TokenType.USER_DEFINED,
    ]

    def make(**changes):
        w = writer("gpt2")
        changes.pop("extra", lambda _: None)(w.gguf)
        w.gguf.add_tokenizer_pre(changes.pop("pre", "gpt-2"))
        w.gguf.add_token_list(changes.pop("tokens", tokens))
        w.gguf.add_token_types(changes.pop("types", types))
        w.gguf.add_token_merges(changes.pop("merges", merges))
        w.gguf.add_bos_token_id(changes.pop("bos", tokens.index("<|im_start|>")))
        w.gguf.add_eos_token_id(changes.pop("eos", tokens.index("<|end|>")))
        for name, value in changes.items():
            getattr(w.gguf, name)(value)
        return w.write()

    return make


@pytest.fixture
def spm_file(writer):
    """SentencePiece: unk, bos, eos, all bytes, a few pieces with scores."""
    pieces = ["▁", "h", "e", "l", "o", "▁h", "he", "ll", "▁he", "llo", "▁hello", "w", "▁w"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pieces]
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces))]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    types += [TokenType.BYTE] * 256 + [TokenType.NORMAL] * len(pieces)

    def make(**changes):
        w = writer("llama")
        w.gguf.add_token_list(changes.pop("tokens", tokens))
        w.gguf.add_token_scores(changes.pop("scores", scores))
        w.gguf.add_token_types(changes.pop("types", types))
        for name, value in changes.items():
            getattr(w.gguf, name)(value)
        return w.write()

    return make


@pytest.fixture
def unigram_file(writer):
    """SentencePiece's unigram kind: pad, end, unk, a few pieces with log-probabilities."""
    pieces = {"▁": -3.0, "a": -4.0, "b": -4.5, "c": -5.0, "ab": -5.5, "▁a": -5.0, "bc": -7.0, "▁abc": -11.0}

    def make(**changes):
        w = writer("t5")
        w.gguf.add_token_list(["<pad>", "</s>", "<unk>", *pieces])
        w.gguf.add_token_scores([0.0, 0.0, 0.0, *pieces.values()])
        w.gguf.add_token_types(
            [TokenType.CONTROL, TokenType.CONTROL, TokenType.UNKNOWN] + [TokenType.NORMAL] * len(pieces)
        )
        for name, value in changes.items():
            getattr(w.gguf, name)(value)
        return w.write(), pieces

    return make
