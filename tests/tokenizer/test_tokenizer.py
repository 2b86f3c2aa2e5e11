"""Small vocabularies of our own: encoding, decoding, special tokens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import RequestError
from runtime.tokenizer import MAX_TEXT_BYTES, build_tokenizer


def test_bpe(bpe_file):
    tokenizer = build_tokenizer(bpe_file())
    ids = tokenizer.encode("hello world")
    assert [tokenizer.token_text(i) for i in ids] == ["hello", " world"]
    assert tokenizer.decode(ids) == "hello world"
    assert not tokenizer.add_bos
    assert tokenizer.token_text(tokenizer.eos_id) == "<|end|>"
    assert tokenizer.token_bytes(tokenizer.eos_id) == b""
    assert tokenizer.is_control(tokenizer.eos_id)
    assert tokenizer.eog_ids == {tokenizer.eos_id}


def test_special_text_only_when_asked(bpe_file):
    tokenizer = build_tokenizer(bpe_file())
    text = "hello<|end|><think>"
    plain = tokenizer.encode(text)
    parsed = tokenizer.encode(text, parse_special=True)
    assert tokenizer.eos_id not in plain
    assert [tokenizer.token_text(i) for i in parsed] == ["hello", "<|end|>", "<think>"]
    assert tokenizer.token_text(plain[-1]) == "<think>"  # user-defined tokens always count
    assert tokenizer.decode(plain) == text


def test_broken_special_text_stays_text(bpe_file):
    tokenizer = build_tokenizer(bpe_file())
    for content in ("a<|end|>b", "<|end|><|end|>", "x <|en", "x <|en ", "<|im_start|>hello"):
        broken = tokenizer.break_special(content, "\ufdd0")
        ids = tokenizer.encode(broken + "d|>", parse_special=True, drop="\ufdd0")
        assert not any(tokenizer.is_control(i) for i in ids)
        assert tokenizer.decode(ids) == content + "d|>"
    assert tokenizer.break_special("hello world", "\ufdd0") == "hello world"


def test_added_tokens_follow_the_file(bpe_file, spm_file):
    tokenizer = build_tokenizer(bpe_file(add_add_bos_token=True, add_add_eos_token=True))
    assert tokenizer.encode("hello")[0] == tokenizer.bos_id
    assert tokenizer.encode("hello")[-1] == tokenizer.eos_id
    assert len(tokenizer.encode("hello", add_special=False)) == 1
    assert build_tokenizer(spm_file(add_add_bos_token=False)).encode("hello") != [1]


def test_sentencepiece(spm_file):
    tokenizer = build_tokenizer(spm_file())
    ids = tokenizer.encode("hello", add_special=True)
    assert [tokenizer.token_text(i) for i in ids] == ["<s>", " hello"]
    assert tokenizer.decode(ids) == "hello"
    assert tokenizer.decode(tokenizer.encode("  é 🦙")) == "  é 🦙"  # through byte tokens
    assert tokenizer.token_bytes(3 + 0x0A) == b"\n"
    assert tokenizer.encode("", add_special=False) == []


def test_sentencepiece_without_space_prefix(spm_file):
    tokenizer = build_tokenizer(spm_file(add_add_space_prefix=False))
    assert [tokenizer.token_text(i) for i in tokenizer.encode("hello", add_special=False)] == ["he", "llo"]
    assert tokenizer.decode(tokenizer.encode(" hello")) == " hello"


def test_bad_text_and_ids(bpe_file):
    tokenizer = build_tokenizer(bpe_file())
    with pytest.raises(RequestError, match="surrogate"):
        tokenizer.encode("a\ud800")
    with pytest.raises(RequestError, match="limit"):
        tokenizer.encode("a" * (MAX_TEXT_BYTES + 1))
    for token_id in (-1, tokenizer.n_vocab):
        with pytest.raises(RequestError, match="outside"):
            tokenizer.decode([token_id])
        assert tokenizer.token_bytes(token_id) == b""


def test_any_text_comes_back(bpe_file, spm_file):
    tokenizers = [build_tokenizer(bpe_file()), build_tokenizer(spm_file())]

    @settings(max_examples=150, deadline=None)
    @given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
    def check(text):
        for tokenizer in tokenizers:
            ids = tokenizer.encode(text)
            assert tokenizer.decode(ids) == text
            broken = tokenizer.break_special(text, "\ufdd0")
            assert tokenizer.encode(broken, parse_special=True, drop="\ufdd0") == tokenizer.encode(
                text.replace("\ufdd0", "")
            )

    check()


def test_demo_model(demo_model):
    from runtime.gguf import ModelFile

    tokenizer = build_tokenizer(ModelFile.open(demo_model))
    text = "Tell me a story about a fox. What is 12 plus 7? Zürich, 想, 🦊"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eog_ids


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("gpt-2", "I'll 'RE 1234", ["I", "'ll", " '", "RE", " 1234"]),
        ("llama-bpe", "I'LL 12345\n\n x", ["I", "'LL", " ", "123", "45", "\n\n", " x"]),
        ("qwen2", "a 12\r\n", ["a", " ", "1", "2", "\r\n"]),
        ("smollm", "a 12", ["a", " ", "1", "2"]),
        ("tekken", "HTTPServer's 12/", ["HTTPServer", "'s", " ", "1", "2", "/"]),
        ("gpt-4o", "HTTPServer's 1234", ["HTTPServer's", " ", "123", "4"]),
        ("deepseek-v3", "12345 (ab想い", ["123", "45", " (", "ab", "想い"]),
        ("deepseek-llm", "under 12，想", ["under", " ", "12", "，", "想"]),
        ("falcon", "a, 12345", ["a", ",", " ", "123", "45"]),
        ("default", "a, 12345", ["a", ",", " ", "123", "45"]),
    ],
)
def test_pre_tokenizers_cut_words(pre, text, words):
    from runtime.tokenizer.build import _pre_tokenizer
    from runtime.tokenizer.pretokenizers import PRE_TOKENIZERS

    cut = _pre_tokenizer(PRE_TOKENIZERS[pre]).pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in cut] == words


def test_every_regex_compiles():
    from runtime.tokenizer.build import _pre_tokenizer
    from runtime.tokenizer.pretokenizers import PRE_TOKENIZERS

    for pre in set(PRE_TOKENIZERS.values()):
        pieces = _pre_tokenizer(pre).pre_tokenize_str("Ünder 12，想 e\u0301 \n\n it's")
        assert pieces[-1][1][1] == len("Ünder 12，想 e\u0301 \n\n it's")
