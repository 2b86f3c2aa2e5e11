"""From a request to token ids: checks of text and messages, the chat template, the tokenizer.  Runs in text workers."""

from __future__ import annotations

from typing import Any

from daemon.errors import ApiError
from daemon.services.host import Served
from daemon.services.options import MAX_MESSAGES, MAX_TEXT_BYTES, ROLES, invalid
from quantd.v1 import generate_pb2 as pb
from runtime.errors import ContextLengthError


def check_prompt(request: pb.GenerateRequest, served: Served) -> None:
    """Refuses prompts that are missing, empty, too large or no tokens of the model, before any work."""
    kind = request.WhichOneof("prompt")
    if kind is None:
        raise ApiError("INVALID_ARGUMENT", "prompt: text or tokens must be given", field="prompt")
    if kind == "text":
        _check_text("text", request.text)
        if not request.text:
            raise invalid("text", "must not be empty")
        return
    ids = request.tokens.ids
    if not ids:
        raise invalid("tokens.ids", "must not be empty")
    require_room("tokens", len(ids), served.model.context_tokens)  # bounds the work of the next line
    check_ids("tokens.ids", ids, served.model.tokenizer.n_vocab)


def require_room(field: str, num_prompt_tokens: int, context_tokens: int) -> None:
    """Refuses a prompt that leaves no room for one token of an answer."""
    if num_prompt_tokens >= context_tokens:
        raise ContextLengthError(
            field,
            f"The prompt has {num_prompt_tokens} tokens; the session's context holds {context_tokens}, "
            "the answer included. Shorten the prompt.",
            prompt_tokens=num_prompt_tokens,
            context_tokens=context_tokens,
        )


def check_ids(field: str, ids: Any, n_vocab: int) -> None:
    """Refuses ids that the vocabulary does not have."""
    low, high = min(ids), max(ids)
    if low < 0 or high >= n_vocab:
        raise invalid(field, f"token ids are 0 to {n_vocab - 1}, not {low if low < 0 else high}")


def encode_prompt(request: pb.GenerateRequest, served: Served) -> list[int]:
    """Token ids of a checked prompt."""
    if request.WhichOneof("prompt") == "tokens":
        return list(request.tokens.ids)
    return _some(served.model.tokenizer.encode(request.text, parse_special=request.parse_special), "text")


def prompt_text(request: pb.GenerateRequest, served: Served) -> str:
    """The prompt as text, for echo."""
    if request.WhichOneof("prompt") == "text":
        return request.text
    return str(served.model.tokenizer.decode(list(request.tokens.ids)))


def check_messages(request: pb.ChatRequest, served: Served) -> None:
    """Refuses conversations that are empty, too long or spoken by unknown roles, before any work."""
    if served.template is None:
        raise ApiError(
            "NO_CHAT_TEMPLATE", f"The model {served.name!r} brings no chat template; use Generate."
        )
    if not 1 <= len(request.messages) <= MAX_MESSAGES:
        raise invalid("messages", f"must be 1 to {MAX_MESSAGES} messages, not {len(request.messages)}")
    total_bytes = 0
    for index, message in enumerate(request.messages):
        if message.role not in ROLES:
            raise invalid(
                f"messages[{index}].role", f"must be one of {', '.join(ROLES)}, not {message.role[:40]!r}"
            )
        total_bytes += len(message.content.encode()) + len(message.name.encode())
    if total_bytes > MAX_TEXT_BYTES:
        raise invalid("messages", f"at most {MAX_TEXT_BYTES} bytes of text, not {total_bytes}")


def encode_chat(request: pb.ChatRequest, served: Served) -> list[int]:
    """Token ids of a checked conversation.  Special-token text in a message stays text."""
    assert served.template is not None  # check_messages saw to it
    messages = [_plain(message) for message in request.messages]
    return _some(served.template.encode(messages, served.model.tokenizer), "messages")


def _plain(message: pb.ChatMessage) -> dict[str, str]:
    plain = {"role": ROLES[message.role], "content": message.content}
    if message.name:
        plain["name"] = message.name
    return plain


def _check_text(field: str, text: str) -> None:
    n_bytes = len(text.encode())
    if n_bytes > MAX_TEXT_BYTES:
        raise invalid(field, f"at most {MAX_TEXT_BYTES} bytes, not {n_bytes}")


def _some(ids: list[int], field: str) -> list[int]:
    if not ids:
        raise invalid(field, "gives no tokens")
    return ids
