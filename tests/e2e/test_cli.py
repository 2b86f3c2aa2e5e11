"""`quantd run` as a person uses it: one answer, a pipe, and a chat at a terminal."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest

from tests.e2e.harness import ROOT, environment


def run(models, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "daemon", "run", models / "demo.gguf", *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


def test_one_answer_is_the_one_that_the_server_gives(models, served):
    import openai

    done = run(models, "Tell me a story about a fox.", "--seed", "3", "--max-tokens", "40")
    assert done.returncode == 0
    assert done.stderr == ""
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        answer = client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": "Tell me a story about a fox."}],
            seed=3,
            max_tokens=40,
        )
    assert done.stdout == answer.choices[0].message.content + "\n"


def test_a_prompt_from_a_pipe_continues_raw(models):
    done = run(models, "-", "--raw", "--max-tokens", "8", "--temperature", "0", input="Once upon")
    assert done.returncode == 0
    assert done.stdout.startswith("Once upon")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "PROMPT is needed"),
        (("hi", "--temperature", "9"), "temperature"),
        (("hi", "--max-tokens", "0"), "max_tokens"),
        (("hi", "--seed", "-1"), "--seed"),
        (("hi", "--context", "5"), "context"),
    ],
)
def test_bad_use_is_one_line_and_64(models, arguments, word):
    done = run(models, *arguments, stdin=subprocess.DEVNULL)
    assert done.returncode == 64
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_a_chat_at_the_terminal(models):
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "daemon",
            "run",
            models / "demo.gguf",
            "--temperature",
            "0",
            "--max-tokens",
            "12",
        ],
        cwd=ROOT,
        env=environment(TERM="xterm"),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    seen = ""

    def until(pattern):
        nonlocal seen
        end = time.monotonic() + 20
        while not re.search(pattern, seen, re.DOTALL):
            assert time.monotonic() < end, seen
            if select.select([main], [], [], 0.1)[0]:
                seen += os.read(main, 65536).decode(errors="replace")
        seen = ""

    try:
        until("Ctrl-D")
        os.write(main, b"Hello!\r")
        until(r"Hello!.*\n\S.*\n.*>")
        # Each key only at a prompt: between two of them the terminal itself would take it.
        os.write(main, b"/reset\r")
        until(r"/reset.*\n.*>")
        os.write(main, b"/help\r")
        until(r"forget the conversation.*\n.*>")
        os.write(main, b"\x03")  # at the prompt it does nothing
        until(r"\n.*>")
        os.write(main, b"\x04")
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(main)


def quantd(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "daemon", *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_models_of_the_store_from_the_shell(served, models, tmp_path):
    where = ("--store-dir", str(tmp_path), "--models-dir", str(models))
    assert quantd("cp", "demo", "assistant:v1", *where).returncode == 0
    listed = json.loads(quantd("list", "--json", *where).stdout)["models"]
    assert [one["name"] for one in listed] == ["assistant:v1", "demo", "demo-f16"]
    assert "assistant:v1" in quantd("list", *where).stdout
    shown = json.loads(quantd("show", "assistant:v1", "--json", *where).stdout)
    assert shown["model"]["digest"].startswith("sha256:")
    assert shown["metadata"]["general.architecture"] == "llama"
    assert "of the file" in quantd("show", "assistant:v1", *where).stdout
    assert "{%" in quantd("show", "assistant:v1", "--only", "template", *where).stdout
    plan = json.loads(quantd("plan", "assistant:v1", "--json", *where).stdout)
    assert plan["fits"]
    assert plan["max_sessions"] > 4
    plan = json.loads(quantd("plan", "demo-f16", "--json", *where).stdout)
    assert {"Q4_K_M", "Q8_0"} <= {one["quantization"] for one in plan["variants"]}
    removed = quantd("rm", "assistant:v1", *where)
    assert "freed" in removed.stdout
    assert quantd("rm", "assistant:v1", *where).returncode == 64
    assert quantd("rm", "demo", *where).returncode == 64
    running = json.loads(quantd("ps", "--json", "--grpc", served.grpc).stdout)["models"]
    assert "demo" in [one["model"]["name"] for one in running]
    assert "for ever" in quantd("ps", "--grpc", served.grpc).stdout
    assert quantd("stop", "nope", "--grpc", served.grpc).returncode == 64
    gone = quantd("ps", "--grpc", "127.0.0.1:1")
    assert gone.returncode == 69
    assert "no daemon answers" in gone.stderr
