"""QuantizeService: `quantd quantize` as a low-priority child, one at a time; its progress as events, its end as ours."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf import json_format

from daemon.errors import ApiError
from daemon.log import get_logger
from daemon.lowprio import MEMORY_VARIABLE, PARENT_VARIABLE
from daemon.services.call import Call
from daemon.services.catalog import Catalog
from daemon.services.folder import SUFFIX
from daemon.services.host import not_found
from daemon.services.options import invalid
from quantd.v1 import quantize_service_pb2 as rpc

log = get_logger("quantd.quantize")

DEFAULT_RECIPE = "Q4_K_M"
MAX_THREADS = 256
MAX_LINE_BYTES = 64 * 1024
MAX_STDERR_BYTES = 8 * 1024
TERMINATE_S = 3.0  # from SIGTERM to SIGKILL
BUSY_RETRY_S = 10.0
MAX_WAITING_JOBS = 8
MAX_RULES = 64
MAX_RULE_CHARS = 300
MAX_CALIBRATION_BYTES = 256 << 10
# Private memory of the child; it needs some 300 MB for a 7 B model, whose files it maps and reads in pieces.
CHILD_MEMORY_BYTES = 2 << 30

# What `quantd quantize --calibrate` calls the text that comes with it.
BUILT_IN_TEXT = "built-in"
# An absolute path of at least two parts; group 1 is the last one.
_PATH = re.compile(r"(?<![\w.:/<])/(?:[^\s/:;,'\"()]+/)+([^\s/:;,'\"()]+)")


@dataclass(eq=False)
class _Job:
    """One Quantize call that runs or waits."""

    id: str
    request: rpc.QuantizeRequest
    arguments: list[str]
    output: Path
    label: str  # what clients call the output
    hidden: tuple[Path, ...]  # folders whose paths no message tells
    names: dict[str, str] = field(default_factory=dict)  # path on this machine: how the client named it
    changed: asyncio.Event = field(default_factory=asyncio.Event)  # its place changed, or it is to stop
    cancelled: bool = False
    child: asyncio.subprocess.Process | None = None
    progress: rpc.QuantizeProgress | None = None


class QuantizeService:
    """A queue of quantizations, of which the first one runs."""

    def __init__(self, folder: Catalog) -> None:
        self._folder = folder
        self._jobs: list[_Job] = []

    async def quantize(
        self, request: rpc.QuantizeRequest, call: Call
    ) -> AsyncGenerator[rpc.QuantizeResponse, None]:
        """Places in the queue, progress, then the result.  Closing the iterator stops the child and leaves no file."""
        call.caller.require_manage()
        async with aclosing(self._in_line(self._check(request, call))) as responses:
            async for response in responses:
                yield response

    async def make(
        self,
        source: Path,
        output: Path,
        *,
        recipe: str,
        adapters: Sequence[Path],
        label: str,
        hidden: Sequence[Path],
        call: Call,
    ) -> AsyncGenerator[rpc.QuantizeResponse, None]:
        """The same for files that the daemon itself names: part of making the model `label`."""
        request = rpc.QuantizeRequest(source=label, output=label, recipe=recipe)
        arguments = self._arguments(request, source, output)
        arguments += [f"--lora={folder}:1.0" for folder in adapters]
        job = _Job(call.request_id, request, arguments, output, label, tuple(hidden))
        async with aclosing(self._in_line(job)) as responses:
            async for response in responses:
                yield response

    async def _in_line(self, job: _Job) -> AsyncGenerator[rpc.QuantizeResponse, None]:
        if len(self._jobs) > MAX_WAITING_JOBS:
            message = f"{len(self._jobs)} quantizations run or wait already; no more can be queued."
            raise ApiError("QUANTIZE_BUSY", message, retry_after_s=BUSY_RETRY_S)
        self._jobs.append(job)
        try:
            while (ahead := self._jobs.index(job)) and not job.cancelled:
                queued = rpc.QuantizeQueued(job_id=job.id, jobs_ahead=ahead)
                yield rpc.QuantizeResponse(queued=queued)
                await job.changed.wait()
                job.changed.clear()
            if job.cancelled:
                raise ApiError("CANCELLED", "The quantization was cancelled; no file was left.")
            async with aclosing(self._run(job)) as responses:
                async for response in responses:
                    yield response
        finally:
            self._jobs.remove(job)
            for one in self._jobs:
                one.changed.set()

    def list_jobs(self, call: Call) -> rpc.ListJobsResponse:
        """The running job first, then those that wait."""
        call.caller.require_manage()
        return rpc.ListJobsResponse(
            jobs=[
                rpc.QuantizeJob(
                    job_id=job.id,
                    source=job.request.source,
                    output=job.label,
                    recipe=job.request.recipe,
                    running=index == 0,
                    progress=job.progress,
                )
                for index, job in enumerate(self._jobs)
            ]
        )

    def cancel_job(self, request: rpc.CancelJobRequest, call: Call) -> rpc.CancelJobResponse:
        """Stops a job; its own call tells how it ended."""
        call.caller.require_manage()
        job = next((one for one in self._jobs if one.id == request.job_id), None)
        if job is None:
            raise invalid("job_id", "no such job runs or waits")
        job.cancelled = True
        job.changed.set()
        if job.child is not None:
            _signal(job.child, signal.SIGTERM)
        return rpc.CancelJobResponse()

    async def _run(self, job: _Job) -> AsyncGenerator[rpc.QuantizeResponse, None]:
        child = job.child = await _start(job.arguments)
        text = asyncio.create_task(_say_text(child.stdin, job.request.calibration_text))
        log.info("quantize_started", request_id=job.id, source=job.request.source, output=job.output.name)
        done = False
        stderr = asyncio.create_task(_tail(child.stderr))
        try:
            async for response in _events(child, job):
                if response.HasField("progress"):
                    job.progress = response.progress
                yield response
            await child.wait()
            if job.cancelled and child.returncode != 0:
                raise ApiError("CANCELLED", "The quantization was cancelled; no file was left.")
            if child.returncode != 0:
                log.error("quantize_failed", exit_code=child.returncode, stderr=(await stderr)[-2000:])
                raise ApiError("INTERNAL", "The quantization failed; the daemon's log has the cause.")
            done = True
        finally:
            text.cancel()
            await asyncio.shield(asyncio.ensure_future(_end(child, stderr)))
            if not done:
                _remove_partial(job.output)
            log.info("quantize_ended", request_id=job.id, exit_code=child.returncode)

    def _check(self, request: rpc.QuantizeRequest, call: Call) -> _Job:
        """Everything that can be refused without opening the model."""
        source = self._find_source(request.source)
        output = self._folder.new_file(request.output, "output")
        if any(job.output == output for job in self._jobs):
            name = output.name.removesuffix(SUFFIX)
            raise ApiError("OUTPUT_EXISTS", f"output: a job that makes {name!r} is queued", field="output")
        folders = tuple(path for path in (self._folder.path, self._folder.output) if path is not None)
        return _Job(
            call.request_id,
            request,
            self._arguments(request, source, output),
            output,
            output.name.removesuffix(SUFFIX),
            folders,
            {str(source): request.source, str(output): request.output},
        )

    def _find_source(self, name: str) -> Path:
        entry = self._folder.find(name)
        found = entry.path if entry is not None else self._folder.find_folder(name, "config.json")
        if found is None:
            raise not_found(name, "source")
        return found

    def _arguments(self, request: rpc.QuantizeRequest, source: Path, output: Path) -> list[str]:
        """The child's command line.  Every text of the client is a value of an option written --name=value."""
        if request.HasField("threads") and not 1 <= request.threads <= MAX_THREADS:
            raise invalid("threads", f"must be 1 to {MAX_THREADS}, not {request.threads}")
        recipe = request.recipe
        plain = recipe.lower().removeprefix("best-").replace("_", "")
        if recipe and not (len(recipe) <= 32 and plain.isalnum() and recipe.isascii()):
            raise invalid("recipe", "must be the name of a recipe, such as Q4_K_M")
        if request.HasField("memory_bytes") and request.memory_bytes <= 0:
            raise invalid("memory_bytes", f"must be above 0, not {request.memory_bytes}")
        if len(request.tensor_types) > MAX_RULES or any(
            len(one) > MAX_RULE_CHARS for one in request.tensor_types
        ):
            raise invalid(
                "tensor_types", f"must be at most {MAX_RULES} rules of at most {MAX_RULE_CHARS} characters"
            )
        arguments = ["quantize", str(source), str(output), f"--recipe={recipe or DEFAULT_RECIPE}"]
        arguments += [f"--tensor-type={rule}" for rule in request.tensor_types]
        for option, value in (
            ("output-type", request.output_type),
            ("embedding-type", request.embedding_type),
            ("attention-type", request.attention_type),
            ("threads", str(request.threads) if request.HasField("threads") else ""),
            ("memory", str(request.memory_bytes) if request.HasField("memory_bytes") else ""),
        ):
            if len(value) > MAX_RULE_CHARS:
                raise invalid(option.replace("-", "_"), "is too long")
            if value:
                arguments.append(f"--{option}={value}")
        arguments += ["--pure"] if request.pure else []
        arguments += ["--no-input-hashes"] if request.no_input_hashes else []
        arguments += [f"--lora={self._adapter(adapter)}" for adapter in request.lora]
        arguments += self._calibration(request)
        if any("\0" in argument for argument in arguments):
            raise invalid("tensor_types", "must not hold a NUL character")
        return arguments

    def _calibration(self, request: rpc.QuantizeRequest) -> list[str]:
        if len(request.calibration_text.encode()) > MAX_CALIBRATION_BYTES:
            raise invalid("calibration_text", f"must be at most {MAX_CALIBRATION_BYTES} bytes")
        if request.calibration_text and not (request.calibrate or request.recipe.lower().startswith("best-")):
            raise invalid("calibration_text", "is only used with calibrate or a recipe best-NAME")
        if request.imatrix:
            if request.calibrate or request.calibration_text:
                raise invalid("imatrix", "give calibrate or imatrix, not both")
            found = self._folder.folder.find(request.imatrix)
            if found is None:
                raise not_found(request.imatrix, "imatrix")
            return [f"--imatrix={found.path}"]
        if request.calibration_text:
            return ["--calibrate=/dev/stdin"]
        return [f"--calibrate={BUILT_IN_TEXT}"] if request.calibrate else []

    def _adapter(self, adapter: rpc.LoraAdapter) -> str:
        folder = self._folder.find_folder(adapter.name, "adapter_config.json")
        if folder is None:
            raise not_found(adapter.name, "lora")
        return f"{folder}:{adapter.scale if adapter.HasField('scale') else 1.0!r}"


