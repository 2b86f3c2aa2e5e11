"""QuantizeService: `quantd quantize` as a low-priority child, one at a time; its progress as events, its end as ours."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from google.protobuf import json_format

from daemon.errors import ApiError
from daemon.log import get_logger
from daemon.lowprio import MEMORY_VARIABLE, PARENT_VARIABLE
from daemon.services.call import Call
from daemon.services.catalog import Catalog
from daemon.services.folder import SUFFIX
from daemon.services.options import invalid
from daemon.services.quantize_options import command_line, read_request
from quantd.v1 import quantize_service_pb2 as rpc

log = get_logger("quantd.quantize")

MAX_LINE_BYTES = 64 * 1024
MAX_STDERR_BYTES = 8 * 1024
TERMINATE_S = 3.0  # from SIGTERM to SIGKILL
BUSY_RETRY_S = 10.0
MAX_WAITING_JOBS = 8
# Private memory of the child; it needs some 300 MB for a 7 B model, whose files it maps and reads in pieces.
CHILD_MEMORY_BYTES = 2 << 30
# What the command line calls differently.
_FIELDS_OF_OPTIONS = {
    "max_increase": "max_increase_percent",
    "memory": "memory_bytes",
    "tensor_type": "tensor_types",
    "verify": "verify_text",
}
_BEYOND_LIMIT = 1  # exit status: made, but its perplexity rises by more than was allowed
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
    makes: frozenset[Path]  # every file that it makes under a name of its own
    names: dict[str, str] = field(default_factory=dict)  # path on this machine: how the client named it
    changed: asyncio.Event = field(default_factory=asyncio.Event)  # its place changed, or it is to stop
    cancelled: bool = False
    child: asyncio.subprocess.Process | None = None
    progress: rpc.QuantizeProgress | None = None
    is_written: bool = False  # the output is complete, and is this job's


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
        arguments = command_line(request, source, output)
        arguments += [f"--lora={folder}:1.0" for folder in adapters]
        job = _Job(
            call.request_id, request, arguments, output, label, tuple(hidden), makes=frozenset((output,))
        )
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
        others = _absent(job.makes - {job.output})
        child = job.child = await _start(job.arguments, job.request.verify_text)
        text = asyncio.create_task(_say_text(child.stdin, job.request.calibration_text))
        log.info("quantize_started", request_id=job.id, source=job.request.source, output=job.output.name)
        done, expected = False, 0
        stderr = asyncio.create_task(_tail(child.stderr))
        try:
            async for response in _events(child, job):
                if response.HasField("progress"):
                    job.progress = response.progress
                job.is_written |= response.HasField("verifying")
                # A comparison beyond the limit is a result, and an exit status for scripts.
                expected = _BEYOND_LIMIT if _is_beyond_limit(response) else 0
                yield response
            await child.wait()
            if job.cancelled and child.returncode != expected:
                raise ApiError("CANCELLED", "The quantization was cancelled; no file was left.")
            if child.returncode != expected:
                log.error("quantize_failed", exit_code=child.returncode, stderr=(await stderr)[-2000:])
                raise ApiError("INTERNAL", "The quantization failed; the daemon's log has the cause.")
            done = True
        finally:
            text.cancel()
            await asyncio.shield(asyncio.ensure_future(_end(child, stderr)))
            if not done:
                _remove_made(job, others)
            log.info("quantize_ended", request_id=job.id, exit_code=child.returncode)

    def _check(self, request: rpc.QuantizeRequest, call: Call) -> _Job:
        """Everything that can be refused without opening the model."""
        asked = read_request(request, self._folder)
        makes = frozenset(asked.made)
        for path in makes & frozenset(chain.from_iterable(job.makes for job in self._jobs)):
            field = "output" if path == asked.output else "save_imatrix"
            name = path.name.removesuffix(SUFFIX)
            raise ApiError("OUTPUT_EXISTS", f"{field}: a job that makes {name!r} is queued", field=field)
        folders = tuple(path for path in (self._folder.path, self._folder.output) if path is not None)
        return _Job(
            call.request_id,
            request,
            asked.arguments,
            asked.output,
            asked.output.name.removesuffix(SUFFIX),
            folders,
            makes=makes,
            names=asked.names,
        )


def child_command(arguments: list[str]) -> list[str]:
    """The command line of the child."""
    return [sys.executable, "-m", "daemon.lowprio", *arguments, "--progress-json"]


async def _start(arguments: list[str], verify_text: str) -> asyncio.subprocess.Process:
    """The child; the text to compare on is a file of memory that only it and we have."""
    environment = {
        **os.environ,
        PARENT_VARIABLE: str(os.getpid()),
        MEMORY_VARIABLE: str(CHILD_MEMORY_BYTES),
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
    }
    environment.pop("NOTIFY_SOCKET", None)  # the child has nothing to tell the service manager
    with contextlib.ExitStack() as texts:
        shared = []
        if verify_text:
            text = texts.enter_context(os.fdopen(os.memfd_create("quantd-verify"), "wb"))
            text.write(verify_text.encode())
            text.flush()
            shared.append(text.fileno())
            arguments = [*arguments, f"--verify=/dev/fd/{text.fileno()}"]
        return await asyncio.create_subprocess_exec(
            *child_command(arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=MAX_LINE_BYTES,
            env=environment,
            pass_fds=shared,
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
    """The child's lines as messages: {"event": NAME, ...}, NAME and the rest with the messages' own field names.

    {"event": "error", "reason", "message"} is raised.
    """
    assert child.stdout is not None
    async for line in child.stdout:
        try:
            facts = json.loads(line, parse_constant=str)  # protobuf's JSON has Infinity as text
            kind = facts.pop("event")
        except (ValueError, TypeError, LookupError, AttributeError):
            continue  # not for us: a library's warning on stdout
        if kind == "error":
            raise _refusal(facts["reason"], facts["message"], job.names, job.hidden, facts.get("field", ""))
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


def _is_beyond_limit(response: rpc.QuantizeResponse) -> bool:
    divergence = response.result.divergence
    return divergence.HasField("passed") and not divergence.passed


def _absent(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if not os.path.lexists(path)]


def _remove_made(job: _Job, others: list[Path]) -> None:
    """What a job that failed may have left: partial files, whose names start with what it makes, and `others` of it."""
    names = tuple(path.name for path in job.makes)
    left = [path for path in job.output.parent.glob("*.partial*") if path.name.lstrip(".").startswith(names)]
    left += others
    if job.is_written:
        left += [job.output, job.output.with_name(f"{job.output.name}.manifest.json")]
    for path in left:
        with contextlib.suppress(OSError):
            path.unlink()


def _refusal(
    reason: str, message: str, names: dict[str, str], folders: Sequence[Path] = (), option: str = ""
) -> ApiError:
    """The child's error as ours, without the host's paths: what the client named as it named it, of others the last part."""
    fields = {"INVALID_MODEL_FILE": "source", "UNSUPPORTED_MODEL": "source", "UNSUPPORTED_RECIPE": "recipe"}
    for path, name in sorted(names.items(), key=lambda one: -len(one[0])):
        message = message.replace(path, name)
    for folder in folders:
        message = message.replace(f"{folder}/", "")
    field = _FIELDS_OF_OPTIONS.get(option, option)
    known = field if field in rpc.QuantizeRequest.DESCRIPTOR.fields_by_name else ""
    return ApiError(reason, _PATH.sub(r"\1", message), field=known or fields.get(reason, ""))
