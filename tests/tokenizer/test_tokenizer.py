"""Small vocabularies of our own: encoding, decoding, special tokens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime._native import split_words
from runtime.errors import RequestError
from runtime.tokenizer import MAX_TEXT_BYTES, build_tokenizer
from runtime.tokenizer.pretokenizers import PRE_TOKENIZERS


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
    data = text.encode()
    ends = split_words(list(PRE_TOKENIZERS[pre].regexes), data)
    assert [data[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)] == words


def test_an_unknown_pre_tokenizer_warns_and_cuts_as_the_default_one(bpe_file, caplog):
    tokenizer = build_tokenizer(bpe_file(pre="no-such-model"))
    assert "'no-such-model', which is not known" in tokenizer.warnings[0]
    assert "no-such-model" in caplog.text
    assert tokenizer.encode("hello world") == build_tokenizer(bpe_file(pre="default")).encode("hello world")
    assert build_tokenizer(bpe_file()).warnings == ()


def test_popular_pre_tokenizers_are_known():
    assert len(PRE_TOKENIZERS) > 80
    wanted = (
        "llama-bpe qwen2 qwen35 gpt-2 gpt-4o tekken smollm glm4 deepseek-v3 kimi-k2 command-r granite-docling"
    )
    assert set(wanted.split()) <= PRE_TOKENIZERS.keys()


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("qwen35", "e\u0301a 12", ["e\u0301a", " ", "1", "2"]),
        ("kimi-k2", "ab想cd 1234", ["ab", "想", "cd", " ", "123", "4"]),
        ("jais-2", "a    b", ["a", "  ", " ", " b"]),
        ("bloom", "a b, c!", ["a", " b", ",", " c", "!"]),
        ("viking", "ab 12", ["ab", " ", "1", "2"]),
        ("seed-coder", "a!\nb", ["a", "!", "\n", "b"]),
        ("ufakzeka", "Ali'nin", ["Ali", "'nin"]),
        ("laguna", "a\n\nb", ["a", "\n\n", "b"]),
        ("exaone-moe", "one two 3", ["one two", " ", "3"]),
        ("minicpm5", "12345", ["123", "45"]),
        ("youtu", "想ab、c", ["想", "ab", "、", "c"]),
        ("granite-embed-multi-97m", "HTTPe\u0301s", ["HTTPe\u0301s"]),
        ("bailingmoe", "I'VE 12", ["I", "'VE", " ", "1", "2"]),
        ("chameleon", "a\tb.", ["a", "\t", "b", "."]),
        ("spark2_5", "123 a", ["1", "2", "3", " a"]),
        ("tiny_aya", "12345 123456a", ["12", "345", " ", "123", "456", "a"]),
        ("superbpe", "x1234567", ["x", "1", "234", "567"]),
        ("afmoe", "12345a想b", ["12", "345", "a", "想", "b"]),
        ("gemma4", "a b\n\nc", ["a b", "\n\n", "c"]),
    ],
)
def test_more_pre_tokenizers_cut_words(pre, text, words):
    test_pre_tokenizers_cut_words(pre, text, words)


def likeliest(text: str, pieces: dict[str, float]) -> float:
    """The best total score of a cut of `text`."""
    best = [0.0] + [-float("inf")] * len(text)
    for end in range(1, len(text) + 1):
        for start in range(end):
            score = pieces.get(text[start:end])
            if score is not None:
                best[end] = max(best[end], best[start] + score)
    return best[-1]


def test_unigram(unigram_file):
    file, pieces = unigram_file()
    tokenizer = build_tokenizer(file)
    scores = {3 + i: score for i, score in enumerate(pieces.values())}
    for text in ("a", "ab", "abc", "ab c", "cab abab  bc"):
        ids = tokenizer.encode(text, add_special=False)
        assert tokenizer.decode(ids) == text
        assert sum(scores[i] for i in ids) == pytest.approx(likeliest("▁" + text.replace(" ", "▁"), pieces))
    assert tokenizer.encode("a")[-1] == 1  # the end of the text
    assert 2 in tokenizer.encode("x", add_special=False)
    assert 1 not in tokenizer.encode("</s>", add_special=False)
    squeezed = build_tokenizer(unigram_file(add_remove_extra_whitespaces=True)[0])
    assert squeezed.encode("  ab   c ") == tokenizer.encode("ab c")


def test_a_bad_charsmap_is_named(unigram_file):
    from runtime.errors import ModelFormatError

    with pytest.raises(ModelFormatError, match="precompiled_charsmap"):
        build_tokenizer(unigram_file(add_precompiled_charsmap=[1, 2, 3])[0])
