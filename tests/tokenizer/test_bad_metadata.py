"""Damaged or hostile vocabularies end in a typed error that names the key."""

from __future__ import annotations

import pytest

from runtime.errors import ModelFormatError, UnsupportedModelError
from runtime.tokenizer import build_tokenizer


def fails(file, key, match=None):
    with pytest.raises(ModelFormatError, match=match) as caught:
        build_tokenizer(file)
    assert caught.value.where == f"tokenizer.ggml.{key}"


def test_no_tokenizer_at_all(tmp_path):
    from gguf import GGUFWriter

    from runtime.gguf import ModelFile

    writer = GGUFWriter(tmp_path / "none.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    fails(ModelFile.open(tmp_path / "none.gguf"), "model", "missing")


def test_tokens_missing_or_wrong(writer):
    fails(writer("gpt2").write(), "tokens", "missing")


@pytest.mark.parametrize("tokens", [[1, 2, 3], ["x" * 1025]])
def test_bad_tokens(bpe_file, tokens):
    file = bpe_file(tokens=tokens, types=[1] * len(tokens), bos=0, eos=0, merges=["a b"])
    fails(file, "tokens")


@pytest.mark.parametrize("types", [[1], [7] * 268, [-1] * 268, [1.0] * 268])
def test_bad_token_types(bpe_file, types):
    fails(bpe_file(types=types), "token_type")


@pytest.mark.parametrize("token_id", [268, 2**32 - 1])
def test_ids_out_of_range(bpe_file, token_id):
    fails(bpe_file(bos=token_id), "bos_token_id", "268|at most")
    fails(bpe_file(eos=token_id), "eos_token_id")


def test_flag_of_wrong_type(bpe_file):
    def add(gguf):
        gguf.add_uint32("tokenizer.ggml.add_bos_token", 1)

    fails(bpe_file(extra=add), "add_bos_token", "boolean")


@pytest.mark.parametrize("merges", [["nospace"], ["h zz"], ["h e", "he he"], [" "], ["a "]])
def test_bad_merges(bpe_file, merges):
    fails(bpe_file(merges=merges), "merges", "entry")


def test_cyclic_and_repeated_merges_are_harmless(bpe_file):
    tokenizer = build_tokenizer(bpe_file(merges=["h e", "h e", "l l", "he ll"]))
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"


def test_unknown_kind(writer):
    with pytest.raises(UnsupportedModelError, match="'rwkv'"):
        build_tokenizer(writer("rwkv").write())


def test_bad_scores(spm_file):
    fails(spm_file(scores=[0.0]), "scores")
    fails(spm_file(scores=[float("nan")] * 272), "scores")


def test_sentencepiece_without_bytes(writer):
    def make(unk):
        w = writer("llama")
        w.gguf.add_token_list(["<unk>", "a", "b"])
        w.gguf.add_token_scores([0.0, -1.0, -2.0])
        w.gguf.add_token_types([2, 1, 1])
        if unk:
            w.gguf.add_unk_token_id(0)
        return w.write()

    tokenizer = build_tokenizer(make(unk=True))
    assert 0 in tokenizer.encode("axb", add_special=False)


def test_duplicate_and_empty_tokens(bpe_file):
    plain = bpe_file().strings("tokenizer.ggml.tokens")
    tokens = [*plain, "hello", "", ""]
    types = [1] * len(tokens)
    types[-2] = 4  # an empty token that asks to be found in texts
    tokenizer = build_tokenizer(bpe_file(tokens=tokens, types=types))
    assert tokenizer.decode(tokenizer.encode("hello  world")) == "hello  world"


def test_tokens_that_are_no_utf8(writer):
    w = writer("gpt2")
    w.gguf.add_token_list([b"a", b"\xff\xfe", b"b"])
    w.gguf.add_token_merges(["a b"])
    fails(w.write(), "merges")
