"""What a name of the store adds to requests: default options, and the system text of conversations that bring none."""

from __future__ import annotations

from typing import TypeVar

from daemon.services.served import Served
from daemon.store.manifest import Overrides
from quantd.v1 import generate_pb2 as pb

Message = TypeVar("Message", pb.GenerateRequest, pb.ChatRequest)

_SYSTEM_ROLES = ("system", "developer")


def with_defaults(request: Message, served: Served) -> Message:
    """The request with the model's defaults where it says nothing itself; the same object where there are none."""
    overrides = served.entry.overrides
    if overrides is None:
        return request
    merged: Message = type(request)()
    merged.CopyFrom(request)
    merged.options.CopyFrom(merge(overrides.defaults, request.options))
    if merged.options.max_tokens > served.model.context_tokens and not request.options.HasField("max_tokens"):
        merged.options.ClearField("max_tokens")  # the model's wish; what a session holds is the limit anyway
    if isinstance(merged, pb.ChatRequest) and (overrides.system or overrides.messages):
        _put_first(merged, overrides)
    return merged


def _put_first(request: pb.ChatRequest, overrides: Overrides) -> None:
    """The name's system text where the conversation brings none, then the name's own messages, then the conversation."""
    asked = list(request.messages)
    num_system = next(
        (index for index, message in enumerate(asked) if message.role not in _SYSTEM_ROLES), len(asked)
    )
    first = asked[:num_system]
    if overrides.system and not any(message.role in _SYSTEM_ROLES for message in asked):
        first = [pb.ChatMessage(role="system", content=overrides.system)]
    examples = [pb.ChatMessage(role=role, content=content) for role, content in overrides.messages]
    del request.messages[:]
    request.messages.extend([*first, *examples, *asked[num_system:]])


def merge(defaults: pb.GenerationOptions, options: pb.GenerationOptions) -> pb.GenerationOptions:
    """Options on top of defaults; stop texts are replaced as a whole, biases token by token."""
    merged = pb.GenerationOptions()
    merged.CopyFrom(defaults)
    if options.stop:
        del merged.stop[:]
    merged.MergeFrom(options)
    return merged
