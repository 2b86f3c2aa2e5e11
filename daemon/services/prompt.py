"""From a request to token ids: checks of text and messages, the chat template, the tokenizer.  Runs in text workers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from daemon.errors import ApiError
from daemon.services.constraint import Constraints, Plan, call_grammar, read_constraint, with_calls
from daemon.services.host import Served
from daemon.services.options import MAX_MESSAGES, MAX_TEXT_BYTES, ROLES, invalid
from daemon.services.tools import NAME, Tools, read_tools
from daemon.text.calls import CallSyntax
from daemon.text.chat_form import Call, Turn, parse_arguments
from daemon.text.parts import PartSplitter, ThinkTags
from quantd.v1 import generate_pb2 as pb
from runtime.errors import ContextLengthError
from runtime.grammar import GrammarKind, GrammarSpec

EFFORTS = ("", "none", "minimal", "low", "medium", "high", "xhigh", "max")
MAX_ID_BYTES = 256
MAX_CALLS = 128  # in one message
# What the template gets from us and no caller may set.
_OWN_VARIABLES = frozenset(
    ("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "xml_tools")
)
_VARIABLE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that is ready for the engine, and how its answer is to be held and read."""

    ids: list[int]
    text: str
    field: str  # of the request, for errors about its length
    plan: Plan | None = None
    think: ThinkTags | None = None
    begins_thinking: bool = False
    calls: CallSyntax | None = None
    tools: frozenset[str] = frozenset()
    short_ids: bool = False
    markers: Mapping[int, bytes] | None = None  # control tokens that show in the answer's text

    def splitter(self) -> PartSplitter | None:
        """What takes the answer apart; None: it is only text."""
        if self.think is None and self.calls is None:
            return None
        return PartSplitter(
            think=self.think, begins_thinking=self.begins_thinking, calls=self.calls, tools=self.tools
        )


def check_prompt(request: pb.GenerateRequest, served: Served) -> None:
    """Refuses prompts that are missing, empty, too large or no tokens of the model, before any work."""
    kind = request.WhichOneof("prompt")
    if kind is None:
        raise ApiError("INVALID_ARGUMENT", "prompt: text or tokens must be given", field="prompt")
    if request.HasField("suffix"):
        _check_text("suffix", request.suffix)
        if kind != "text":
            raise invalid("suffix", "needs a prompt of text, not of tokens")
        fim_ids(served)
    if kind == "text":
        _check_text("text", request.text)
        if not request.text and not request.HasField("suffix"):
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


# Names of the three tokens that frame the text around a gap, by family of models: before, after, in between.
_FIM_TOKENS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),
    ("<PRE>", "<SUF>", "<MID>"),
    ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),
    ("[PREFIX]", "[SUFFIX]", "[MIDDLE]"),
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
    ("<|prefix|>", "<|suffix|>", "<|middle|>"),
)


def fim_ids(served: Served) -> tuple[int, int, int]:
    """The model's tokens for filling in a gap: before, after, in between; INVALID_ARGUMENT where it has none."""
    vocabulary = served.model.tokenizer.vocabulary
    named: tuple[int, int, int] | None = vocabulary.fim_ids
    if named is not None:
        return named
    tokens: Sequence[str] = vocabulary.tokens
    for names in _FIM_TOKENS:
        if names[0] in tokens and names[1] in tokens and names[2] in tokens:
            return tokens.index(names[0]), tokens.index(names[1]), tokens.index(names[2])
    raise invalid("suffix", f"the model {served.name!r} has no tokens for filling in a gap")


def prepare_prompt(request: pb.GenerateRequest, served: Served, constraints: Constraints) -> Prompt:
    """A checked prompt."""
    del constraints
    spec = read_constraint(request.options)
    plan = None if spec is None else Plan(spec)
    kind = request.WhichOneof("prompt") or "prompt"
    return Prompt(encode_prompt(request, served), "", kind, plan)


def encode_prompt(request: pb.GenerateRequest, served: Served) -> list[int]:
    """Token ids of a checked prompt."""
    if request.WhichOneof("prompt") == "tokens":
        return list(request.tokens.ids)
    tokenizer = served.model.tokenizer
    if request.HasField("suffix"):
        before, after, middle = fim_ids(served)
        begin = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
        prefix = tokenizer.encode_continuation(request.text)
        return [*begin, before, *prefix, after, *tokenizer.encode_continuation(request.suffix), middle]
    return _some(tokenizer.encode(request.text, parse_special=request.parse_special), "text")


def prompt_text(request: pb.GenerateRequest, served: Served) -> str:
    """The prompt as text, for echo."""
    if request.WhichOneof("prompt") == "text":
        return request.text
    return str(served.model.tokenizer.decode(list(request.tokens.ids)))


