"""Against the `tokenizers` library, which shares no code with us: every vocabulary, every regex, text at random."""

from __future__ import annotations

import random
import unicodedata

import pytest

from runtime._native import split_words
from runtime.gguf import ModelFile
from runtime.tokenizer import build_tokenizer
from runtime.tokenizer.pretokenizers import PRE_TOKENIZERS
from tests.tokenizer.library import LibraryTokenizer, cut_words, word_cutter

VOCABULARIES = ("bert-bge", "deepseek-coder", "gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2")
WORDS = (
    "the of and tokenizer HTTPServer don't I'LL we'Ve 12 1234567 3.14 0x1F über Größe naïve e\u0301 想要 日本語 テスト 한국어 "
    "Привет мир שלום مرحبا नमस्ते 🦙🦙 👩‍👩‍👧 … — “x” foo_bar() {}; != <s> <unk> [PAD] IMGIMGABZ \u017f'\u017f K Ωμέγα ΣΑΣ İstanbul"
).split()
SPACES = [" ", "  ", "\n", "\n\n", "\t", "\r\n", " \n ", "\u00a0", "\u3000", "   ", ""]


def random_texts(count: int, seed: int, *, max_parts: int = 30):
    draw = random.Random(seed)
    planes = [(0x20, 0x7F), (0xA0, 0x250), (0x370, 0x530), (0x900, 0xE00), (0x2000, 0x2C00), (0x3000, 0x9FFF)]
    for _ in range(count):
        parts = []
        for _ in range(draw.randrange(max_parts)):
            low, high = draw.choice(planes)
            parts.append(
                draw.choice([draw.choice(WORDS), chr(draw.randrange(low, high)), str(draw.randrange(10**6))])
            )
            parts.append(draw.choice(SPACES))
        yield "".join(parts)


def settled(text: str) -> bool:
    """Whether the text's characters are old enough for every table of Unicode to agree on them."""
    return all(unicodedata.ucd_3_2_0.category(char) not in ("Cn", "Co") for char in text)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_text_has_the_library_s_tokens(shared_dir, name):
    file = ModelFile.open(shared_dir / "vocab" / f"ggml-vocab-{name}.gguf")
    ours, library = build_tokenizer(file), LibraryTokenizer(file)
    # The library lets the text of SentencePiece's unknown token become that token.
    texts = [text.replace("<unk>", "unk") for text in random_texts(150, seed=7) if settled(text)]
    texts = [text for text in texts if not library.user_defined & set(text)]
    assert len(texts) > 50
    for text in texts:
        assert ours.encode(text, add_special=False) == library.encode(text), repr(text)
    wikipedia = (
        (shared_dir / "data" / "wikitext2-test.txt")
        .read_text(encoding="utf-8")[:30_000]
        .replace("<unk>", "unk")
    )
    assert ours.encode(wikipedia, add_special=False) == library.encode(wikipedia)


FAMILIES = {pre: name for name, pre in reversed(PRE_TOKENIZERS.items())}


@pytest.mark.parametrize(("pre", "name"), FAMILIES.items(), ids=FAMILIES.values())
def test_every_family_of_regexes_cuts_as_the_library(pre, name):
    cutter = word_cutter(pre)
    for text in filter(settled, random_texts(60, seed=5)):
        data = text.encode()
        ends = split_words(list(pre.regexes), data)
        ours = [data[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]
        assert ours == [word for word in cut_words(cutter, text) if word], repr(text)


def test_the_loops_of_exaone_moe_are_its_own():
    own = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?"
        r"|\s*[\r\n]|\s+(?!\S)|\s+"
    )
    regexes = PRE_TOKENIZERS["exaone-moe"].regexes
    cutter = word_cutter(type("Pre", (), {"regexes": (own,)}))
    for text in filter(settled, random_texts(60, seed=3)):
        data = text.encode()
        ends = split_words(list(regexes), data)
        ours = [data[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]
        assert ours == cut_words(cutter, text), repr(text)


@pytest.mark.parametrize("name", ["L", "Lu", "Lo", "M", "N", "P", "S"])
def test_categories_are_unicode_s(name):
    chars = [chr(code) for code in (*range(0x20, 0x3200), *range(0xA000, 0xAC00), *range(0x10000, 0x12000))]
    chars = [char for char in chars if unicodedata.category(char) != "Cn"]
    text = "".join(chars)
    data = text.encode()
    ends = set(split_words([rf"\p{{{name}}}"], data)) | {0}
    at, wrong = 0, []
    for char in chars:
        begin, at = at, at + len(char.encode())
        alone = begin in ends and at in ends
        if unicodedata.category(char).startswith(name) and not alone:
            wrong.append(char)
    # What Unicode 14 says and later versions changed.
    assert len(wrong) <= 2, wrong[:20]
