"""The vocabulary of a model file: what its metadata says beside the tokens themselves, read and checked once.

Tokens, merges and scores are read and checked natively (runtime/native/tokenizer); no Python object is kept for any of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import overload

from runtime._native import Tokenizer as NativeTokenizer
from runtime.errors import ModelFormatError, UnsupportedModelError
from runtime.gguf import ModelFile

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
        "<turn|>",
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
_FIM_ROLES = ("fim_pre", "fim_suf", "fim_mid")
_OLD_FIM_ROLES = ("prefix", "suffix", "middle")


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


class TokenTexts(Sequence[str]):
    """The raw texts of all tokens by id, read from the file when asked for.

    They may hold surrogate escapes where the file's bytes are no UTF-8.
    """

    def __init__(self, native: NativeTokenizer) -> None:
        self._native = native

    def __len__(self) -> int:
        return self._native.n_tokens

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = index + len(self) if index < 0 else index
        return self._native.token_text(at).decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and self._find(text) >= 0

    def index(self, value: str, start: int = 0, stop: int | None = None) -> int:
        """The first token with this text; ValueError if there is none."""
        found = (
            self._find(value)
            if start == 0 and stop is None
            else super().index(value, start, stop or len(self))
        )
        if found < 0:
            raise ValueError(f"no token is {value[:64]!r}")
        return found

    def _find(self, text: str) -> int:
        return self._native.find_text(text.encode("utf-8", "surrogateescape"))


@dataclass(frozen=True)
class Vocabulary:
    """What a file says of its tokens; ids are indexes into `tokens` and `types`, every id here is in range."""

    kind: str
    pre: str
    tokens: Sequence[str]
    types: bytes  # (n_tokens,) TokenType
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    sep_id: int | None
    eog_ids: frozenset[int]
    fim_ids: (
        tuple[int, int, int] | None
    )  # before, after and in the middle of a gap, where the file names them
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
    "gemma4": _Defaults(),
    "llama": _Defaults(bos=1, eos=2, unk=0, space_prefix=True),
    "t5": _Defaults(eos=1, unk=2, space_prefix=True),
    "bert": _Defaults(bos=101, unk=100, sep=102),
}


@dataclass(frozen=True)
class Head:
    """What must be known before the tokens can be read."""

    kind: str
    pre: str
    unk_id: int | None
    add_space_prefix: bool


def read_head(file: ModelFile) -> Head:
    """Read the kind of the tokenizer and what goes with it; UnsupportedModelError for a kind that is not served."""
    kind = file.string("tokenizer.ggml.model")
    defaults = _DEFAULTS.get(kind)
    if defaults is None:
        raise UnsupportedModelError(
            f"tokenizer.ggml.model is {kind[:64]!r}; quantd reads the kinds {', '.join(_DEFAULTS)}"
        )
    n_tokens = file.length("tokenizer.ggml.tokens")
    return Head(
        kind=kind,
        pre=file.string("tokenizer.ggml.pre", "gemma4" if kind == "gemma4" else "default"),
        unk_id=_read_id(file, "unknown_token_id", defaults.unk, n_tokens) if n_tokens else None,
        add_space_prefix=file.boolean("tokenizer.ggml.add_space_prefix", defaults.space_prefix),
    )


def read_vocabulary(file: ModelFile, head: Head, native: NativeTokenizer) -> Vocabulary:
    """Read and check what else `tokenizer.ggml.*` says; ModelFormatError names the key."""
    defaults = _DEFAULTS[head.kind]
    n_tokens = native.n_tokens
    bos_key = "cls_token_id" if head.kind == "bert" and _has(file, "cls_token_id") else "bos_token_id"
    eos_id = _read_id(file, "eos_token_id", defaults.eos, n_tokens)
    tokens, types = TokenTexts(native), native.types()
    return Vocabulary(
        kind=head.kind,
        pre=head.pre,
        tokens=tokens,
        types=types,
        bos_id=_read_id(file, bos_key, defaults.bos, n_tokens),
        eos_id=eos_id,
        unk_id=head.unk_id,
        # "seperator" is how the format spells it.
        sep_id=_read_id(file, "seperator_token_id", defaults.sep, n_tokens),
        eog_ids=_read_end_ids(file, native, tokens, types, eos_id),
        fim_ids=_read_fim_ids(file, n_tokens),
        add_bos=_read_flag(file, "add_bos_token"),
        add_eos=_read_flag(file, "add_eos_token"),
        add_space_prefix=head.add_space_prefix,
    )


def _has(file: ModelFile, key: str) -> bool:
    return f"tokenizer.ggml.{key}" in file


def _read_id(file: ModelFile, key: str, default: int | None, n_tokens: int) -> int | None:
    if _has(file, key):
        return file.integer(f"tokenizer.ggml.{key}", minimum=0, maximum=n_tokens - 1)
    return default if default is not None and default < n_tokens else None


def _read_flag(file: ModelFile, key: str) -> bool | None:
    return file.boolean(f"tokenizer.ggml.{key}") if _has(file, key) else None


def _read_end_ids(
    file: ModelFile, native: NativeTokenizer, tokens: Sequence[str], types: bytes, eos_id: int | None
) -> frozenset[int]:
    named = (_read_id(file, key, None, len(tokens)) for key in ("eot_token_id", "eom_token_id"))
    found = {i for i in (eos_id, *named) if i is not None}
    control = (i for i in native.special_ids() if types[i] == TokenType.CONTROL)
    found.update(i for i in control if tokens[i] in _END_NAMES)
    return frozenset(found)


def _read_fim_ids(file: ModelFile, n_tokens: int) -> tuple[int, int, int] | None:
    for roles in (_FIM_ROLES, _OLD_FIM_ROLES):
        before, after, middle = (_read_id(file, f"{role}_token_id", None, n_tokens) for role in roles)
        if before is not None and after is not None and middle is not None:
            return before, after, middle
    return None
