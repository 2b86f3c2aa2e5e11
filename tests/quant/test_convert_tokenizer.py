"""Tokenizers of Hugging Face folders, against the tokenizers library and against vocabularies as published."""

from __future__ import annotations

import json
import struct

import pytest
import tokenizers

from quant.convert.tokenizer import read_tokenizer
from runtime.errors import ModelFormatError, UnsupportedModelError
from runtime.gguf import ModelFile
from tests.quant import hugging_face as hf

GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
DIGITS = {"type": "Digits", "individual_digits": True}


def split(regex, behavior="Isolated", **more):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": False} | more


BYTES = GPT2 | {"use_regex": False}
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?"
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("steps", "ignore_merges", "name"),
    [
        ([split(hf.LLAMA3_REGEX), BYTES], True, "llama-bpe"),
        ([split(hf.LLAMA3_REGEX), BYTES], False, "dbrx"),
        ([split(hf.LLAMA3_REGEX.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?i:[sdmt]|ll|ve|re)")), BYTES], False, "dbrx"),
        ([split(hf.LLAMA3_REGEX, "Removed", invert=True), BYTES], False, "dbrx"),
        ([split(hf.QWEN2_REGEX), BYTES], False, "qwen2"),
        ([GPT2], False, "gpt-2"),
        ([DIGITS, GPT2], False, "smollm"),
        ([split(TEKKEN), BYTES], True, "tekken"),
    ],
)  # fmt: skip
def test_pre_tokenizers_are_known_by_their_regexes(tmp_path, steps, ignore_merges, name):
    tokenizer = hf.byte_level_tokenizer(ignore_merges=ignore_merges)
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else steps[0]
    hf.write_tokenizer(tmp_path, tokenizer)
    assert read_tokenizer(tmp_path).pre == name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pre_tokenizer": split(r"\d+")}, r"cuts by '\\\\d\+'; quantd knows .*llama-bpe"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre-tokenizer Whitespace is not known"),
        ({"pre_tokenizer": split("a", "MergedWithNext")}, "MergedWithNext, which is not known"),
        ({"pre_tokenizer": GPT2 | {"add_prefix_space": True}}, "puts a space"),
        ({"pre_tokenizer": None}, "pre-tokenizer None"),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer Lowercase"),
        ({"model": {"type": "Unigram", "vocab": []}}, "Unigram model is not converted"),
    ],
)
def test_unknown_tokenizers_are_refused_by_name(tmp_path, change, said):
    hf.write_tokenizer(tmp_path, hf.byte_level_tokenizer() | change)
    with pytest.raises(UnsupportedModelError, match=said):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "model",
    [
        {"vocab": []},
        {"vocab": {"a": -1}},
        {"vocab": {"a": 2**40}},
        {"vocab": {"a": "0"}},
        {"merges": None},
        {"merges": ["a b c"]},
        {"merges": [["a", "b", "c"]]},
        {"merges": [7]},
    ],
)
def test_malformed_tokenizers_are_refused(tmp_path, model):
    tokenizer = hf.byte_level_tokenizer()
    tokenizer["model"] |= model
    hf.write_tokenizer(tmp_path, tokenizer)
    with pytest.raises(ModelFormatError) as caught:
        read_tokenizer(tmp_path)
    assert caught.value.code == "BAD_VOCABULARY"


@pytest.mark.parametrize("name", ["llama-bpe", "qwen2", "gpt-2"])
def test_published_byte_level_vocabularies_come_through(shared_dir, tmp_path, name):
    """A tokenizer.json made of a published vocabulary gives that vocabulary back."""
    file = ModelFile.open(shared_dir / "vocab" / f"ggml-vocab-{name}.gguf")
    tokens, types = file.strings("tokenizer.ggml.tokens"), file.integers("tokenizer.ggml.token_type")
    merges = file.strings("tokenizer.ggml.merges")
    regex = {"llama-bpe": hf.LLAMA3_REGEX, "qwen2": hf.QWEN2_REGEX}.get(name)
    added = [i for i, kind in enumerate(types) if kind in {3, 4}]
    vocab = {text: i for i, text in enumerate(tokens) if types[i] == 1}
    tokenizer = {
        "added_tokens": [{"id": i, "content": tokens[i], "special": types[i] == 3} for i in added],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split(regex), BYTES]} if regex else GPT2,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": name == "llama-bpe"},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    found = read_tokenizer(tmp_path)
    assert found.pre == name
    assert found.tokens == tokens[: len(found.tokens)]
    assert found.types == types[: len(found.tokens)]
    assert set(types[len(found.tokens) :]) <= {5}
    assert found.merges == merges


