"""The systemd unit as systemd-analyze judges it."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "packaging/systemd/quantd.service"

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def run(*arguments):
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def installed_unit(tmp_path):
    """The unit with a program that exists here: `verify` wants to find it."""
    unit = tmp_path / "quantd.service"
    unit.write_text(UNIT.read_text().replace("/opt/quantd/bin/quantd", str(Path(sys.executable).resolve())))
    return unit


def test_verify_is_clean(installed_unit):
    result = run("verify", "--recursive-errors=no", "--man=no", installed_unit)
    # verify exits with 0 on unknown keys and bad values: any word about our unit is a failure.
    complaints = [line for line in result.stderr.splitlines() if "quantd" in line]
    assert result.returncode == 0, result.stderr
    assert not complaints


def test_exposure_is_at_most_1_3(installed_unit):
    result = run("security", "--offline=yes", "--threshold=13", "--no-pager", installed_unit)
    overall = re.search(r"Overall exposure level for quantd\.service: ([\d.]+)", result.stdout)
    assert result.returncode == 0, result.stdout[-400:]
    assert float(overall.group(1)) <= 1.3


def test_unit_says_what_the_daemon_does():
    text = UNIT.read_text()
    for line in ("Type=notify", "WatchdogSec=30", "TimeoutStopSec=30", "RestartPreventExitStatus=64 65 78"):
        assert line in text.splitlines()


def test_default_configuration_is_valid_and_says_the_truth():
    """Every key of the packaged file is a setting of the daemon, and the values shown are its defaults."""
    from daemon.config import Settings

    values = tomllib.loads((ROOT / "packaging/quantd.toml").read_text())
    fields = Settings.model_fields
    assert set(values) <= set(fields)
    for key in ("http", "grpc", "sessions", "kv_type"):
        assert str(fields[key].default) == str(values[key]), key
