"""Which level runs, and that it can be forced."""

from __future__ import annotations

import platform

import pytest

from runtime import _native
from tests.kernels.support import LEVELS


def test_levels_go_from_scalar_to_the_widest() -> None:
    order = ["scalar", "avx2", "avxvnni", "avx512vnni"]
    if platform.machine() == "aarch64":
        order = ["scalar", "neon", "neondot"]
    assert [level for level in order if level in LEVELS] == LEVELS
    assert LEVELS[:2] == order[:2] or LEVELS == ["scalar"]


def test_the_environment_forces_a_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUANTD_CPU_LEVEL", raising=False)
    assert _native.kernel_level() == LEVELS[-1]
    for level in LEVELS:
        monkeypatch.setenv("QUANTD_CPU_LEVEL", level)
        assert _native.kernel_level() == level
        assert _native.kernel_level("scalar") == "scalar"
    monkeypatch.setenv("QUANTD_CPU_LEVEL", "")
    assert _native.kernel_level() == LEVELS[-1]


def test_an_unknown_level_is_refused_with_the_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"'sse9' is unknown .*scalar"):
        _native.kernel_level("sse9")
    monkeypatch.setenv("QUANTD_CPU_LEVEL", "vax")
    with pytest.raises(ValueError, match="vax"):
        _native.kernel_level()
