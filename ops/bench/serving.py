"""What only a whole process shows: time to the first token, and memory while it serves."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from engines import QUANTD

_HTTP, _GRPC = "127.0.0.1:18434", "127.0.0.1:18435"
URL = f"http://{_HTTP}"


def timed(command: list[str]) -> float:
    """Wall seconds of one command that must succeed."""
    start = time.perf_counter()
    subprocess.run(
        command,
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=600,
    )
    return time.perf_counter() - start


@contextmanager
def daemon(model: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon that answers /readyz; ended by SIGTERM.  RuntimeError where it does not become ready in two minutes."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [QUANTD, "serve", str(model), "--http", _HTTP, "--grpc", _GRPC, *options],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while True:
            try:
                urllib.request.urlopen(f"{URL}/readyz", timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.perf_counter() - start > 120:
                    raise RuntimeError("the daemon did not become ready") from None
                time.sleep(0.005)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def complete(model: Path, prompt: str, max_tokens: int) -> None:
    """One completion, thrown away."""
    body = json.dumps({"model": model.stem, "prompt": prompt, "max_tokens": max_tokens}).encode()
    request = urllib.request.Request(f"{URL}/v1/completions", body, {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=600).close()


def first_token(model: Path) -> tuple[float, float]:
    """Seconds from process start to ready and to the first token of a completion, page cache warm."""
    start = time.perf_counter()
    with daemon(model):
        ready = time.perf_counter() - start
        complete(model, "Hello", 1)
        return ready, time.perf_counter() - start


def peer_first_token(folder: Path, model: Path, options: tuple[str, ...]) -> float:
    """Seconds for a process of llama.cpp that generates one token and ends."""
    command = [
        str(folder / "llama-completion"),
        "-m",
        str(model),
        "-p",
        "Hello",
        "-n",
        "1",
        "-no-cnv",
        "-c",
        "4096",
        *options,
    ]
    return timed(command)


def serving_memory(model: Path, kv_tokens: int) -> dict[str, float]:
    """MiB of anonymous memory and of the KV arena of a daemon whose four sessions hold `kv_tokens` of f16 together, after
    four long prompts at once.
    """
    each = kv_tokens // 4
    with daemon(model, "--sessions", "4", "--context", str(each)) as process:
        words = "word " * (each // 4)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda index: complete(model, f"{index} {words}", 8), range(4)))
        status = Path(f"/proc/{process.pid}/status").read_text()
        with urllib.request.urlopen(f"{URL}/api/info", timeout=5) as reply:
            info = json.load(reply)
    anonymous_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:"))
    arena = next((value for key, value in _walk(info) if key == "kv_arena_bytes"), 0)
    return {"anonymous_mib": anonymous_kib / 1024, "kv_arena_mib": arena / 2**20}


def _walk(value: object) -> Iterator[tuple[str, int]]:
    """Every number of a JSON document with its key."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, int):
                yield key, inner
            yield from _walk(inner)
