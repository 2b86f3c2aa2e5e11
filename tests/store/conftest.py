"""Servers on loopback for downloads; no test reaches beyond this machine."""

import pytest

from daemon.store.models import ModelStore
from tests.store.server import Files, Hub, Registry


@pytest.fixture
def store(tmp_path):
    return ModelStore(tmp_path / "store")


@pytest.fixture
def files():
    made = Files()
    yield made
    made.origin.close()


@pytest.fixture
def hub(files):
    made = Hub(files)
    yield made
    made.origin.close()


@pytest.fixture
def registry(files):
    made = Registry(files)
    yield made
    made.origin.close()
