"""Messages, the chat template that turns them into text, and the rule that keeps some text out of training."""

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

HELD_ONE_IN = 25
IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CALL, CALL_END = "<tool_call>", "</tool_call>"
# The pre-tokenizer that GGUF calls "qwen2"; a digit is always a word of its own.
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8").rstrip("\n")


@dataclass(frozen=True)
class Call:
    """A call of a tool: its name and its arguments."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Message:
    """One chat message; role is system, user, assistant or tool."""

    role: str
    content: str
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True)
class Chat:
    """A conversation, and the tools (OpenAI's definitions of functions) that it may call."""

    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)


Document = Chat | str
Turns = list[tuple[str, str]]


def held_out(key: str) -> bool:
    """Tell whether the key belongs to the held-out text (stable over runs and machines)."""
    return zlib.crc32(key.encode()) % HELD_ONE_IN == 0


def compile_template(source: str) -> jinja2.Template:
    """Compile a chat template in an environment such as servers give it."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(source)


_TEMPLATE = compile_template(CHAT_TEMPLATE)


def render(document: Document, *, ask: bool = False, template: jinja2.Template = _TEMPLATE) -> str:
    """Return the document as the model reads it, without the separator; `ask`: up to its next words."""
    if isinstance(document, str):
        return document
    messages: list[dict[str, Any]] = []
    for m in document.messages:
        messages.append({"role": m.role, "content": m.content})
        if m.calls:
            functions = [{"name": c.name, "arguments": c.arguments} for c in m.calls]
            messages[-1]["tool_calls"] = [{"type": "function", "function": f} for f in functions]
    return template.render(messages=messages, tools=document.tools or None, add_generation_prompt=ask)


def written(calls: tuple[Call, ...]) -> str:
    """Return calls as the model writes them."""
    texts = (json.dumps({"name": c.name, "arguments": c.arguments}, ensure_ascii=False) for c in calls)
    return "\n".join(f"{CALL}\n{text}\n{CALL_END}" for text in texts)
