"""Chat templates: a conversation becomes the prompt that the model was trained on.

Templates come with model files, so they are strangers' programs: daemon/text/sandbox.py bounds what they do, and here every
way in which one can fail becomes one error.  Text that clients write never becomes a control token: before
rendering, a mark is put into every control-token text of a message, and encoding leaves it out again.  Messages without
such text are rendered and encoded exactly as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jinja2

from daemon.errors import ApiError
from daemon.text.budget import BUDGET, Budget, TemplateLimitError, bytes_of
from daemon.text.chat_form import Call, Turn, read_form
from daemon.text.sandbox import TemplateEnvironment, TemplateRefusalError
from runtime.gguf import ModelFile
from runtime.tokenizer import MAX_TEXT_BYTES, Tokenizer

MAX_SOURCE_CHARS = 128 << 10
MAX_REFUSAL_CHARS = 400
_MIN_SIZE = 16 << 20  # bytes that any render may make on its way
_SIZE_PER_BYTE = 20  # published templates make up to 10 bytes for each that they are given
_CPU_S = 0.5  # the slowest published template takes 0.1 s for 4000 messages of 1000 characters
_CPU_S_PER_CHAR = 1e-7
# Noncharacters: no text has them for a reason.
_MARKS = tuple(chr(code) for code in range(0xFDD0, 0xFDF0))

_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt, as text and as token ids."""

    text: str
    ids: list[int]


