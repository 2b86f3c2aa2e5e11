"""Text to token ids and back."""

from __future__ import annotations

import os
from collections.abc import Iterable

import tokenizers

from runtime.errors import RequestError
from runtime.tokenizer.special import SpecialTokens
from runtime.tokenizer.vocabulary import MAX_SPECIAL_CHARS, TokenType, Vocabulary

# Before the library reads it: batches of one need no thread pool.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

MAX_TEXT_BYTES = 4 << 20
_SPACE = "\u2581"  # how SentencePiece writes a space
_SILENT = frozenset((TokenType.CONTROL, TokenType.UNKNOWN, TokenType.UNUSED))


def _byte_of_char() -> dict[str, int]:
    """The table of byte-level BPE: printable bytes stand for themselves, the others for U+0100 and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()


class Tokenizer:
    """The tokenizer of one model; immutable after construction and safe to use from several threads.

    `bos_id`/`eos_id` may be None; `eog_ids` are the tokens that end an answer; `add_bos`/`add_eos` say what
    `encode(add_special=True)` adds (for bert: the class and separator tokens).
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        merger: tokenizers.Tokenizer,
        *,
        add_bos: bool,
        add_eos: bool,
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.warnings = warnings  # what whoever serves this model should know, in sentences
        self.vocabulary = vocabulary
        self.n_vocab = len(vocabulary.tokens)
        self.bos_id = vocabulary.bos_id
        self.eos_id = vocabulary.sep_id if vocabulary.kind == "bert" else vocabulary.eos_id
        self.eog_ids = vocabulary.eog_ids
        self.add_bos = add_bos and self.bos_id is not None
        self.add_eos = add_eos and self.eos_id is not None
        self._merger = merger
        self._bytes: list[bytes | None] = [None] * self.n_vocab  # filled as tokens are met
        wanted = (TokenType.CONTROL, TokenType.USER_DEFINED)
        texts = {
            text: (i, vocabulary.types[i])
            for i, text in enumerate(vocabulary.tokens)
            if vocabulary.types[i] in wanted and 0 < len(text) <= MAX_SPECIAL_CHARS
        }
        self._all_special = SpecialTokens({text: i for text, (i, _) in texts.items()})
        self._control = SpecialTokens(
            {text: i for text, (i, kind) in texts.items() if kind == TokenType.CONTROL}
        )
        self._user_defined = SpecialTokens(
            {text: i for text, (i, kind) in texts.items() if kind == TokenType.USER_DEFINED}
        )

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = False, drop: str = ""
    ) -> list[int]:
        """Token ids of `text`.

        Control-token text becomes control tokens only with `parse_special`; user-defined tokens are always
        found.  `drop`, if given, is one character that break_special() put in and that is left out here.
        Raises RequestError for text over MAX_TEXT_BYTES or with lone surrogates.
        """
        _check_text(text)
        special = self._all_special if parse_special else self._user_defined
        ids: list[int] = [self.bos_id] if add_special and self.add_bos and self.bos_id is not None else []
        done = 0
        for start, end, token_id in special.find_all(text):
            self._encode_plain(text[done:start], ids, drop)
            ids.append(token_id)
            done = end
        self._encode_plain(text[done:], ids, drop)
        if add_special and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def encode_continuation(self, text: str) -> list[int]:
        """Token ids of text that goes on: nothing is put in front, and control-token text stays text."""
        _check_text(text)
        ids: list[int] = []
        done = 0
        for start, end, token_id in self._user_defined.find_all(text):
            self._encode_plain(text[done:start], ids, "", prefix=False)
            ids.append(token_id)
            done = end
        self._encode_plain(text[done:], ids, "", prefix=False)
        return ids

    def _encode_plain(self, text: str, ids: list[int], drop: str, *, prefix: bool = True) -> None:
        if drop:
            text = text.replace(drop, "")
        if not text:
            return
        if self.vocabulary.kind == "llama":
            if self.vocabulary.add_space_prefix and prefix:
                text = " " + text
            text = text.replace(" ", _SPACE)
        # A batch of one: unlike encode(), it lets other threads run meanwhile.
        ids.extend(self._merger.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def break_special(self, text: str, mark: str) -> str:
        """Put `mark` into every control-token text of `text`, so that encode(drop=mark) takes it as text.

        A beginning of a control token at the end of the text is broken too: what follows could complete it.
        """
        pieces: list[str] = []
        done = 0
        for start, _, _ in self._control.find_all(text):
            pieces += (text[done : start + 1], mark)
            done = start + 1
        stripped = len(text.rstrip())
        for end in {len(text), stripped}:
            cut = self._control.ends_inside(text[done:end])
            if cut is not None:
                pieces += (text[done : done + cut + 1], mark)
                done += cut + 1
                break
        return "".join((*pieces, text[done:]))

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
        data = self._bytes[token_id]
        if data is None:
            data = self._bytes[token_id] = self._compute_bytes(token_id)
        return data

    def _compute_bytes(self, token_id: int) -> bytes:
        text = self.vocabulary.tokens[token_id]
        kind = self.vocabulary.types[token_id]
        if kind in _SILENT:
            return b""
        if kind == TokenType.BYTE:
            return bytes((byte_value(text),))
        if kind != TokenType.USER_DEFINED:
            if self.vocabulary.kind == "gpt2":
                values = [_BYTE_OF_CHAR.get(char, -1) for char in text]
                if -1 not in values:
                    return bytes(values)
            else:
                text = text.replace(_SPACE, " ")
        return text.encode("utf-8", "surrogateescape")

    def token_text(self, token_id: int) -> str:
        """A token for people: its text, control tokens included, U+FFFD where it is no whole UTF-8."""
        if not 0 <= token_id < self.n_vocab:
            return ""
        data = self.token_bytes(token_id) or self.vocabulary.tokens[token_id].encode(
            "utf-8", "surrogateescape"
        )
        return data.decode("utf-8", "replace")

    def is_control(self, token_id: int) -> bool:
        """True for tokens that structure a conversation and have no text of their own."""
        return 0 <= token_id < self.n_vocab and self.vocabulary.types[token_id] == TokenType.CONTROL


def byte_value(text: str) -> int:
    """The byte that a byte token such as "<0x0A>" stands for, or -1."""
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        try:
            return int(text[3:5], 16)
        except ValueError:
            return -1
    return -1


def _check_text(text: str) -> None:
    try:
        n_bytes = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        raise RequestError("text", f"a lone surrogate at character {error.start}") from None
    if n_bytes > MAX_TEXT_BYTES:
        raise RequestError("text", f"{n_bytes} bytes of text; the limit is {MAX_TEXT_BYTES}")
