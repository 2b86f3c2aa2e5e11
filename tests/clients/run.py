"""Tries programs that speak the APIs of OpenAI, Anthropic, Ollama and KServe, or gRPC, each in an environment of its own, against a real daemon.

    make test-clients                       # all of them; installs what is missing, which needs a package index
    python tests/clients/run.py openai node # some of them

Environments lie under $QUANTD_CLIENTS, or in out/clients.  Each script asks for plain text, a stream, structured output and a
call of a tool, as its users would, prints one line for each thing that it saw, and fails where an answer is not what it must be.
It is given the daemon's HTTP URL, its gRPC address, and a folder with the models' files.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.e2e.encoder import write_encoder

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PYTHON_CLIENTS = {
    "openai": ["openai"],
    "langchain-openai": ["langchain-openai"],
    "litellm": ["litellm"],
    "instructor": ["instructor"],
    "anthropic": ["anthropic"],
    "ollama": ["ollama"],
    "tritonclient": ["tritonclient[grpc]"],
}
NODE_PACKAGES = [
    "openai",
    "ai",
    "@ai-sdk/openai",
    "@ai-sdk/openai-compatible",
    "zod",
    "ollama",
    "@grpc/grpc-js",
    "@grpc/proto-loader",
]
NODE_SCRIPTS = ["openai.mjs", "ai_sdk.mjs", "ollama.mjs", "grpc_js.mjs"]
CLIENT_ENVIRONMENT = {**os.environ, "QUANTD_PROTO": str(ROOT / "proto")}
HTTP, GRPC = "127.0.0.1:18434", "127.0.0.1:18435"


def environment_folder() -> Path:
    folder = Path(os.environ.get("QUANTD_CLIENTS") or ROOT / "out" / "clients")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def python_of(name: str) -> Path:
    """The interpreter of a client's environment, made where it is missing."""
    folder = environment_folder() / name
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PYTHON_CLIENTS[name]], check=True)
    return python


def node_folder() -> Path:
    folder = environment_folder() / "node"
    folder.mkdir(exist_ok=True)
    if not (folder / "node_modules").exists():
        (folder / "package.json").write_text('{"private": true, "type": "module"}', encoding="utf-8")
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", *NODE_PACKAGES], cwd=folder, check=True)
    return folder


def start_daemon(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """A daemon with the demo model under the name "demo" and a tiny encoder under "mini"; its URL."""
    model = folder / "demo.gguf"
    shutil.copy(ROOT / "ops" / "demo" / "quantd-demo-f16.gguf", model)
    write_encoder(folder / "mini.gguf")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "proto" / "gen")))}
    command = [
        sys.executable,
        "-m",
        "daemon",
        "serve",
        model,
        "--http",
        HTTP,
        "--grpc",
        GRPC,
        "--models-dir",
        folder,
        "--store-dir",
        folder / "store",
    ]
    daemon = subprocess.Popen(
        [*map(str, command)], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://{HTTP}"
    end = time.monotonic() + 60
    while time.monotonic() < end and daemon.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/readyz", timeout=2)
            return daemon, url
        except OSError:
            time.sleep(0.2)
    daemon.kill()
    raise SystemExit("the daemon did not become ready")


def main() -> int:
    known = [*PYTHON_CLIENTS, "node", "buf"]
    wanted = sys.argv[1:] or known
    if unknown := [name for name in wanted if name not in known]:
        print(f"no client {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        commands = []
        for name in wanted:
            if name == "node":
                modules = node_folder()
                for script in NODE_SCRIPTS:
                    shutil.copy(HERE / "node" / script, modules / script)
                    commands.append((f"node {script}", ["node", modules / script]))
            elif name == "buf":
                commands.append((name, [sys.executable, HERE / "buf_curl.py"]))
            else:
                commands.append((name, [python_of(name), HERE / f"{name.replace('-', '_')}_client.py"]))
        daemon, url = start_daemon(Path(folder))
        try:
            for name, command in commands:
                print(f"== {name}", flush=True)
                result = subprocess.run(
                    [*map(str, command), url, GRPC, folder], timeout=300, check=False, env=CLIENT_ENVIRONMENT
                )
                if result.returncode:
                    failed.append(name)
        finally:
            daemon.terminate()
            daemon.wait(30)
    print(f"failed: {', '.join(failed)}" if failed else f"{len(commands)} scripts passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
