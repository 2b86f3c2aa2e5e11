"""From a checked vocabulary to a tokenizer, one function for each kind."""

from __future__ import annotations

import logging
from typing import Any

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from runtime.errors import ModelFormatError
from runtime.gguf import ModelFile
from runtime.tokenizer.pretokenizers import PRE_TOKENIZERS, PreTokenizer
from runtime.tokenizer.tokenizer import Tokenizer, byte_value
from runtime.tokenizer.vocabulary import (
    TokenType,
    Vocabulary,
    fault,
    read_charsmap,
    read_merges,
    read_scores,
    read_vocabulary,
)

_LOG = logging.getLogger(__name__)
_WORD_START = "\u2581"
# WordPiece looks up every prefix of a word: its time grows with the square of this.
_MAX_WORD_CHARS = 256


def build_tokenizer(file: ModelFile) -> Tokenizer:
    """The tokenizer that `file`'s metadata describes; needs no tensors.

    A pre-tokenizer that is not known is replaced by the default one, with a warning here and in `Tokenizer.warnings`.
    Raises ModelFormatError that names the key, UnsupportedModelError for a kind that is not served.
    """
    vocabulary = read_vocabulary(file)
    if vocabulary.kind == "gpt2":
        return _build_bpe(str(file.path), vocabulary, read_merges(file))
    if vocabulary.kind == "llama":
        return _build_sentencepiece(vocabulary, read_scores(file, len(vocabulary.tokens)))
    if vocabulary.kind == "t5":
        return _build_unigram(file, vocabulary)
    return _build_wordpiece(vocabulary)


def _mergeable(vocabulary: Vocabulary) -> dict[str, int]:
    """Token text to id of what merging may give: never a control token, never an empty or undecodable text."""
    texts = {
        text: i
        for i, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind != TokenType.CONTROL
    }
    texts.pop("", None)
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        texts = {text: i for text, i in texts.items() if _is_utf8(text)}
    return texts


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _build_bpe(file_path: str, vocabulary: Vocabulary, merges: list[str]) -> Tokenizer:
    pre = PRE_TOKENIZERS.get(vocabulary.pre)
    warnings: list[str] = []
    if pre is None:
        pre = PRE_TOKENIZERS["default"]
        warnings.append(
            f"tokenizer.ggml.pre is {vocabulary.pre[:64]!r}, which is not known: text is cut as by 'default', and answers may be "
            "worse than the model's; convert the model again, or use one that names a known pre-tokenizer"
        )
        _LOG.warning("%s: %s", file_path, warnings[0])
    texts = _mergeable(vocabulary)
    pairs: list[Any] = [tuple(merge.split(" ", 1)) for merge in merges]
    # Checked before the library sees it: it panics on a result that is longer than any token.
    if not all(merge.replace(" ", "", 1) in texts for merge in merges):
        raise _merge_fault(pairs, texts)
    try:
        model = models.BPE(vocab=texts, merges=pairs, ignore_merges=pre.ignore_merges)
    except Exception as error:  # the library has no class of its own
        raise _merge_fault(pairs, texts) from error
    merger = tokenizers.Tokenizer(model)
    merger.pre_tokenizer = _pre_tokenizer(pre)
    add_bos = pre.add_bos if vocabulary.add_bos is None else vocabulary.add_bos
    add_eos = pre.add_sep if vocabulary.add_eos is None else vocabulary.add_eos
    return Tokenizer(vocabulary, merger, add_bos=add_bos, add_eos=add_eos, warnings=tuple(warnings))


def _pre_tokenizer(pre: PreTokenizer) -> pre_tokenizers.PreTokenizer:
    splits = [pre_tokenizers.Split(tokenizers.Regex(regex), "isolated") for regex in pre.regexes]
    return pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _merge_fault(pairs: list[Any], texts: dict[str, int]) -> ModelFormatError:
    wrong = (
        i for i, pair in enumerate(pairs) if len(pair) != 2 or not {*pair, "".join(pair)} <= texts.keys()
    )
    return fault("BAD_MERGE", "merges", f"entry {next(wrong, 0)} does not join two tokens to a token")


