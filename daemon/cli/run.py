"""`quantd run`: one answer, or a chat at the terminal, without a server."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from daemon.services import Services
    from quantd.v1 import generate_pb2 as pb

HELP = """\
Write a message and press Enter.
  /reset   forget the conversation
  /help    this list
  Ctrl-C   stop the answer
  Ctrl-D   quit"""


@click.command("run")
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("--system", help="System message of the conversation.")
@click.option(
    "--max-tokens", type=int, help="Most tokens of one answer. Default: what the context has room for."
)
@click.option("--temperature", type=float, help="0 to 2; 0 is greedy. Default 0.8.")
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), help="The same seed gives the same answer.")
@click.option("--raw", is_flag=True, help="Continue PROMPT as it is, without the model's chat template.")
@click.option("--context", metavar="N", help="Tokens of the session.")
@click.option("--threads", metavar="N", help="Compute threads. Default: the cores this process may use.")
@click.option("--kv-type", metavar="f16|q8_0", help="Type of cached keys and values. Default f16.")
def command(
    *,
    model: str,
    prompt: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    raw: bool,
    **flags: Any,
) -> int:
    """Ask MODEL once and print the answer, or chat with it at the terminal if PROMPT is left out.

    \b
    Examples:
      quantd run model.gguf "Why is the sky blue?"
      quantd run model.gguf --raw "Once upon a time" --max-tokens 100
      echo "Summarize: ..." | quantd run model.gguf -
      quantd run model.gguf
    """
    from daemon import log
    from daemon.config import load
    from daemon.services.build import build_services
    from quantd.v1 import generate_pb2 as pb

    log.set_up(level="warning")
    settings = load({**flags, "model": model, "sessions": 1, "max_waiting": 0})
    options = pb.GenerationOptions(max_tokens=max_tokens)
    if temperature is not None:
        options.sampling.temperature = temperature
    if seed is not None:
        options.sampling.seed = seed
    if prompt is None and not sys.stdin.isatty():
        raise click.UsageError(
            'PROMPT is needed where there is no terminal to chat at ("-" reads standard input)'
        )
    if raw and prompt is None:
        raise click.UsageError("--raw needs a PROMPT")
    if prompt == "-":
        prompt = sys.stdin.read()
    talk = Talk(build_services(settings), options, system)
    return asyncio.run(talk.run(settings, prompt, raw=raw))


class Talk:
    """One conversation with one model in this process."""

    def __init__(self, services: Services, options: pb.GenerationOptions, system: str | None) -> None:
        self._services = services
        self._options = options
        self._system = system
        self._messages: list[pb.ChatMessage] = []
        self.reset()

    def reset(self) -> None:
        """Forgets everything but the system message."""
        from quantd.v1 import generate_pb2 as pb

        self._messages = [pb.ChatMessage(role="system", content=self._system)] if self._system else []

    async def run(self, settings: Any, prompt: str | None, *, raw: bool) -> int:
        """Loads the model, answers or chats, unloads it."""
        from daemon.services.asked import find_model

        entry = find_model(settings)
        assert entry is not None
        host = self._services.host
        await host.load(entry)
        try:
            if prompt is None:
                await self._chat()
            elif raw:
                await self._print(self._continue(prompt))
            else:
                await self._print(self._answer(prompt))
        finally:
            await host.stop(0.0)
            await host.close_model()
        return 0

    async def _continue(self, prompt: str) -> AsyncGenerator[str, None]:
        from daemon.services.call import Call
        from quantd.v1 import generate_pb2 as pb

        request = pb.GenerateRequest(text=prompt, options=self._options, echo=True)
        async with aclosing(self._services.generate.generate(request, Call())) as events:
            async for event in events:
                if event.HasField("delta"):
                    yield event.delta.text

    async def _answer(self, text: str) -> AsyncGenerator[str, None]:
        """The answer to one more message; both are remembered, a stopped answer as far as it came."""
        from daemon.services.call import Call
        from quantd.v1 import generate_pb2 as pb

        asked = pb.ChatMessage(role="user", content=text)
        request = pb.ChatRequest(messages=[*self._messages, asked], options=self._options)
        answer = ""
        try:
            async with aclosing(self._services.generate.chat(request, Call())) as events:
                async for event in events:
                    if event.HasField("delta"):
                        answer += event.delta.text
                        yield event.delta.text
        finally:
            if answer:
                self._messages += [asked, pb.ChatMessage(role="assistant", content=answer)]

    async def _print(self, texts: AsyncGenerator[str, None]) -> None:
        async with aclosing(texts):
            async for text in texts:
                click.echo(text, nl=False)
        click.echo()

    async def _chat(self) -> None:
        """Reads messages until Ctrl-D."""
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import InMemoryHistory

        from runtime.errors import QuantdError

        click.echo(HELP)
        session: PromptSession[str] = PromptSession(history=InMemoryHistory())
        while True:
            try:
                line = (await session.prompt_async("> ")).strip()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            if line == "/help":
                click.echo(HELP)
            elif line == "/reset":
                self.reset()
            elif line:
                try:
                    await self._print_until_interrupted(self._answer(line))
                except QuantdError as failure:
                    click.echo(f"quantd: {failure.message}", err=True)
                    if failure.reason == "CONTEXT_LENGTH_EXCEEDED":
                        click.echo("/reset forgets the conversation.", err=True)

    async def _print_until_interrupted(self, texts: AsyncGenerator[str, None]) -> None:
        """Ctrl-C ends the answer and not the program."""
        loop = asyncio.get_running_loop()
        printing = asyncio.create_task(self._print(texts))
        loop.add_signal_handler(signal.SIGINT, printing.cancel)
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await printing
            if printing.cancelled():
                click.echo()
        finally:
            loop.remove_signal_handler(signal.SIGINT)
