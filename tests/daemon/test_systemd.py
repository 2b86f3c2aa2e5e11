"""sd_notify against a real datagram socket, the test in the manager's place."""

import os
import socket

import pytest

from daemon.systemd import Notifier


@pytest.fixture
def manager(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(2)
        yield channel, str(tmp_path / "notify")


def test_messages_arrive_as_systemd_reads_them(manager):
    channel, address = manager
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    notifier.extend_start(5)
    notifier.ready("serving demo")
    notifier.status("two\nlines")
    notifier.watchdog()
    notifier.stopping()
    messages = [channel.recv(4096).decode() for _ in range(5)]
    assert messages[0] == "EXTEND_TIMEOUT_USEC=5000000"
    assert messages[1] == "READY=1\nSTATUS=serving demo"
    assert messages[2] == "STATUS=two lines"
    assert messages[3] == "WATCHDOG=1"
    assert messages[4].startswith("STOPPING=1\n")


def test_abstract_socket():
    name = f"quantd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind("\0" + name)
        channel.settimeout(2)
        Notifier("@" + name, None).watchdog()
        assert channel.recv(100) == b"WATCHDOG=1"


def test_watchdog_interval_is_a_third_and_only_for_this_process():
    ours = {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
    assert Notifier.from_environment(ours).watchdog_interval_s == 10
    assert Notifier.from_environment({**ours, "WATCHDOG_PID": "1"}).watchdog_interval_s is None
    assert Notifier.from_environment({"WATCHDOG_USEC": "x"}).watchdog_interval_s is None


def test_without_a_manager_or_with_a_dead_one_nothing_happens(tmp_path):
    assert not Notifier.from_environment({}).enabled
    Notifier.from_environment({}).ready("x")
    Notifier(str(tmp_path / "gone"), None).ready("x")
