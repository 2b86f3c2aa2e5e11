"""The tokenizer of a Hugging Face folder as GGUF's metadata: which kind it is, its special tokens, its chat templates."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quant.convert.config import read_json_if_there
from quant.gguf_header import KeyValue
from runtime.errors import ModelFormatError, UnsupportedModelError
from runtime.tokenizer.vocabulary import TokenType

MAX_TOKENS = 1 << 20
MAX_TEMPLATE_CHARS = 1 << 20

# tokenizer_config.json's name: GGUF's ("seperator" is how the format spells it)
_SPECIAL = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",
    "pad": "padding_token_id",
    "cls": "cls_token_id",
    "mask": "mask_token_id",
}


@dataclass
class Vocabulary:
    """Tokens in the order of their ids, and what belongs to them."""

    model: str  # tokenizer.ggml.model: "gpt2", "llama", "bert"
    pre: str
    tokens: list[str]
    types: list[int]  # TokenType of each token
    scores: list[float] | None = None
    merges: list[str] | None = None
    special_ids: dict[str, int] = field(default_factory=dict)  # GGUF's key: id
    flags: dict[str, bool] = field(default_factory=dict)  # GGUF's key: value
    templates: dict[str, str] = field(default_factory=dict)  # "" is the default one

    def metadata(self, n_vocab: int) -> list[KeyValue]:
        """Return tokenizer.*, padded to the rows of the embedding; ModelFormatError where it has fewer rows than tokens."""
        n_tokens = len(self.tokens)
        if n_tokens > n_vocab:
            raise ModelFormatError(
                "BAD_VOCABULARY",
                "tokenizer",
                0,
                f"the tokenizer has {n_tokens} tokens, the model's embedding only {n_vocab} rows",
            )
        padding = [f"[PAD{i}]" for i in range(n_tokens, n_vocab)]
        unused = [int(TokenType.UNUSED)] * len(padding)
        entries = [
            KeyValue("tokenizer.ggml.model", "string", self.model),
            KeyValue("tokenizer.ggml.pre", "string", self.pre),
            KeyValue("tokenizer.ggml.tokens", "array[string]", self.tokens + padding),
        ]
        if self.scores is not None:
            scores = self.scores + [-10000.0] * len(padding)
            entries.append(KeyValue("tokenizer.ggml.scores", "array[f32]", scores))
        entries.append(KeyValue("tokenizer.ggml.token_type", "array[i32]", self.types + unused))
        if self.merges is not None:
            entries.append(KeyValue("tokenizer.ggml.merges", "array[string]", self.merges))
        entries += [
            KeyValue(f"tokenizer.ggml.{key}", "u32", value) for key, value in self.special_ids.items()
        ]
        entries += [KeyValue(f"tokenizer.ggml.{key}", "bool", value) for key, value in self.flags.items()]
        named = [name for name in self.templates if name]
        if named:
            entries.append(KeyValue("tokenizer.chat_templates", "array[string]", named))
        for name, text in self.templates.items():
            key = f"tokenizer.chat_template.{name}" if name else "tokenizer.chat_template"
            entries.append(KeyValue(key, "string", text))
        return entries


class TokenizerFiles:
    """What the folder says of its tokenizer, read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = read_json_if_there(folder / "tokenizer.json")
        self.config = read_json_if_there(folder / "tokenizer_config.json")
        self.generation = read_json_if_there(folder / "generation_config.json")
        self.model_config = read_json_if_there(folder / "config.json")

    def added_tokens(self) -> list[tuple[int, str, bool]]:
        """Return (id, text, special) of every added token, by id."""
        found: dict[int, tuple[str, bool]] = {}
        for text, token_id in read_json_if_there(self.folder / "added_tokens.json").items():
            self._add(found, token_id, text, special=False)
        for token_id, entry in _entries(self.config.get("added_tokens_decoder")):
            self._add(found, token_id, entry.get("content"), special=bool(entry.get("special")))
        for entry in self.tokenizer.get("added_tokens") or []:
            if isinstance(entry, dict):
                self._add(found, entry.get("id"), entry.get("content"), special=bool(entry.get("special")))
        return [(token_id, text, special) for token_id, (text, special) in sorted(found.items())]

    def _add(self, found: dict[int, tuple[str, bool]], token_id: Any, text: Any, *, special: bool) -> None:
        if type(token_id) is not int or not 0 <= token_id < MAX_TOKENS or not isinstance(text, str):
            raise self.fault("an added token is malformed")
        found[token_id] = (text, special)

    def set_special(self, vocabulary: Vocabulary) -> None:
        """Fill in ids, flags and chat templates."""
        ids = {text: i for i, text in enumerate(vocabulary.tokens)}
        n_tokens = len(vocabulary.tokens)
        for name, key in _SPECIAL.items():
            token_id = self._special_id(name, ids)
            if token_id is not None and token_id < n_tokens:
                vocabulary.special_ids[key] = token_id
        self._set_ends(vocabulary)
        first, last = self._template_ends()
        if "bos_token_id" in vocabulary.special_ids:
            vocabulary.flags["add_bos_token"] = self._flag("add_bos_token", first)
        if "eos_token_id" in vocabulary.special_ids:
            vocabulary.flags["add_eos_token"] = self._flag("add_eos_token", last)
        vocabulary.templates = self.templates()

    def _special_id(self, name: str, ids: dict[str, int]) -> int | None:
        text = self.config.get(f"{name}_token")
        if isinstance(text, dict):
            text = text.get("content")
        if isinstance(text, str) and text in ids:
            return ids[text]
        for source in (self.generation, self.model_config):
            value = source.get(f"{name}_token_id")
            if isinstance(value, list):
                value = value[0] if value else None
            if type(value) is int and value >= 0:
                return value
        return None

    def _set_ends(self, vocabulary: Vocabulary) -> None:
        """Other tokens that end an answer, as generation_config.json lists them: the first two become eot and eom."""
        listed = self.generation.get("eos_token_id") or self.model_config.get("eos_token_id")
        eos_id = vocabulary.special_ids.get("eos_token_id")
        others = [
            one
            for one in (listed if isinstance(listed, list) else [listed])
            if type(one) is int and one != eos_id and 0 <= one < len(vocabulary.tokens)
        ]
        for key, token_id in zip(("eot_token_id", "eom_token_id"), others, strict=False):
            vocabulary.special_ids[key] = token_id

    def _flag(self, key: str, from_template: bool) -> bool:
        value = self.config.get(key)
        return value if type(value) is bool and not self.tokenizer.get("post_processor") else from_template

    def _template_ends(self) -> tuple[bool, bool]:
        """Say whether the post-processor puts a special token before a text, and one after it."""
        processor = self.tokenizer.get("post_processor") or {}
        first = last = False
        for step in processor.get("processors") or [processor]:
            if step.get("type") == "TemplateProcessing":
                single = step.get("single") or [{}]
                first, last = "SpecialToken" in single[0], "SpecialToken" in single[-1]
            elif step.get("type") in {"BertProcessing", "RobertaProcessing"}:
                first = last = True
        return first, last

    def templates(self) -> dict[str, str]:
        """Return the chat templates by name; "" is the default one."""
        found: dict[str, str] = {}
        value = self.config.get("chat_template") or read_json_if_there(
            self.folder / "chat_template.json"
        ).get("chat_template")
        if isinstance(value, str):
            found[""] = value
        elif isinstance(value, list):
            for entry in value:
                name, text = (
                    (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
                )
                if isinstance(name, str) and isinstance(text, str) and name.replace("_", "").isalnum():
                    found["" if name == "default" else name] = text
        own = self.folder / "chat_template.jinja"
        if own.exists():
            found[""] = own.read_text(encoding="utf-8", errors="replace")
        if any(len(text) > MAX_TEMPLATE_CHARS for text in found.values()):
            raise self.fault(f"a chat template is longer than {MAX_TEMPLATE_CHARS} characters")
        return found

    def fault(self, what: str) -> ModelFormatError:
        """A fault of the tokenizer's files."""
        return ModelFormatError("BAD_VOCABULARY", "tokenizer", 0, f"{self.folder}: tokenizer: {what}")

    def unsupported(self, what: str) -> UnsupportedModelError:
        """A sound tokenizer that is not converted."""
        return UnsupportedModelError(f"{self.folder}: tokenizer: {what}")


def looks_special(text: str) -> bool:
    """Say whether a token structures a conversation although it is not marked so."""
    return (text.startswith("<|") and text.endswith("|>")) or (
        text.startswith("<\uff5c") and text.endswith("\uff5c>")
    )


def _entries(value: Any) -> list[tuple[int, dict[str, Any]]]:
    entries = value.items() if isinstance(value, dict) else []
    return [(int(key), entry) for key, entry in entries if key.isdecimal() and isinstance(entry, dict)]