class ChatTemplate:
    """One model's chat template, compiled; safe to use from several threads.

    Raises ApiError TEMPLATE_ERROR if `source` cannot be compiled.
    """

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        self.source = source
        self.is_fallback = False
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        if len(source) > MAX_SOURCE_CHARS:
            raise ApiError(
                "TEMPLATE_ERROR", f"The chat template is longer than {MAX_SOURCE_CHARS} characters."
            )
        try:
            source.encode()
            self._template = TemplateEnvironment().compile_source(source)
        except TemplateLimitError as error:
            raise ApiError("TEMPLATE_ERROR", f"The chat template does not compile: {error}.") from None
        except jinja2.TemplateSyntaxError as error:
            message = (
                f"The chat template does not compile: line {error.lineno}: {(error.message or '')[:200]}."
            )
            raise ApiError("TEMPLATE_ERROR", message) from None
        except Exception as error:  # noqa: BLE001 - RecursionError, IndentationError, UnicodeError, ...
            raise ApiError(
                "TEMPLATE_ERROR", f"The chat template does not compile: {type(error).__name__}."
            ) from None
        self.form = read_form(source, takes_system=self._takes_system())

    @classmethod
    def of_model(cls, file: ModelFile, tokenizer: Tokenizer) -> ChatTemplate | None:
        """The template that a model file brings, None if it brings none.

        Raises ApiError TEMPLATE_ERROR for one that cannot be used: the model then serves without chat.
        """
        key = "tokenizer.chat_template"
        if key not in file:
            return None
        if file.kind(key) != "string":
            raise ApiError("TEMPLATE_ERROR", f"{key} is of type {file.kind(key)}; it must be a string.")
        return cls(
            file.string(key),
            bos_token="" if tokenizer.bos_id is None else tokenizer.token_text(tokenizer.bos_id),
            eos_token="" if tokenizer.eos_id is None else tokenizer.token_text(tokenizer.eos_id),
        )

    @classmethod
    def fallback(cls) -> ChatTemplate:
        """ChatML, for a model that brings no template."""
        template = cls(_CHATML)
        template.is_fallback = True
        return template

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt of a conversation; each message has "role" and "content", and what else the template may use.

        `variables` are further ones for the template, such as "tools".  Raises ApiError TEMPLATE_ERROR if the template
        refuses the conversation, fails or does too much.
        """
        variables = {"tools": None, "documents": None, **(variables or {})}
        size = sum(bytes_of(text) for text in _texts([*messages, variables]))
        token = BUDGET.set(
            Budget(size=_MIN_SIZE + _SIZE_PER_BYTE * size, cpu_s=_CPU_S + _CPU_S_PER_CHAR * size)
        )
        try:
            text = self._template.render(
                **{
                    **variables,
                    "messages": [dict(message) for message in messages],
                    "add_generation_prompt": add_generation_prompt,
                    **self._tokens,
                }
            )
        except TemplateRefusalError as error:
            message = f"The model's chat template refuses this conversation: {str(error)[:MAX_REFUSAL_CHARS]}"
            raise ApiError("TEMPLATE_ERROR", message, field="messages") from None
        except TemplateLimitError as error:
            raise ApiError("TEMPLATE_ERROR", f"The model's chat template was stopped: {error}.") from None
        except Exception as error:  # noqa: BLE001 - a stranger's program may raise anything
            message = f"The model's chat template failed: {type(error).__name__}."
            raise ApiError("TEMPLATE_ERROR", message, field="messages") from None
        finally:
            BUDGET.reset(token)
        if len(text) > MAX_TEXT_BYTES:
            raise ApiError(
                "INVALID_ARGUMENT",
                f"The conversation is longer than {MAX_TEXT_BYTES} bytes.",
                field="messages",
            )
        return text

    def encode(
        self, messages: Sequence[Message], tokenizer: Tokenizer, *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Token ids of plain messages; see `encode_chat`."""
        turns = [Turn(message["role"], message["content"], message.get("name", "")) for message in messages]
        return self.encode_chat(turns, tokenizer, add_generation_prompt=add_generation_prompt).ids

    def encode_chat(
        self,
        turns: Sequence[Turn],
        tokenizer: Tokenizer,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
    ) -> Rendered:
        """The prompt of a conversation with its tools.

        The template's control tokens are tokens, those that messages and tools spell out are text.  Begins with the
        model's beginning-of-text token exactly once if the model wants one.  `continue_final`: the last message is
        not ended, the answer goes on with it.
        """
        mark = _unused_mark([self.source, *_texts([asdict(turn) for turn in turns]), *_texts(list(tools))])

        def plain(text: str) -> str:
            return tokenizer.break_special(text, mark)

        broken = [_broken_turn(turn, plain) for turn in turns]
        messages, tool_variables = self.form.arrange(broken, [_broken(tool, plain) for tool in tools])
        prompt = self.render(
            messages,
            add_generation_prompt=add_generation_prompt and not continue_final,
            variables={**(variables or {}), **tool_variables},
        )
        if continue_final and broken:
            last = broken[-1].content.strip()
            at = prompt.rfind(last)
            if last and at >= 0:
                prompt = prompt[: at + len(last)]
        used = mark in prompt
        ids = tokenizer.encode(prompt, add_special=False, parse_special=True, drop=mark if used else "")
        if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
            ids.insert(0, tokenizer.bos_id)
        return Rendered(prompt.replace(mark, "") if used else prompt, ids)

    def _takes_system(self) -> bool:
        """False where the template refuses a system message and takes the conversation without it."""
        if "raise_exception" not in self.source:
            return True
        user = {"role": "user", "content": "a"}
        try:
            self.render([{"role": "system", "content": "a"}, user])
        except ApiError:
            try:
                self.render([user])
            except ApiError:
                return True
            return False
        return True


def _unused_mark(texts: Sequence[str]) -> str:
    for mark in _MARKS:
        if not any(mark in text for text in texts):
            return mark
    raise ApiError("INVALID_ARGUMENT", "The messages use every Unicode noncharacter.", field="messages")


def _texts(value: Any) -> Iterator[str]:
    """Every text in nested lists and objects, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _broken(value: Any, plain: Callable[[str], str]) -> Any:
    """`value` with every text made plain."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, Mapping):
        return {plain(str(key)): _broken(item, plain) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_broken(item, plain) for item in value]
    return value


def _broken_turn(turn: Turn, plain: Callable[[str], str]) -> Turn:
    calls = tuple(
        Call(plain(call.id), plain(call.name), _broken(call.arguments, plain)) for call in turn.calls
    )
    return Turn(
        turn.role, plain(turn.content), plain(turn.name), calls, plain(turn.call_id), plain(turn.reasoning)
    )