def _build_sentencepiece(vocabulary: Vocabulary, scores: list[float]) -> Tokenizer:
    texts = _mergeable(vocabulary)
    byte_values = {
        byte_value(text)
        for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
        if kind == TokenType.BYTE
    }
    if -1 in byte_values:
        raise fault("BAD_BYTE_TOKEN", "tokens", 'a byte token is not written as "<0x00>" to "<0xFF>"')
    has_bytes = len(byte_values) == 256
    if not has_bytes and vocabulary.unk_id is None:
        raise fault("NO_FALLBACK", "tokens", "neither all 256 byte tokens nor an unknown token")
    unk_text = None
    if not has_bytes and vocabulary.unk_id is not None:
        unk_text = vocabulary.tokens[vocabulary.unk_id]
        texts[unk_text] = vocabulary.unk_id
    model = models.BPE(
        vocab=texts,
        merges=_merges_from_scores(vocabulary.types, scores, texts),
        unk_token=unk_text,
        fuse_unk=False,
        byte_fallback=has_bytes,
    )
    add_bos = True if vocabulary.add_bos is None else vocabulary.add_bos
    return Tokenizer(
        vocabulary, tokenizers.Tokenizer(model), add_bos=add_bos, add_eos=bool(vocabulary.add_eos)
    )


def _merges_from_scores(types: bytes, scores: list[float], texts: dict[str, int]) -> list[tuple[str, str]]:
    """SentencePiece BPE merges the neighbours whose joined text is the token of the highest score.

    So every way to cut a token into two tokens is a merge, ranked by the token's score.
    """
    ranked: list[tuple[float, int, int, str, str]] = []
    for text, i in texts.items():
        if len(text) < 2 or types[i] == TokenType.BYTE:
            continue
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in texts and right in texts:
                ranked.append((-scores[i], texts[left], texts[right], left, right))
    ranked.sort()
    return [(left, right) for _, _, _, left, right in ranked]


def _build_unigram(file: ModelFile, vocabulary: Vocabulary) -> Tokenizer:
    """SentencePiece's unigram model: the cut of a text whose pieces are likeliest together."""
    if vocabulary.unk_id is None:
        raise fault("NO_FALLBACK", "unknown_token_id", "a t5 vocabulary needs an unknown token")
    scores = read_scores(file, len(vocabulary.tokens))
    usable = (TokenType.NORMAL, TokenType.UNKNOWN, TokenType.BYTE)
    # Ids are places in the list, so what merging may not give stays in it under a text that no input has.
    pieces = [
        (text if kind in usable and text and _is_utf8(text) else f"\0{i}", score)
        for i, (text, kind, score) in enumerate(zip(vocabulary.tokens, vocabulary.types, scores, strict=True))
    ]
    try:
        model = models.Unigram(pieces, vocabulary.unk_id, False)
        steps: list[Any] = []
        charsmap = read_charsmap(file)
        if charsmap:
            steps.append(normalizers.Precompiled(charsmap))
    except Exception as error:  # the library has no class of its own
        raise fault(
            "BAD_UNIGRAM", "precompiled_charsmap", f"the library refuses it: {str(error)[:200]}"
        ) from error
    if file.boolean("tokenizer.ggml.remove_extra_whitespaces", False):
        steps += [normalizers.Strip(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    if vocabulary.add_space_prefix:
        steps.append(normalizers.Prepend(_WORD_START))
    steps.append(normalizers.Replace(" ", _WORD_START))
    merger = tokenizers.Tokenizer(model)
    merger.normalizer = normalizers.Sequence(steps)
    add_eos = True if vocabulary.add_eos is None else vocabulary.add_eos
    return Tokenizer(vocabulary, merger, add_bos=bool(vocabulary.add_bos), add_eos=add_eos)


def _build_wordpiece(vocabulary: Vocabulary) -> Tokenizer:
    if vocabulary.unk_id is None:
        raise fault("NO_FALLBACK", "unknown_token_id", "a bert vocabulary needs an unknown token")
    # GGUF marks the beginnings of words, the library the other pieces.
    texts = {
        text[1:] if text.startswith(_WORD_START) else "##" + text: i
        for text, i in _mergeable(vocabulary).items()
        if text != _WORD_START
    }
    unk_text = vocabulary.tokens[vocabulary.unk_id]
    texts[unk_text] = vocabulary.unk_id
    model = models.WordPiece(vocab=texts, unk_token=unk_text, max_input_chars_per_word=_MAX_WORD_CHARS)
    merger = tokenizers.Tokenizer(model)
    merger.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    merger.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    add_bos = True if vocabulary.add_bos is None else vocabulary.add_bos
    # The separator is bert's end of text.
    add_eos = True if vocabulary.add_eos is None else vocabulary.add_eos
    return Tokenizer(vocabulary, merger, add_bos=add_bos, add_eos=add_eos)
