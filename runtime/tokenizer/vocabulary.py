"""The vocabulary of a model file, read and checked once; everything later may trust it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from runtime.errors import ModelFormatError, UnsupportedModelError
from runtime.gguf import ModelFile

# The largest published vocabularies have 262,144 tokens and 0.5 M merges, the longest tokens 256 bytes.
MAX_TOKENS = 1 << 20
MAX_MERGES = 4 << 20
MAX_TOKEN_CHARS = 1024
# Rebuilding merges looks at every way to cut every token.
MAX_VOCABULARY_CHARS = 16 << 20
MAX_SPECIAL_CHARS = 256
MAX_CHARSMAP_BYTES = 4 << 20

# Names under which models end a turn or a text; they count where the file marks them as control tokens.
_END_NAMES = frozenset(
    (
        "</s>",
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end_of_text|>",
        "<|endoftext|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|eot|>",
        "<|eom|>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<|end_of_turn|>",
        "<EOT>",
        "<|END_OF_TURN_TOKEN|>",
        "<|eos|>",
        "<eos>",
        "[EOS]",
        "[EOT]",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    )
)


class TokenType(IntEnum):
    """Kinds of tokens as GGUF numbers them."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def fault(code: str, key: str, message: str) -> ModelFormatError:
    """A fault of the tokenizer's metadata; `key` is what follows "tokenizer.ggml."."""
    where = f"tokenizer.ggml.{key}"
    return ModelFormatError(code, where, 0, f"{where}: {message}")


@dataclass(frozen=True)
class Vocabulary:
    """A checked vocabulary; ids are indexes into `tokens` and `types`, every id here is in range.

    Token strings may hold surrogate escapes where the
    file's bytes are no UTF-8.
    """

    kind: str
    pre: str
    tokens: list[str]
    types: bytes  # (n_tokens,) TokenType
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    sep_id: int | None
    eog_ids: frozenset[int]
    add_bos: bool | None
    add_eos: bool | None
    add_space_prefix: bool


@dataclass(frozen=True)
class _Defaults:
    bos: int | None = None
    eos: int | None = None
    unk: int | None = None
    sep: int | None = None
    space_prefix: bool = False


# What a file of each kind means when it does not say.
_DEFAULTS = {
    "gpt2": _Defaults(),
    "llama": _Defaults(bos=1, eos=2, unk=0, space_prefix=True),
    "t5": _Defaults(eos=1, unk=2, space_prefix=True),
    "bert": _Defaults(bos=101, unk=100, sep=102),
}


def read_vocabulary(file: ModelFile) -> Vocabulary:
    """Read and check `tokenizer.ggml.*`.

    Raises ModelFormatError that names the key, UnsupportedModelError for a kind that is not served.
    """
    kind = file.string("tokenizer.ggml.model")
    defaults = _DEFAULTS.get(kind)
    if defaults is None:
        raise UnsupportedModelError(
            f"tokenizer.ggml.model is {kind[:64]!r}; quantd reads the kinds {', '.join(_DEFAULTS)}"
        )
    tokens = _read_tokens(file)
    types = _read_types(file, len(tokens))
    bos_key = "cls_token_id" if kind == "bert" and _has(file, "cls_token_id") else "bos_token_id"
    eos_id = _read_id(file, "eos_token_id", defaults.eos, len(tokens))
    return Vocabulary(
        kind=kind,
        pre=file.string("tokenizer.ggml.pre", "default"),
        tokens=tokens,
        types=types,
        bos_id=_read_id(file, bos_key, defaults.bos, len(tokens)),
        eos_id=eos_id,
        unk_id=_read_id(file, "unknown_token_id", defaults.unk, len(tokens)),
        # "seperator" is how the format spells it.
        sep_id=_read_id(file, "seperator_token_id", defaults.sep, len(tokens)),
        eog_ids=_read_end_ids(file, tokens, types, eos_id),
        add_bos=_read_flag(file, "add_bos_token"),
        add_eos=_read_flag(file, "add_eos_token"),
        add_space_prefix=file.boolean("tokenizer.ggml.add_space_prefix", defaults.space_prefix),
    )


