"""The first run: quantize the demo model, start the daemon, ask it a question, let it call a tool, keep serving.

Called by `make run`.  It uses only what a user has: the `quantd` command and the official `openai` client.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "ops/demo/quantd-demo-f16.gguf"
MODEL = ROOT / "out/quantd-demo-Q4_K_M.gguf"
QUANTD = Path(sys.executable).with_name("quantd")
QUESTION = "Tell me a story about a fox."
TOOL_QUESTION = "What is the weather in Oslo?"
TOOL = {
    "name": "get_weather",
    "description": "Get the weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
READY_TIMEOUT_S = 60


def say(text: str) -> None:
    """One line of our own, apart from what the commands print."""
    print(f"\n== {text}", flush=True)


def quantize() -> None:
    """Writes the Q4_K_M model, unless it is there and newer than its source."""
    if MODEL.exists() and MODEL.stat().st_mtime > SOURCE.stat().st_mtime:
        say(f"using {MODEL.relative_to(ROOT)} from the last run")
        return
    say(f"quantizing {SOURCE.relative_to(ROOT)} to Q4_K_M")
    MODEL.parent.mkdir(exist_ok=True)
    subprocess.run([QUANTD, "quantize", SOURCE, MODEL, "--recipe", "Q4_K_M", "--force"], check=True)


def wait_until_ready(daemon: subprocess.Popen[bytes], url: str) -> bool:
    """True as soon as /readyz answers 200; false if the daemon ends or takes too long."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline and daemon.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    return False


def ask(url: str) -> None:
    """One streamed chat request through the openai client."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key="none is needed here")
    model = client.models.list().data[0].id
    say(f"asking {model}: {QUESTION}")
    stream = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": QUESTION}], stream=True, temperature=0.7, seed=7
    )
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            print(chunk.choices[0].delta.content, end="", flush=True)
    print(flush=True)


def get_weather(city: str) -> str:
    """What a real program would look up."""
    return f"{len(city) + 10} degrees and sunny"


def call_a_tool(url: str) -> None:
    """A question that the model answers with the help of a tool, which runs here."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key="none is needed here")
    model = client.models.list().data[0].id
    tools: Any = [{"type": "function", "function": TOOL}]
    messages: list[Any] = [{"role": "user", "content": TOOL_QUESTION}]
    say(f"asking with a tool: {TOOL_QUESTION}")
    while True:
        answer = client.chat.completions.create(model=model, messages=messages, tools=tools, temperature=0)
        message = answer.choices[0].message
        if not message.tool_calls or len(messages) > 3:
            print(message.content, flush=True)
            return
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls:
            result = get_weather(**json.loads(call.function.arguments))
            print(
                f"the model calls {call.function.name}({call.function.arguments}), which answers: {result}",
                flush=True,
            )
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})


def main() -> int:
    """The daemon's exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--http", default="127.0.0.1:11434")
    parser.add_argument("--grpc", default="127.0.0.1:50051")
    arguments = parser.parse_args()
    url = f"http://{arguments.http}"

    quantize()
    say("starting the daemon")
    # Requests are not logged here: their lines would stand inside of the answer.
    listeners = ["--http", arguments.http, "--grpc", arguments.grpc]
    daemon = subprocess.Popen(
        [QUANTD, "serve", MODEL, *listeners, "--models-dir", MODEL.parent, "--log-level", "warning"]
    )
    # Ctrl-C reaches the daemon too (same terminal): it drains and we report its status.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: daemon.terminate())
    if wait_until_ready(daemon, url):
        try:
            ask(url)
            call_a_tool(url)
        except Exception:
            daemon.terminate()
            daemon.wait()
            raise
        say("the daemon keeps running; Ctrl-C stops it")
        print(f"   OpenAI API   {url}/v1        (any OpenAI client, any API key)")
        print(f"   API page     {url}/docs")
        print(f"   metrics      {url}/metrics")
        print(f"   gRPC         {arguments.grpc}  (quantd.v1, reflection on)", flush=True)
    elif daemon.poll() is None:
        print("the daemon did not become ready in time", file=sys.stderr)
        daemon.terminate()
    else:
        print(
            "the daemon could not start (see above); other ports: make run HTTP=127.0.0.1:8080 GRPC=127.0.0.1:8081",
            file=sys.stderr,
        )
    return daemon.wait()


if __name__ == "__main__":
    sys.exit(main())
