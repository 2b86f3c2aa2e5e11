"""The real daemon as a process, and stubs for it."""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc

from quantd.v1 import (
    generate_service_pb2_grpc,
    model_service_pb2_grpc,
    quantize_service_pb2_grpc,
    tokenizer_service_pb2_grpc,
)

ROOT = Path(__file__).resolve().parents[2]
START_S = 60.0


def environment(**changes):
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith(("QUANTD_", "OLLAMA_"))
    }
    ours = {
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "proto" / "gen"))),
        "QUANTD_STORE_DIR": "/nonexistent/store",  # the developer's own models are none of the tests' business
    }
    return {**inherited, **ours, **changes}


class Daemon:
    """A daemon process; its URLs are read from what it prints when it is ready."""

    def __init__(self, *arguments, command="serve", wait=True, **variables):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "daemon", command, *map(str, arguments)],
            cwd=ROOT,
            env=environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.out, self.err = [], []
        self._lines = queue.Queue()
        for stream, kept in ((self.process.stdout, self.out), (self.process.stderr, self.err)):
            threading.Thread(target=self._read, args=(stream, kept), daemon=True).start()
        self.url = self.grpc = None
        if wait:
            self.wait_until_ready()

    def _read(self, stream, kept):
        for line in stream:
            kept.append(line)
            self._lines.put(line)
        self._lines.put(None)

    def wait_for(self, pattern, seconds=START_S):
        """The match of the first line that matches; fails if the process ends first."""
        end = time.monotonic() + seconds
        seen = 0
        while time.monotonic() < end:
            for line in self.out[seen:]:
                if match := re.search(pattern, line):
                    return match
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise AssertionError(f"no {pattern!r} from the daemon: {self.out} {''.join(self.err)[-3000:]}")

    def wait_until_ready(self):
        self.url = self.wait_for(r"(https?://\S+)/v1$")[1]
        self.grpc = self.wait_for(r"gRPC\s+(\S+)")[1]

    def stop(self, number=signal.SIGTERM, seconds=30):
        """Signals it; returns exit code and seconds."""
        begin = time.monotonic()
        self.process.send_signal(number)
        return self.wait(seconds), time.monotonic() - begin

    def wait(self, seconds=30):
        code = self.process.wait(seconds)
        time.sleep(0.05)  # for the readers to see the end of the pipes
        return code

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()


class Stubs:
    """gRPC stubs of every service."""

    def __init__(self, target):
        self.channel = grpc.insecure_channel(target)
        self.generate = generate_service_pb2_grpc.GenerateServiceStub(self.channel)
        self.tokenizer = tokenizer_service_pb2_grpc.TokenizerServiceStub(self.channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)
        self.quantize = quantize_service_pb2_grpc.QuantizeServiceStub(self.channel)


def small(models):
    """Arguments of a small daemon on free ports."""
    ports = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
    return (models / "demo.gguf", *ports, "--kv-budget", "16MiB", "--models-dir", models)
