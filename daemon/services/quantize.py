"""QuantizeService: `quantd quantize` as a low-priority child, its progress as events, its end as ours."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import structlog
from google.protobuf import json_format

from daemon.errors import ApiError
from daemon.lowprio import PARENT_VARIABLE
from daemon.services.call import Call
from daemon.services.folder import SUFFIX, ModelEntry, ModelFolder
from daemon.services.host import not_found
from daemon.services.options import invalid
from quantd.v1 import quantize_service_pb2 as rpc

log = structlog.stdlib.get_logger("quantd.quantize")

DEFAULT_RECIPE = "Q4_K_M"
MAX_THREADS = 256
MAX_LINE_BYTES = 64 * 1024
MAX_STDERR_BYTES = 8 * 1024
TERMINATE_S = 3.0  # from SIGTERM to SIGKILL
BUSY_RETRY_S = 10.0


class QuantizeService:
    """One quantization at a time."""

    def __init__(self, folder: ModelFolder) -> None:
        self._folder = folder
        self._running = False

    async def quantize(
        self, request: rpc.QuantizeRequest, call: Call
    ) -> AsyncGenerator[rpc.QuantizeResponse, None]:
        """Progress, then the result.  Closing the iterator stops the child and leaves no file."""
        source, output = self._check(request)
        if self._running:
            raise ApiError("QUANTIZE_BUSY", "Another quantization is running.", retry_after_s=BUSY_RETRY_S)
        self._running = True
        try:
            child = await _start(request, source, output)
            log.info("quantize_started", request_id=call.request_id, source=source.name, output=output.name)
            done = False
            stderr = asyncio.create_task(_tail(child.stderr))
            try:
                async for response in _events(child, output):
                    yield response
                await child.wait()
                if child.returncode != 0:
                    log.error("quantize_failed", exit_code=child.returncode, stderr=(await stderr)[-2000:])
                    raise ApiError("INTERNAL", "The quantization failed; the daemon's log has the cause.")
                done = True
            finally:
                await asyncio.shield(asyncio.ensure_future(_end(child, stderr)))
                if not done:
                    _remove_partial(output)
                log.info("quantize_ended", request_id=call.request_id, exit_code=child.returncode)
        finally:
            self._running = False

    def _check(self, request: rpc.QuantizeRequest) -> tuple[ModelEntry, Path]:
        source = self._folder.find(request.source)
        if source is None:
            raise not_found(request.source, "source")
        output = self._folder.new_file(request.output, "output")
        if request.HasField("threads") and not 1 <= request.threads <= MAX_THREADS:
            raise invalid("threads", f"must be 1 to {MAX_THREADS}, not {request.threads}")
        recipe = request.recipe
        if recipe and not (len(recipe) <= 32 and recipe.replace("_", "").isalnum() and recipe.isascii()):
            raise invalid("recipe", "must be the name of a recipe, such as Q4_K_M")
        return source, output


def child_command(arguments: list[str]) -> list[str]:
    """The command line of the child."""
    return [sys.executable, "-m", "daemon.lowprio", *arguments, "--progress-json"]


async def _start(
    request: rpc.QuantizeRequest, source: ModelEntry, output: Path
) -> asyncio.subprocess.Process:
    arguments = ["quantize", str(source.path), str(output), "--recipe", request.recipe or DEFAULT_RECIPE]
    if request.HasField("threads"):
        arguments += ["--threads", str(request.threads)]
    environment = {
        **os.environ,
        PARENT_VARIABLE: str(os.getpid()),
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
    }
    environment.pop("NOTIFY_SOCKET", None)  # the child has nothing to tell the service manager
    return await asyncio.create_subprocess_exec(
        *child_command(arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=MAX_LINE_BYTES,
        env=environment,
        start_new_session=True,  # Ctrl-C at the daemon's terminal is the daemon's to handle
    )


async def _events(
    child: asyncio.subprocess.Process, output: Path
) -> AsyncGenerator[rpc.QuantizeResponse, None]:
    """The child's lines as messages: {"event": "progress" or "result", ...} with the messages' own field names.

    {"event": "error", "reason", "message"} is raised.
    """
    assert child.stdout is not None
    async for line in child.stdout:
        try:
            facts = json.loads(line)
            kind = facts.pop("event")
        except (ValueError, TypeError, LookupError, AttributeError):
            continue  # not for us: a library's warning on stdout
        if kind == "error":
            raise _refusal(facts["reason"], facts["message"], output.parent)
        if kind == "result":
            facts["output"] = output.name.removesuffix(SUFFIX)
        yield json_format.ParseDict({kind: facts}, rpc.QuantizeResponse(), ignore_unknown_fields=True)


async def _tail(stream: asyncio.StreamReader | None) -> str:
    """The last bytes of a stream, read to its end so that the writer never blocks."""
    assert stream is not None
    tail = b""
    while chunk := await stream.read(4096):
        tail = (tail + chunk)[-MAX_STDERR_BYTES:]
    return tail.decode(errors="replace")


async def _end(child: asyncio.subprocess.Process, stderr: asyncio.Task[str]) -> None:
    """Waits for a child that ended, or ends it: politely, then not."""
    if child.returncode is None:
        _signal(child, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(child.wait(), TERMINATE_S)
    if child.returncode is None:
        _signal(child, signal.SIGKILL)
        await child.wait()
    stderr.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await stderr


def _signal(child: asyncio.subprocess.Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(number)


def _remove_partial(output: Path) -> None:
    """What a child that was killed may have left beside the output (its own partial name starts with the output's)."""
    for left in output.parent.glob("*.partial*"):
        if left.name.lstrip(".").startswith(output.name):
            with contextlib.suppress(OSError):
                left.unlink()


def _refusal(reason: str, message: str, folder: Path) -> ApiError:
    """The child's error as ours, without the host's paths."""
    field = {"INVALID_MODEL_FILE": "source", "UNSUPPORTED_MODEL": "source", "UNSUPPORTED_RECIPE": "recipe"}
    return ApiError(reason, message.replace(f"{folder}/", ""), field=field.get(reason, ""))