def _has(file: ModelFile, key: str) -> bool:
    return f"tokenizer.ggml.{key}" in file


def _check_length(file: ModelFile, key: str, limit: int) -> None:
    """Refuse a huge array before it is converted."""
    length = file.length(f"tokenizer.ggml.{key}")
    if length > limit:
        raise fault("TOO_MANY_ENTRIES", key, f"{length} entries; the limit is {limit}")


def _read_tokens(file: ModelFile) -> list[str]:
    _check_length(file, "tokens", MAX_TOKENS)
    tokens = file.strings("tokenizer.ggml.tokens")
    if not tokens:
        raise fault("EMPTY_VOCABULARY", "tokens", "the vocabulary is empty")
    longest = max(map(len, tokens))
    if longest > MAX_TOKEN_CHARS:
        raise fault(
            "TOKEN_TOO_LONG", "tokens", f"a token of {longest} characters; the limit is {MAX_TOKEN_CHARS}"
        )
    total = sum(map(len, tokens))
    if total > MAX_VOCABULARY_CHARS:
        message = f"{total} characters in all; the limit is {MAX_VOCABULARY_CHARS}"
        raise fault("VOCABULARY_TOO_LONG", "tokens", message)
    return tokens


def _read_types(file: ModelFile, n_tokens: int) -> bytes:
    if not _has(file, "token_type"):
        return bytes((TokenType.NORMAL,)) * n_tokens
    _check_length(file, "token_type", MAX_TOKENS)
    types = file.integers("tokenizer.ggml.token_type")
    if len(types) != n_tokens:
        raise fault("LENGTH_MISMATCH", "token_type", f"{len(types)} entries for {n_tokens} tokens")
    if min(types) < 0 or max(types) > max(TokenType):
        raise fault("BAD_TOKEN_TYPE", "token_type", f"an entry is outside 0 to {int(max(TokenType))}")
    return bytes(types)


def read_scores(file: ModelFile, n_tokens: int) -> list[float]:
    """Read the score of every token; SentencePiece merges by them."""
    _check_length(file, "scores", MAX_TOKENS)
    scores = file.numbers("tokenizer.ggml.scores")
    if len(scores) != n_tokens:
        raise fault("LENGTH_MISMATCH", "scores", f"{len(scores)} entries for {n_tokens} tokens")
    return scores


def read_charsmap(file: ModelFile) -> bytes:
    """Read the table by which a unigram model normalizes text; b"" where there is none."""
    key = "precompiled_charsmap"
    if not _has(file, key):
        return b""
    _check_length(file, key, MAX_CHARSMAP_BYTES)
    values = file.integers(f"tokenizer.ggml.{key}")
    if min(values, default=0) < -128 or max(values, default=0) > 255:
        raise fault("BAD_CHARSMAP", key, "an entry is no byte")
    return bytes(value & 0xFF for value in values)


def read_merges(file: ModelFile) -> list[str]:
    """Read the merges of byte-level BPE, first ones first; each is two tokens with a space between."""
    _check_length(file, "merges", MAX_MERGES)
    return file.strings("tokenizer.ggml.merges")


def _read_id(file: ModelFile, key: str, default: int | None, n_tokens: int) -> int | None:
    if _has(file, key):
        return file.integer(f"tokenizer.ggml.{key}", minimum=0, maximum=n_tokens - 1)
    return default if default is not None and default < n_tokens else None


def _read_flag(file: ModelFile, key: str) -> bool | None:
    return file.boolean(f"tokenizer.ggml.{key}") if _has(file, key) else None


def _read_end_ids(file: ModelFile, tokens: list[str], types: bytes, eos_id: int | None) -> frozenset[int]:
    named = (_read_id(file, key, None, len(tokens)) for key in ("eot_token_id", "eom_token_id"))
    found = {i for i in (eos_id, *named) if i is not None}
    found.update(i for i, kind in enumerate(types) if kind == TokenType.CONTROL and tokens[i] in _END_NAMES)
    return frozenset(found)
