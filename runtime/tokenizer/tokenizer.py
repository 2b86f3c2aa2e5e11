"""Text to token ids and back."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from runtime._native import Tokenizer as NativeTokenizer
from runtime.errors import RequestError
from runtime.tokenizer.vocabulary import TokenType, Vocabulary

MAX_TEXT_BYTES = 4 << 20


@dataclass(frozen=True)
class Normalizer:
    """What bert does to text before it is cut: accents off (they are marks once characters are decomposed), lower case."""

    lowercase: bool = True
    strip_accents: bool = True

    def apply(self, text: str) -> str:
        """Return the normalized text."""
        if self.strip_accents and not text.isascii():
            text = unicodedata.normalize("NFD", text)
            text = "".join(char for char in text if unicodedata.category(char) != "Mn")
        # Lower case one character at a time: not by its place in the word, as Python's rule for the final sigma has it.
        return text.replace("\u03a3", "\u03c3").lower() if self.lowercase else text


class Tokenizer:
    """The tokenizer of one model; immutable after construction and safe to use from several threads.

    `bos_id`/`eos_id` may be None; `eog_ids` are the tokens that end an answer; `add_bos`/`add_eos` say what
    `encode(add_special=True)` adds (for bert: the class and separator tokens).
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        native: NativeTokenizer,
        *,
        add_bos: bool,
        add_eos: bool,
        warnings: tuple[str, ...] = (),
        normalizer: Normalizer | None = None,
    ) -> None:
        self.warnings = warnings  # what whoever serves this model should know, in sentences
        self.vocabulary = vocabulary
        self.n_vocab = native.n_tokens
        self.bos_id = vocabulary.bos_id
        self.eos_id = vocabulary.sep_id if vocabulary.kind == "bert" else vocabulary.eos_id
        self.eog_ids = vocabulary.eog_ids
        self.add_bos = add_bos and self.bos_id is not None
        self.add_eos = add_eos and self.eos_id is not None
        # Texts of the control tokens, which structure a conversation; of equal ones the last counts.
        self.control_tokens = {
            vocabulary.tokens[i]: i for i in native.special_ids() if vocabulary.types[i] == TokenType.CONTROL
        }
        self._native = native
        self._normalizer = normalizer

    @property
    def size_bytes(self) -> int:
        """The memory that the vocabulary's tables take, beside the mapped file."""
        return self._native.size_bytes

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = False, drop: str = ""
    ) -> list[int]:
        """Token ids of `text`.

        Control-token text becomes control tokens only with `parse_special`; user-defined tokens are always
        found.  `drop`, if given, is one character that break_special() put in and that is left out here.
        Raises RequestError for text over MAX_TEXT_BYTES or with lone surrogates.
        """
        data = _checked(text)
        ids: list[int] = [self.bos_id] if add_special and self.add_bos and self.bos_id is not None else []
        ids += self._encode(data, "all" if parse_special else "user_defined", mark=drop.encode())
        if add_special and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def encode_continuation(self, text: str) -> list[int]:
        """Token ids of text that goes on: nothing is put in front, and control-token text stays text."""
        return self._encode(_checked(text), "user_defined", prefix=False)

    def _encode(self, data: bytes, specials: str, *, prefix: bool = True, mark: bytes = b"") -> list[int]:
        if self._normalizer is None:
            return self._native.encode(data, specials=specials, prefix=prefix, mark=mark)
        ids: list[int] = []
        done = 0
        found = self._native.find_specials(data, specials=specials, mark=mark)
        for start, end, token_id in [*found, (len(data), len(data), -1)]:
            plain = data[done:start].replace(mark, b"") if mark else data[done:start]
            normal = self._normalizer.apply(plain.decode())
            ids += self._native.encode(normal.encode())
            if token_id >= 0:
                ids.append(token_id)
            done = end
        return ids

    def break_special(self, text: str, mark: str) -> str:
        """Put `mark` into every control-token text of `text`, so that encode(drop=mark) takes it as text.

        A beginning of a control token at the end of the text is broken too: what follows could complete it.
        Text without either is returned as it is.  RequestError for lone surrogates.
        """
        data = _checked(text)
        broken = self._native.break_special(data, mark.encode())
        return text if len(broken) == len(data) else broken.decode()

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; control tokens are left out, bytes that are no UTF-8 become U+FFFD.

        decode(encode(text)) is `text` again: the space that SentencePiece puts in front is taken off.
        Raises RequestError for an id outside the vocabulary.
        """
        pieces = []
        for token_id in ids:
            if not 0 <= token_id < self.n_vocab:
                raise RequestError("ids", f"token id {token_id} is outside 0 to {self.n_vocab - 1}")
            pieces.append(self.token_bytes(token_id))
        data = b"".join(pieces)
        strips = self.vocabulary.add_space_prefix or self.vocabulary.kind == "bert"
        if strips and data.startswith(b" "):
            data = data[1:]
        return data.decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds to the text; b"" for control tokens and ids beyond the vocabulary."""
        if not 0 <= token_id < self.n_vocab:
            return b""
        return self._native.token_bytes(token_id)

    def all_token_bytes(self) -> list[bytes]:
        """`token_bytes` of every token, in order of ids."""
        return self._native.all_token_bytes()

    def token_text(self, token_id: int) -> str:
        """A token for people: its text, control tokens included, U+FFFD where it is no whole UTF-8."""
        if not 0 <= token_id < self.n_vocab:
            return ""
        data = self.token_bytes(token_id) or self._native.token_text(token_id)
        return data.decode("utf-8", "replace")

    def is_control(self, token_id: int) -> bool:
        """True for tokens that structure a conversation and have no text of their own."""
        return 0 <= token_id < self.n_vocab and self.vocabulary.types[token_id] == TokenType.CONTROL


def _checked(text: str) -> bytes:
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise RequestError("text", f"a lone surrogate at character {error.start}") from None
    if len(data) > MAX_TEXT_BYTES:
        raise RequestError("text", f"{len(data)} bytes of text; the limit is {MAX_TEXT_BYTES}")
    return data
