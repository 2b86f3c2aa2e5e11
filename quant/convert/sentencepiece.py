"""SentencePiece BPE to GGUF's "llama": from tokenizer.model, or from a tokenizer.json that was made of one.

tokenizer.model is a protocol buffer; the few fields that matter are read here (field numbers: sentencepiece_model.proto).
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quant.convert.vocabulary import MAX_TOKENS, TokenizerFiles, Vocabulary, looks_special
from runtime.tokenizer.vocabulary import TokenType

MAX_FILE_BYTES = 64 << 20
_SPACE = "\u2581"
_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")
_ADDED_SCORE = -1000.0

# ModelProto: 1 pieces, 2 trainer_spec, 3 normalizer_spec; SentencePiece: 1 piece, 2 score, 3 type;
# TrainerSpec: 3 model_type (2: BPE); NormalizerSpec: 3 add_dummy_prefix
_BPE = 2
# SentencePiece.Type to GGUF's
_TYPES = {
    1: TokenType.NORMAL,
    2: TokenType.UNKNOWN,
    3: TokenType.CONTROL,
    4: TokenType.USER_DEFINED,
    5: TokenType.UNUSED,
    6: TokenType.BYTE,
}


def read_model_proto(files: TokenizerFiles, path: Path) -> Vocabulary:
    """Read tokenizer.model and the tokens that were added to it; UnsupportedModelError for unigram models."""
    if path.stat().st_size > MAX_FILE_BYTES:
        raise files.fault(f"{path.name} has more than {MAX_FILE_BYTES:,} bytes")
    tokens: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    kind, dummy_prefix = 1, True
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                text, score, token_type = _piece(value)
                tokens.append(text)
                scores.append(score)
                types.append(token_type)
            elif number == 2:
                kind = next((int(v) for n, v in _fields(value) if n == 3), kind)
            elif number == 3:
                dummy_prefix = next((bool(v) for n, v in _fields(value) if n == 3), dummy_prefix)
    except (IndexError, struct.error, KeyError, TypeError, UnicodeDecodeError):
        raise files.fault(f"{path.name} is no SentencePiece model, or damaged") from None
    if kind != _BPE:
        raise files.unsupported(
            f"{path.name} is a unigram model; quantd converts SentencePiece models of kind BPE"
        )
    return _finish(files, tokens, scores, types, space_prefix=dummy_prefix)


def read_fast(files: TokenizerFiles) -> Vocabulary:
    """Read a tokenizer.json of BPE with byte fallback.  A token's score is the rank of the first merge that gives it."""
    model = files.tokenizer["model"]
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not vocab or not isinstance(merges, list):
        raise files.fault("model.vocab must map tokens to ids, model.merges be a list")
    if any(type(i) is not int or not 0 <= i < MAX_TOKENS for i in vocab.values()):
        raise files.fault(f"an id of model.vocab is no integer from 0 to {MAX_TOKENS - 1}")
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        text = "".join(merge) if isinstance(merge, list) else str(merge).replace(" ", "")
        ranks.setdefault(text, rank)
    n_tokens = max(vocab.values()) + 1
    tokens = [f"[PAD{i}]" for i in range(n_tokens)]
    scores = [-10000.0 - len(merges)] * n_tokens
    types = [int(TokenType.UNUSED)] * n_tokens
    unknown = model.get("unk_token")
    for text, i in vocab.items():
        tokens[i] = text
        scores[i] = float(-ranks.get(text, len(merges)))
        is_byte = _BYTE_TOKEN.fullmatch(text) is not None
        types[i] = int(
            TokenType.BYTE if is_byte else TokenType.UNKNOWN if text == unknown else TokenType.NORMAL
        )
    return _finish(files, tokens, scores, types, space_prefix=_puts_space(files))


def _puts_space(files: TokenizerFiles) -> bool:
    """Say whether the normalizer or pre-tokenizer puts a space before each text."""
    normalizer = files.tokenizer.get("normalizer") or {}
    steps = normalizer.get("normalizers") or [normalizer]
    pre = files.tokenizer.get("pre_tokenizer") or {}
    prepends = any(step.get("type") == "Prepend" for step in steps)
    return prepends or (pre.get("type") == "Metaspace" and pre.get("prepend_scheme", "always") != "never")


def _finish(
    files: TokenizerFiles, tokens: list[str], scores: list[float], types: list[int], *, space_prefix: bool
) -> Vocabulary:
    for token_id, text, special in files.added_tokens():
        while len(tokens) <= token_id:
            tokens.append(f"[PAD{len(tokens)}]")
            scores.append(-10000.0)
            types.append(int(TokenType.UNUSED))
        if types[token_id] in {TokenType.UNKNOWN, TokenType.BYTE} and tokens[token_id] == text:
            continue
        control = special or looks_special(text)
        tokens[token_id] = text if control else text.replace(_SPACE, " ")
        scores[token_id] = _ADDED_SCORE
        types[token_id] = int(TokenType.CONTROL if control else TokenType.USER_DEFINED)
    if not tokens or len(tokens) > MAX_TOKENS or not all(map(math.isfinite, scores)):
        raise files.fault("the vocabulary is empty, too large, or has a score that is not finite")
    vocabulary = Vocabulary("llama", "default", tokens, types, scores=scores)
    files.set_special(vocabulary)
    _set_defaults(files, vocabulary)
    vocabulary.flags["add_space_prefix"] = space_prefix
    return vocabulary


def _set_defaults(files: TokenizerFiles, vocabulary: Vocabulary) -> None:
    """SentencePiece models without a post-processor begin with BOS unless tokenizer_config.json says otherwise."""
    if not files.tokenizer.get("post_processor"):
        begins = files.config.get("add_bos_token", True)
        vocabulary.flags["add_bos_token"] = begins if type(begins) is bool else True


def _piece(data: Any) -> tuple[str, float, int]:
    text, score, token_type = "", 0.0, 1
    for number, value in _fields(data):
        if number == 1:
            text = bytes(value).decode("utf-8")
        elif number == 2:
            (score,) = struct.unpack("<f", value)
        elif number == 3:
            token_type = value
    return text, score, int(_TYPES[token_type])


def _fields(data: Any) -> Iterator[tuple[int, Any]]:
    """Yield (field number, value) of a message: an integer for varints, bytes for everything else."""
    view = memoryview(data)
    position = 0
    while position < len(view):
        tag, position = _varint(view, position)
        wire = tag & 7
        if wire == 0:
            value, position = _varint(view, position)
            yield tag >> 3, value
            continue
        if wire == 2:
            n_bytes, position = _varint(view, position)
        else:
            n_bytes = {1: 8, 5: 4}[wire]
        if n_bytes > len(view) - position:
            raise IndexError
        yield tag >> 3, view[position : position + n_bytes]
        position += n_bytes


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise IndexError
