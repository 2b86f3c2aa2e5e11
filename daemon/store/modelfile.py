'''Modelfiles: the text that says what a model is made of, in the form that Ollama's users know.

    # a comment
    FROM ./model.gguf
    PARAMETER temperature 0.7
    SYSTEM """You are a pirate.
    Answer in one line."""

A value ends with its line, or, where it begins with `"""` or `"`, with the line that ends in the same quotes.
'''

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from daemon.errors import ApiError
from daemon.store.manifest import MAX_LICENSES, MAX_MESSAGES
from daemon.store.parameters import number_text, parameter_values, set_parameter
from quantd.v1 import generate_pb2 as pb
from quantd.v1 import model_service_pb2 as rpc

MAX_MODELFILE_BYTES = 4 << 20
MESSAGE_ROLES = ("system", "user", "assistant")
INSTRUCTIONS = ("FROM", "PARAMETER", "TEMPLATE", "SYSTEM", "ADAPTER", "LICENSE", "MESSAGE")
# What newer files say to Ollama alone, and to no effect here: which version reads them, how its own code renders and parses.
_WITHOUT_EFFECT = ("REQUIRES", "RENDERER", "PARSER")


@dataclass(frozen=True, slots=True)
class Said:
    """A value, and the line on which it begins."""

    value: str
    line: int


@dataclass(slots=True)
class Modelfile:
    """What a Modelfile says.  None and empty: it says nothing of that."""

    source: Said  # FROM: a name, or the path of a GGUF file or Hugging Face folder
    parameters: pb.GenerationOptions = field(default_factory=pb.GenerationOptions)
    template: Said | None = None
    system: Said | None = None
    adapters: list[Said] = field(default_factory=list)
    licenses: list[str] = field(default_factory=list)
    messages: list[tuple[str, str]] = field(default_factory=list)  # (role, content)
    warnings: list[str] = field(default_factory=list)  # what was taken without effect, by line


class ModelfileError(ApiError):
    """INVALID_ARGUMENT that names the line."""

    def __init__(self, where: str, line: int, message: str) -> None:
        super().__init__("INVALID_ARGUMENT", f"{where}, line {line}: {message}", field="modelfile")


def parse_modelfile(text: str, where: str = "Modelfile") -> Modelfile:
    """Reads a Modelfile; ModelfileError names `where` and the line of the first thing that is wrong."""
    if len(text.encode()) > MAX_MODELFILE_BYTES:
        raise ModelfileError(where, 1, f"a Modelfile has at most {MAX_MODELFILE_BYTES} bytes")
    found = Modelfile(Said("", 0))
    for word, said in _instructions(text, where):
        name = word.upper()
        if name in _WITHOUT_EFFECT:
            found.warnings.append(f"line {said.line}: {name} has no effect here")
            continue
        if name not in INSTRUCTIONS:
            raise ModelfileError(
                where,
                said.line,
                f"{word[:40]!r} is no instruction; there are {', '.join(INSTRUCTIONS)}",
            )
        try:
            _take(found, name, said)
        except ValueError as failure:
            raise ModelfileError(where, said.line, f"{name} {failure}") from None
    if not found.source.line:
        last = text.count("\n") + 1
        raise ModelfileError(where, last, "the file ends without FROM, which names the model to start from")
    return found


def _take(found: Modelfile, name: str, said: Said) -> None:
    """One instruction; ValueError in words that follow its name."""
    if name in ("PARAMETER", "MESSAGE"):
        _take_pair(found, name, said)
        return
    value = _unquoted(said.value)
    if not value and name not in ("SYSTEM", "TEMPLATE"):
        raise ValueError("says nothing")
    if name == "FROM":
        if found.source.line:
            raise ValueError(f"stands a second time (first on line {found.source.line})")
        found.source = Said(value, said.line)
    elif name == "TEMPLATE":
        found.template = Said(value, said.line)
    elif name == "SYSTEM":
        found.system = Said(value, said.line)
    elif name == "ADAPTER":
        found.adapters.append(Said(value, said.line))
    else:
        if len(found.licenses) >= MAX_LICENSES:
            raise ValueError(f"stands more than {MAX_LICENSES} times")
        found.licenses.append(value)


def _take_pair(found: Modelfile, name: str, said: Said) -> None:
    first, _, rest = said.value.partition(" ")
    value = _unquoted(rest.strip())
    if not first or not rest.strip():
        what = "needs a name and a value" if name == "PARAMETER" else "needs a role and a text"
        raise ValueError(f"{what}, such as {'temperature 0.7' if name == 'PARAMETER' else 'user Hello'}")
    if name == "MESSAGE":
        if first.lower() not in MESSAGE_ROLES:
            raise ValueError(f"of {first[:40]!r}: the role must be one of {', '.join(MESSAGE_ROLES)}")
        if len(found.messages) >= MAX_MESSAGES:
            raise ValueError(f"stands more than {MAX_MESSAGES} times")
        found.messages.append((first.lower(), value))
        return
    try:
        if not set_parameter(found.parameters, first.lower(), value):
            found.warnings.append(f"line {said.line}: PARAMETER {first} has no effect here")
    except ValueError as failure:
        raise ValueError(f"{first[:40]} {failure}") from None


def _instructions(text: str, where: str) -> Iterator[tuple[str, Said]]:
    """Each instruction's word, and its value with its quotes."""
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    number = 0
    while number < len(lines):
        line = lines[number].strip()
        begin = number = number + 1
        if not line or line.startswith("#"):
            continue
        word, *rest = line.split(None, 1)
        value = rest[0] if rest else ""
        if word.upper() in ("PARAMETER", "MESSAGE"):
            name, *rest = value.split(None, 1)[:2] or [""]
            quoted = rest[0] if rest else ""
        else:
            name, quoted = "", value
        collected = quoted
        while _is_open(collected):
            if number >= len(lines):
                quotes = '"""' if quoted.startswith('"""') else '"'
                raise ModelfileError(
                    where,
                    begin,
                    f"{word.upper()} begins with {quotes} and is never closed; end its last line with {quotes}",
                )
            collected += "\n" + lines[number]
            number += 1
            if collected.rstrip() != collected and not _is_open(collected.rstrip()):
                collected = collected.rstrip()
        yield word, Said(f"{name} {collected}" if name else collected, begin)


def _is_open(value: str) -> bool:
    """True: it began with quotes that have not come again at the end of a line."""
    if value.startswith('"""'):
        return len(value) < 6 or not value.endswith('"""')
    return value.startswith('"') and (len(value) < 2 or not value.endswith('"'))


def _unquoted(value: str) -> str:
    for quotes in ('"""', '"'):
        if value.startswith(quotes):
            return value[len(quotes) : -len(quotes)]
    return value


def modelfile_text(shown: rpc.ShowModelResponse) -> str:
    """A Modelfile that makes the model again from itself."""
    lines = [f"FROM {shown.model.name}"]
    if shown.go_template:
        lines.append(f'TEMPLATE """{shown.go_template}"""')
    elif shown.template_is_override:
        lines.append(f'TEMPLATE """{shown.template}"""')
    if shown.system:
        lines.append(f'SYSTEM """{shown.system}"""')
    for name, value in parameter_values(shown.parameters):
        lines.append(
            f'PARAMETER {name} "{value}"'
            if isinstance(value, str)
            else f"PARAMETER {name} {number_text(value)}"
        )
    lines += [f'MESSAGE {one.role} """{one.content}"""' for one in shown.messages]
    lines += [f'LICENSE """{text}"""' for text in shown.licenses]
    return "\n".join(lines) + "\n"
