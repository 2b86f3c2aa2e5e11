"""Chat templates: a conversation becomes the prompt that the model was trained on.

Templates come with model files, so they are strangers' programs: daemon/text/sandbox.py bounds what they do, and here every
way in which one can fail becomes one error.  Text that clients write never becomes a control token: before
rendering, a mark is put into every control-token text of a message, and encoding leaves it out again.  Messages without
such text are rendered and encoded exactly as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from daemon.errors import ApiError
from daemon.text.budget import BUDGET, Budget, TemplateLimitError
from daemon.text.sandbox import TemplateEnvironment, TemplateRefusalError
from runtime.gguf import ModelFile
from runtime.tokenizer import MAX_TEXT_BYTES, Tokenizer

MAX_SOURCE_CHARS = 256 << 10
MAX_REFUSAL_CHARS = 400
_MIN_SIZE = 16 << 20  # characters that any render may make on its way
_SIZE_PER_CHAR = 32
_CPU_S = 0.5  # the slowest published template takes 0.1 s for 4000 messages of 1000 characters
_CPU_S_PER_CHAR = 1e-7
# Noncharacters: no text has them for a reason.
_MARKS = tuple(chr(code) for code in range(0xFDD0, 0xFDF0))

Message = Mapping[str, str]


class ChatTemplate:
    """One model's chat template, compiled; safe to use from several threads.

    Raises ApiError TEMPLATE_ERROR if `source` cannot be compiled.
    """

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        self.source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        if len(source) > MAX_SOURCE_CHARS:
            raise ApiError(
                "TEMPLATE_ERROR", f"The chat template is longer than {MAX_SOURCE_CHARS} characters."
            )
        try:
            source.encode()
            self._template = TemplateEnvironment().compile_source(source)
        except jinja2.TemplateSyntaxError as error:
            message = (
                f"The chat template does not compile: line {error.lineno}: {(error.message or '')[:200]}."
            )
            raise ApiError("TEMPLATE_ERROR", message) from None
        except Exception as error:  # noqa: BLE001 - RecursionError, IndentationError, UnicodeError, ...
            raise ApiError(
                "TEMPLATE_ERROR", f"The chat template does not compile: {type(error).__name__}."
            ) from None

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

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation; each message has "role" and "content", and "name" where one was given.

        Raises ApiError TEMPLATE_ERROR if the template refuses the conversation, fails or does too much.
        """
        size = sum(len(value) for message in messages for value in message.values())
        token = BUDGET.set(
            Budget(size=_MIN_SIZE + _SIZE_PER_CHAR * size, cpu_s=_CPU_S + _CPU_S_PER_CHAR * size)
        )
        try:
            text = self._template.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._tokens,
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
        """Token ids of the prompt: the template's control tokens are tokens, those that messages spell out are text.

        Begins with the model's beginning-of-text token exactly once if the model wants one.
        """
        mark = self._unused_mark(messages)
        broken: list[dict[str, str]] = [
            {
                key: value if key == "role" else tokenizer.break_special(value, mark)
                for key, value in message.items()
            }
            for message in messages
        ]
        used = any(mark in value for message in broken for value in message.values())
        prompt = self.render(broken, add_generation_prompt=add_generation_prompt)
        ids = tokenizer.encode(prompt, add_special=False, parse_special=True, drop=mark if used else "")
        if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
            ids.insert(0, tokenizer.bos_id)
        return ids

    def _unused_mark(self, messages: Sequence[Message]) -> str:
        texts: list[Any] = [self.source, *(value for message in messages for value in message.values())]
        for mark in _MARKS:
            if not any(mark in text for text in texts):
                return mark
        raise ApiError("INVALID_ARGUMENT", "The messages use every Unicode noncharacter.", field="messages")
