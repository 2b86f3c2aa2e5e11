"""The bundled demo model keeps its promises after quantization to Q4_K_M, and the first run works as the README says."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from openai import OpenAI

from runtime.gguf import ModelFile
from tests.e2e.harness import ROOT, environment

# Greedy answers of the quantized model must hold these words; sums of the corpus' range, facts, manners.
ANSWERS = {
    "What is 12 plus 7?": r"\b19\b",
    "What is 30 plus 25?": r"\b55\b",
    "What is the capital of France?": r"\bParis\b",
    "What is the capital of Japan?": r"\bTokyo\b",
    "What color is the sky?": r"\bblue\b",
    "Hello!": r"\b([Hh]ello|[Hh]i)\b",
    "Who are you?": r"\bquantd\b",
}


@pytest.fixture(scope="module")
def client(served):
    return OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def answer(client, question, **options):
    reply = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": question}], temperature=0, **options
    )
    return reply.choices[0]


def test_shape_is_what_the_recipes_need(demo_model):
    file = ModelFile.open(demo_model)
    weights = [tensor for tensor in file.tensors.values() if len(tensor.shape) == 2]
    parameters = sum(tensor.n_elements for tensor in file.tensors.values())
    assert file.architecture == "llama"
    assert demo_model.stat().st_size <= 10_000_000
    assert 2_000_000 <= parameters <= 5_000_000
    assert weights
    assert all(tensor.shape[0] % 256 == 0 and tensor.type_name == "F16" for tensor in weights)
    assert 2048 <= len(file.strings("tokenizer.ggml.tokens")) <= 4096
    assert "<|im_start|>" in file.string("tokenizer.chat_template")


@pytest.mark.parametrize("question", ANSWERS)
def test_quantized_model_answers(client, question):
    choice = answer(client, question, max_tokens=60)
    assert re.search(ANSWERS[question], choice.message.content), choice.message.content
    assert choice.finish_reason == "stop"


def test_story_is_about_the_fox_and_ends(client):
    choice = answer(client, "Tell me a story about a fox.", max_tokens=600)
    text = choice.message.content
    assert choice.finish_reason == "stop"
    assert "fox" in text
    assert len(text.split()) > 40
    assert text.rstrip()[-1] in '.!?"'
    # English words and punctuation, nothing that fell apart into fragments or loops.
    words = re.findall(r"[A-Za-z']+", text)
    assert sum(map(len, words)) / len(text) > 0.7
    assert len(set(words)) > 0.35 * len(words)


def test_a_second_turn_knows_the_first(client):
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    reply = client.chat.completions.create(model="demo", messages=turns, temperature=0)
    turns += [
        {"role": "assistant", "content": reply.choices[0].message.content},
        {"role": "user", "content": "And the capital of Italy?"},
    ]
    reply = client.chat.completions.create(model="demo", messages=turns, temperature=0)
    assert "Rome" in reply.choices[0].message.content


def test_quantization_costs_little_perplexity(models):
    """Q4_K_M within 2.1 % of F16 on held-out text, the figure that users are promised for real models."""
    found = {}
    for name in ("demo-f16", "demo"):
        command = [
            sys.executable, "-m", "daemon", "perplexity", models / f"{name}.gguf", "--file",
            ROOT / "ops/demo/heldout.txt", "--parse-special", "--chunks", "12", "--json",
        ]  # fmt: skip
        result = subprocess.run(
            command, capture_output=True, check=True, cwd=ROOT, env=environment(), timeout=120
        )
        found[name] = json.loads(result.stdout)["perplexity"]
    assert 1.0 < found["demo-f16"] < 3.0
    assert found["demo"] / found["demo-f16"] < 1.021


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.skipif(
    not Path(sys.executable).with_name("quantd").exists(),
    reason="the quantd command is not installed beside python",
)
@pytest.mark.xdist_group("first_run")
def test_first_run_answers_and_stops_on_ctrl_c(tmp_path):
    """What `make run` does after the set-up; Ctrl-C reaches the whole process group, as at a terminal."""
    http, grpc = free_port(), free_port()
    command = [
        sys.executable,
        "ops/demo/first_run.py",
        "--http",
        f"127.0.0.1:{http}",
        "--grpc",
        f"127.0.0.1:{grpc}",
    ]
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            deadline = time.monotonic() + 90
            while b"Ctrl-C stops it" not in log.read_bytes():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(30) == 0, log.read_text()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    text = log.read_text()
    assert f"http://127.0.0.1:{http}/v1" in text
    story, told = text.split("Tell me a story about a fox.", 1)[1].split("What is the weather in Oslo?", 1)
    assert "fox" in story
    assert 'the model calls get_weather({"city": "Oslo"}), which answers: 14 degrees and sunny' in told
    answer = told.split("which answers: 14 degrees and sunny", 1)[1].split("== the daemon keeps running")[0]
    assert "Oslo" in answer
    assert "14 degrees and sunny" in answer
