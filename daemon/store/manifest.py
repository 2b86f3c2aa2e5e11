"""What a name stands for: its blobs and its defaults, as a small JSON file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import json_format

from daemon.errors import ApiError
from quantd.v1 import generate_pb2 as pb

SCHEMA = 1
MAX_MANIFEST_BYTES = 256 << 10
MAX_WEIGHTS = 1024
MAX_LICENSES = 16
MAX_MESSAGES = 64
_HEX = re.compile(r"[0-9a-f]{64}", re.ASCII)
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._ ()+,@=-]{0,199}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob and its size; `file` is the name of a weights file where it matters (split models)."""

    digest: str  # 64 hexadecimal digits
    size_bytes: int
    file: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything that a name stands for.

    `template` is a Jinja template of ours or of Hugging Face's kind; `go_template` is what an Ollama registry gave, kept and
    shown but not rendered.  `messages` is a JSON array of {"role", "content"}, which go before every conversation.
    `parameters` holds only what the model sets.
    """

    weights: tuple[Blob, ...]
    template: Blob | None = None
    go_template: Blob | None = None
    system: Blob | None = None
    messages: Blob | None = None
    licenses: tuple[Blob, ...] = ()
    parameters_json: str = "{}"  # quantd.v1.GenerationOptions
    source: str = ""  # where it came from, in words
    created_unix_ms: int = 0

    @property
    def parameters(self) -> pb.GenerationOptions:
        """The defaults of requests."""
        return json_format.Parse(self.parameters_json, pb.GenerationOptions(), ignore_unknown_fields=True)

    @property
    def size_bytes(self) -> int:
        """Of all its blobs."""
        return sum(blob.size_bytes for blob in self.blobs())

    @property
    def digest(self) -> str:
        """The digest of the (first file of the) weights."""
        return self.weights[0].digest

    def blobs(self) -> list[Blob]:
        """Every blob, weights first."""
        texts = [self.template, self.go_template, self.system, self.messages]
        return [*self.weights, *(blob for blob in texts if blob is not None), *self.licenses]

    def to_json(self) -> bytes:
        """The file's content; INVALID_ARGUMENT where it would be too large."""
        facts: dict[str, Any] = {
            "schema": SCHEMA,
            "weights": [_blob_json(blob) for blob in self.weights],
            "licenses": [_blob_json(blob) for blob in self.licenses],
            "parameters": json.loads(self.parameters_json),
            "source": self.source,
            "created_unix_ms": self.created_unix_ms,
        }
        for key in ("template", "go_template", "system", "messages"):
            blob = getattr(self, key)
            if blob is not None:
                facts[key] = _blob_json(blob)
        data = json.dumps(facts, indent=1).encode()
        if len(data) > MAX_MANIFEST_BYTES:
            raise ApiError(
                "INVALID_ARGUMENT", f"The description of a model is at most {MAX_MANIFEST_BYTES} bytes."
            )
        return data

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Reads a file that may be damaged; ValueError says what is wrong with it."""
        if len(data) > MAX_MANIFEST_BYTES:
            raise ValueError("is too large")
        try:
            facts = json.loads(data)
            if not isinstance(facts, dict) or facts.get("schema") != SCHEMA:
                raise ValueError("is of another version")
            weights = tuple(_blob(one) for one in facts["weights"])
            if not 1 <= len(weights) <= MAX_WEIGHTS:
                raise ValueError("names no weights")
            parameters_json = json.dumps(facts.get("parameters", {}))
            json_format.Parse(parameters_json, pb.GenerationOptions(), ignore_unknown_fields=True)
            return cls(
                weights=weights,
                template=_optional(facts, "template"),
                go_template=_optional(facts, "go_template"),
                system=_optional(facts, "system"),
                messages=_optional(facts, "messages"),
                licenses=tuple(_blob(one) for one in facts.get("licenses", []))[:MAX_LICENSES],
                parameters_json=parameters_json,
                source=str(facts.get("source", "")),
                created_unix_ms=int(facts.get("created_unix_ms", 0)),
            )
        except (KeyError, TypeError, AttributeError, RecursionError, json_format.ParseError) as failure:
            raise ValueError("is damaged") from failure


def messages_json(messages: Iterable[tuple[str, str]]) -> str:
    """Messages (role, content) in the form of their blob."""
    return json.dumps([{"role": role, "content": content} for role, content in messages], ensure_ascii=False)


def read_messages(text: str) -> tuple[tuple[str, str], ...]:
    """The messages of a blob, ours or a registry's; what is no message is left out."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    return tuple(
        (one["role"], one["content"])
        for one in (found if isinstance(found, list) else [])[:MAX_MESSAGES]
        if isinstance(one, dict)
        and one.get("role") in ("system", "user", "assistant")
        and isinstance(one.get("content"), str)
    )


def parameters_json(options: pb.GenerationOptions) -> str:
    """Defaults in the form of the manifest."""
    return json.dumps(json_format.MessageToDict(options, preserving_proto_field_name=True))


@dataclass(frozen=True, slots=True)
class Overrides:
    """What a name adds to its weights, read and ready for use."""

    manifest: Manifest
    template: str | None = None
    system: str = ""
    messages: tuple[tuple[str, str], ...] = ()  # (role, content)
    defaults: pb.GenerationOptions = field(default_factory=pb.GenerationOptions, compare=False)


def _blob_json(blob: Blob) -> dict[str, Any]:
    facts: dict[str, Any] = {"digest": f"sha256:{blob.digest}", "size_bytes": blob.size_bytes}
    return {**facts, "file": blob.file} if blob.file else facts


def _blob(facts: Any) -> Blob:
    digest = str(facts["digest"]).removeprefix("sha256:")
    size_bytes, file = facts["size_bytes"], facts.get("file", "")
    if not _HEX.fullmatch(digest) or not isinstance(size_bytes, int) or size_bytes < 0:
        raise ValueError("names a blob that cannot be")
    if file and not is_plain_file(file):
        raise ValueError("names a file that is no plain name")
    return Blob(digest, size_bytes, file)


def _optional(facts: dict[str, Any], key: str) -> Blob | None:
    return _blob(facts[key]) if facts.get(key) is not None else None


def is_plain_file(name: object) -> bool:
    """Whether a string can be the name of a weights file: no folders, nothing hidden."""
    return isinstance(name, str) and _FILE.fullmatch(name) is not None
