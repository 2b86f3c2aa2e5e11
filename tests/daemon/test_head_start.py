"""The load that begins before the rest of the daemon is there: whoever asks first for just that model gets it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from daemon import head_start
from daemon.head_start import HeadStart
from runtime.errors import ModelFormatError
from runtime.memory import RuntimeSettings

PATH, SETTINGS = Path("model.gguf"), RuntimeSettings(sessions=2)


class FakeModel:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_warm = False

    def warm_up(self, n_threads: int) -> None:
        self.is_warm = n_threads == 1


@pytest.fixture
def loads(monkeypatch):
    """The paths that were loaded, in order."""
    seen: list[Path] = []

    def load_model(path, settings, *, others=()):
        seen.append(path)
        if path.name == "broken.gguf":
            raise ModelFormatError("BAD_MAGIC", "", 0, "no model")
        return FakeModel(path)

    monkeypatch.setattr(head_start, "load_model", load_model)
    return seen


def test_the_first_who_asks_gets_it_and_the_next_one_loads(loads):
    begun = HeadStart(PATH, SETTINGS)
    first = begun.load_model(PATH, SETTINGS)
    assert (first.path, first.is_warm, loads) == (PATH, True, [PATH])
    assert begun.load_model(PATH, SETTINGS) is not first
    assert loads == [PATH, PATH]


@pytest.mark.parametrize(
    ("path", "settings", "others"),
    [
        (Path("other.gguf"), SETTINGS, ()),
        (PATH, RuntimeSettings(sessions=3), ()),
        (PATH, SETTINGS, (object(),)),
    ],
)
def test_another_model_or_another_plan_is_loaded_apart(loads, path, settings, others):
    begun = HeadStart(PATH, SETTINGS)
    assert not begun.load_model(path, settings, others=others).is_warm
    assert begun.load_model(PATH, SETTINGS).is_warm
    assert sorted(loads) == sorted([PATH, path])


def test_what_goes_wrong_is_told_to_who_asks_and_tried_again(loads):
    broken = Path("broken.gguf")
    begun = HeadStart(broken, SETTINGS)
    for _ in range(2):
        with pytest.raises(ModelFormatError, match="no model"):
            begun.load_model(broken, SETTINGS)
    assert loads == [broken, broken]
    assert not [
        thread for thread in threading.enumerate() if thread.name == "quantd-head-start" and thread.daemon
    ]
