"""The real daemon as a process, one for the session, serving the demo model quantized to Q4_K_M."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.harness import ROOT, Daemon, Stubs, environment, small


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def models(demo_model, tmp_path_factory):
    """A model folder with the demo model: "demo-f16" and, made from it, "demo"."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copy(demo_model, folder / "demo-f16.gguf")
    subprocess.run(
        [sys.executable, "-m", "daemon", "quantize", folder / "demo-f16.gguf", folder / "demo.gguf"],
        cwd=ROOT,
        env=environment(),
        check=True,
        capture_output=True,
        timeout=120,
    )
    return folder


@pytest.fixture
def start():
    """Starts daemons that are killed when the test ends."""
    started = []

    def begin(*arguments, **options):
        started.append(Daemon(*arguments, **options))
        return started[-1]

    yield begin
    for daemon in started:
        daemon.kill()


@pytest.fixture(scope="session")
def served(models):
    """The daemon that all tests share; they leave it as they found it."""
    daemon = Daemon(*small(models), "--sessions", "4")
    daemon.models = models
    yield daemon
    daemon.kill()


@pytest.fixture(scope="session")
def stubs(served):
    made = Stubs(served.grpc)
    yield made
    made.channel.close()
