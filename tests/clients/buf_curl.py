"""buf curl, by server reflection alone: the methods, a chat, its stream, health, a refusal, KServe's infer."""

import base64
import json
import subprocess
import sys
from pathlib import Path

BUF = Path(sys.executable).with_name("buf")
ADDRESS = f"http://{sys.argv[2]}"
PLAIN = ("--protocol", "grpc", "--http2-prior-knowledge")


def curl(method, message=None, *, fails=False):
    """The JSON messages that a method answers with; what went wrong, where it must."""
    command = [BUF, "curl", *PLAIN, "--data", json.dumps(message or {}), f"{ADDRESS}/{method}"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode != 0) == fails, done.stderr
    if fails:
        return done.stderr
    decoder, found, at, text = json.JSONDecoder(), [], 0, done.stdout.strip()
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        found.append(value)
        at += len(text[at:]) - len(text[at:].lstrip())
    return found


version = subprocess.run([str(BUF), "--version"], capture_output=True, text=True, check=True)
print("buf", version.stdout.strip() or version.stderr.strip())
listed = subprocess.run(
    [str(BUF), "curl", *PLAIN, "--list-methods", ADDRESS], capture_output=True, text=True, check=True
).stdout.split()
assert "quantd.v1.GenerateService/Chat" in listed
assert "inference.GRPCInferenceService/ModelInfer" in listed
print("reflection:", len(listed), "methods")

CHAT = {
    "messages": [{"role": "user", "content": "What is 12 plus 7?"}],
    "options": {"sampling": {"temperature": 0}},
}
(answer,) = curl("quantd.v1.GenerateService/ChatUnary", {"request": CHAT})
assert "19" in answer["answer"]["text"]
events = curl("quantd.v1.GenerateService/Chat", CHAT)
assert "".join(event.get("delta", {}).get("text", "") for event in events) == answer["answer"]["text"]
print("chat:", answer["answer"]["text"], "|", len(events), "events")

assert curl("grpc.health.v1.Health/Check") == [{"status": "SERVING"}]
refusal = curl("quantd.v1.GenerateService/ChatUnary", {"request": {**CHAT, "model": "nobody"}}, fails=True)
assert "google.rpc.ErrorInfo" in refusal, refusal
assert '"code": "not_found"' in refusal, refusal
print("health and errors: a refusal with its reason")

text = base64.b64encode(b"Once upon").decode()
asked = {
    "model_name": "demo",
    "parameters": {"max_tokens": {"int64_param": 5}},
    "inputs": [
        {"name": "text_input", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [text]}}
    ],
}
(inferred,) = curl("inference.GRPCInferenceService/ModelInfer", asked)
output = {one["name"]: one["contents"]["bytesContents"][0] for one in inferred["outputs"]}
print("KServe infer:", base64.b64decode(output["text_output"]).decode())