def field(number: int, wire: int, payload: bytes) -> bytes:
    return bytes([number << 3 | wire]) + payload


def message(data: bytes) -> bytes:
    n = len(data)
    length = bytes([n]) if n < 128 else bytes([n & 0x7F | 0x80, n >> 7])
    return length + data


def model_proto(pieces: list[tuple[str, float, int]], kind: int = 2) -> bytes:
    """A SentencePiece model: pieces, trainer, normalizer."""
    parts = []
    for text, score, token_type in pieces:
        piece = field(1, 2, message(text.encode())) + field(2, 5, struct.pack("<f", score))
        parts.append(field(1, 2, message(piece + field(3, 0, bytes([token_type])))))
    parts += [field(2, 2, message(field(3, 0, bytes([kind])))), field(3, 2, message(field(3, 0, b"\1")))]
    return b"".join(parts)


PIECES = [
    ("<unk>", 0.0, 2),
    ("<s>", 0.0, 3),
    ("</s>", 0.0, 3),
    *((f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)),
    *((text, -float(i), 1) for i, text in enumerate(["\u2581t", "he", "\u2581the", "\u2581", "t", "h", "e"])),
]


def test_sentencepiece_model(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(model_proto(PIECES))
    config = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "added_tokens_decoder": {
            "266": {"content": "<|user|>", "special": True},
            "1": {"content": "<s>", "special": True},
        },
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = read_tokenizer(tmp_path)
    assert (found.model, found.pre) == ("llama", "default")
    assert found.tokens[:259] == [piece[0] for piece in PIECES[:259]]
    assert found.types[:4] == [2, 3, 3, 6]
    assert (found.tokens[266], found.types[266], found.scores[266]) == ("<|user|>", 3, -1000.0)
    assert found.scores[259:262] == [0.0, -1.0, -2.0]
    assert found.flags == {"add_bos_token": True, "add_eos_token": False, "add_space_prefix": True}
    assert found.special_ids == {"bos_token_id": 1, "eos_token_id": 2}


def test_sentencepiece_refusals(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model_proto(PIECES, kind=1))
    with pytest.raises(UnsupportedModelError, match="unigram model"):
        read_tokenizer(tmp_path)
    whole = model_proto(PIECES)
    for bad in (b"", whole[:-5], whole[:40], b"\xff" * 40, b"\x0a\xff\xff\xff\xff\x7f"):
        path.write_bytes(bad)
        with pytest.raises((ModelFormatError, UnsupportedModelError)):
            read_tokenizer(tmp_path)


def test_fast_sentencepiece_ranks_by_merges(tmp_path):
    """tokenizer.json of Llama 2's kind: the encoding is the library's."""
    texts = [piece[0] for piece in PIECES]
    merges = ["h e", "\u2581 t", "\u2581t he"]
    vocab = {text: i for i, text in enumerate(texts)}
    model = {
        "type": "BPE",
        "byte_fallback": True,
        "unk_token": "<unk>",
        "fuse_unk": True,
        "vocab": vocab,
        "merges": merges,
    }
    steps = [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    ]
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": texts[i], "special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
            for i in range(3)
        ],
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": []},
        "model": model,
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    found = read_tokenizer(tmp_path)
    assert (found.model, found.types[0], found.flags["add_space_prefix"]) == ("llama", 2, True)
    assert found.scores[vocab["he"]] > found.scores[vocab["\u2581t"]] > found.scores[vocab["\u2581the"]]
    library = tokenizers.Tokenizer.from_str(json.dumps(tokenizer))
    assert library.encode("the").ids == [1, vocab["\u2581the"]]


def test_word_piece(tmp_path):
    texts = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "##se", "a"]
    (tmp_path / "vocab.txt").write_text("\n".join(texts), encoding="utf-8")
    found = read_tokenizer(tmp_path)
    assert found.model == "bert"
    assert found.tokens[5:] == ["\u2581the", "se", "\u2581a"]
    assert found.types == [3, 3, 3, 3, 3, 1, 1, 1]
    assert found.special_ids["cls_token_id"] == found.special_ids["bos_token_id"] == 2
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    with pytest.raises(UnsupportedModelError, match="keeps capitals"):
        read_tokenizer(tmp_path)


def test_a_folder_without_tokenizer(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        read_tokenizer(tmp_path)