def child_command(arguments: list[str]) -> list[str]:
    """The command line of the child."""
    return [sys.executable, "-m", "daemon.lowprio", *arguments, "--progress-json"]


async def _start(arguments: list[str]) -> asyncio.subprocess.Process:
    environment = {
        **os.environ,
        PARENT_VARIABLE: str(os.getpid()),
        MEMORY_VARIABLE: str(CHILD_MEMORY_BYTES),
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
    }
    environment.pop("NOTIFY_SOCKET", None)  # the child has nothing to tell the service manager
    return await asyncio.create_subprocess_exec(
        *child_command(arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=MAX_LINE_BYTES,
        env=environment,
        start_new_session=True,  # Ctrl-C at the daemon's terminal is the daemon's to handle
    )


async def _say_text(stdin: asyncio.StreamWriter | None, text: str) -> None:
    """The calibration text, then the end; a child that does not read it is not waited for."""
    assert stdin is not None
    with contextlib.suppress(OSError):
        stdin.write(text.encode())
        await stdin.drain()
    stdin.close()


async def _events(child: asyncio.subprocess.Process, job: _Job) -> AsyncGenerator[rpc.QuantizeResponse, None]:
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
            raise _refusal(facts["reason"], facts["message"], job.names, job.hidden)
        if kind == "result":
            facts["output"] = job.label
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


def _refusal(reason: str, message: str, names: dict[str, str], folders: Sequence[Path] = ()) -> ApiError:
    """The child's error as ours, without the host's paths: what the client named as it named it, of others the last part."""
    fields = {"INVALID_MODEL_FILE": "source", "UNSUPPORTED_MODEL": "source", "UNSUPPORTED_RECIPE": "recipe"}
    for path, name in sorted(names.items(), key=lambda one: -len(one[0])):
        message = message.replace(path, name)
    for folder in folders:
        message = message.replace(f"{folder}/", "")
    return ApiError(reason, _PATH.sub(r"\1", message), field=fields.get(reason, ""))