def check_messages(request: pb.ChatRequest, served: Served) -> None:
    """Refuses conversations that are empty, too long or spoken by unknown roles, before any work."""
    if served.template is None:
        raise ApiError(
            "NO_CHAT_TEMPLATE",
            f"The model {served.name!r} has no chat template that can be used; use Generate.",
        )
    if not 1 <= len(request.messages) <= MAX_MESSAGES:
        raise invalid("messages", f"must be 1 to {MAX_MESSAGES} messages, not {len(request.messages)}")
    total_bytes = 0
    for index, message in enumerate(request.messages):
        where = f"messages[{index}]"
        if message.role not in ROLES:
            raise invalid(f"{where}.role", f"must be one of {', '.join(ROLES)}, not {message.role[:40]!r}")
        total_bytes += message.ByteSize()
        _check_calls(message, where)
    if total_bytes > MAX_TEXT_BYTES:
        raise invalid("messages", f"at most {MAX_TEXT_BYTES} bytes of text, not {total_bytes}")
    if request.continue_final_message and ROLES[request.messages[-1].role] != "assistant":
        raise invalid("continue_final_message", "the last message must be the assistant's")
    if request.reasoning_effort not in EFFORTS:
        raise invalid(
            "reasoning_effort",
            f"must be one of {', '.join(EFFORTS[1:])}, not {request.reasoning_effort[:40]!r}",
        )


def _check_calls(message: pb.ChatMessage, where: str) -> None:
    if message.tool_calls and message.role != "assistant":
        raise invalid(f"{where}.tool_calls", "only an assistant message can have them")
    if len(message.tool_calls) > MAX_CALLS:
        raise invalid(f"{where}.tool_calls", f"at most {MAX_CALLS}")
    for index, call in enumerate(message.tool_calls):
        if not NAME.fullmatch(call.name):
            raise invalid(f"{where}.tool_calls[{index}].name", "must be 1 to 64 letters, digits, _, - or .")
    for field, call_id in (
        ("tool_call_id", message.tool_call_id),
        *((f"tool_calls[{index}].id", call.id) for index, call in enumerate(message.tool_calls)),
    ):
        if len(call_id.encode()) > MAX_ID_BYTES:
            raise invalid(f"{where}.{field}", f"at most {MAX_ID_BYTES} bytes")


def prepare_chat(request: pb.ChatRequest, served: Served, constraints: Constraints) -> Prompt:
    """A checked conversation.  Special-token text in a message stays text."""
    template = served.template
    assert template is not None  # check_messages saw to it
    form = template.form
    spec = read_constraint(request.options)
    tools = read_tools(request)
    turns = [_turn(message, f"messages[{index}]") for index, message in enumerate(request.messages)]
    rendered = template.encode_chat(
        turns,
        served.model.tokenizer,
        tools=tools.shown,
        variables={**form.effort_variables(request.reasoning_effort), **_variables(request)},
        continue_final=request.continue_final_message,
    )
    think = form.think
    begins_thinking = think is not None and rendered.text.rstrip().endswith(think.open)
    calls = form.calls if tools.callable else None
    texts = constraints.texts(served.model) if calls or think else None
    plan = _plan(spec, tools, calls, texts, Plan(think=think, begins_thinking=begins_thinking))
    return Prompt(
        _some(rendered.ids, "messages"),
        rendered.text,
        "messages",
        plan,
        think,
        begins_thinking,
        calls,
        tools.names,
        form.short_ids,
        texts.marker_bytes(calls, think) if texts else None,
    )


def _plan(
    spec: GrammarSpec | None, tools: Tools, calls: CallSyntax | None, texts: Any, thoughts: Plan
) -> Plan | None:
    """How an answer with these tools is held: from its start, from the first mark of a call on, or not at all."""
    think, begins_thinking = thoughts.think, thoughts.begins_thinking
    if calls is None:
        return None if spec is None else Plan(spec, think=think, begins_thinking=begins_thinking)
    controls = texts.controls(
        *calls.begins, calls.arguments, calls.closing.strip(), "[TOOL_CALLS]", "</tool_call>"
    )

    def grammar(after: str = "") -> str:
        return call_grammar(calls, tools.callable, controls, parallel=tools.parallel, after=after)

    if tools.required:
        start = GrammarSpec(GrammarKind.LARK, grammar())
        return Plan(start, think=think, begins_thinking=begins_thinking, field="tools")
    if spec is not None:
        start = with_calls(spec, grammar())
        return Plan(start, think=think, begins_thinking=begins_thinking)
    marked = {mark: GrammarSpec(GrammarKind.LARK, grammar(mark)) for mark in calls.begins}
    return Plan(None, marked, calls.at_start, think, begins_thinking, "tools")


def _variables(request: pb.ChatRequest) -> dict[str, Any]:
    """Further variables that the caller gives to the template."""
    text, where = request.template_arguments, "template_arguments"
    if not text:
        return {}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise invalid(where, "must be a JSON object as text")
    for name in values:
        if name in _OWN_VARIABLES or not _VARIABLE.fullmatch(name):
            raise invalid(where, f"{name[:64]!r} cannot be set")
    return values


def _turn(message: pb.ChatMessage, where: str) -> Turn:
    calls = tuple(
        Call(
            call.id or f"call_{index}",
            call.name,
            parse_arguments(call.arguments, f"{where}.tool_calls[{index}].arguments"),
        )
        for index, call in enumerate(message.tool_calls)
    )
    return Turn(
        ROLES[message.role], message.content, message.name, calls, message.tool_call_id, message.reasoning
    )


def _check_text(field: str, text: str) -> None:
    n_bytes = len(text.encode())
    if n_bytes > MAX_TEXT_BYTES:
        raise invalid(field, f"at most {MAX_TEXT_BYTES} bytes, not {n_bytes}")


def _some(ids: list[int], field: str) -> list[int]:
    if not ids:
        raise invalid(field, "gives no tokens")
    return ids
