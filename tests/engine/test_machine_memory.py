"""Available memory, read from made-up /proc and /sys folders."""

from pathlib import Path

import pytest

from runtime.machine_memory import available_memory, available_memory_bytes, own_anonymous_bytes

MIB = 1 << 20


class Machine:
    def __init__(self, root: Path) -> None:
        self.proc, self.sysfs = root / "proc", root / "sys"
        self.groups = self.sysfs / "fs" / "cgroup"
        self.write(self.proc / "self" / "cgroup", "")

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def meminfo(self, available_kib: int) -> None:
        self.write(
            self.proc / "meminfo",
            f"MemTotal: 9999999 kB\nMemFree: 1 kB\nMemAvailable:   {available_kib} kB\n",
        )

    def own(self, text: str) -> None:
        self.write(self.proc / "self" / "cgroup", text)

    def v2(self, path: str, *, maximum="max", high="max", current=0, stat="") -> None:
        folder = self.groups / path.strip("/")
        self.write(folder / "memory.max", f"{maximum}\n")
        self.write(folder / "memory.high", f"{high}\n")
        self.write(folder / "memory.current", f"{current}\n")
        self.write(folder / "memory.stat", stat)

    def v1(self, path: str, *, limit: int, usage: int, stat="") -> None:
        folder = self.groups / "memory" / path.strip("/")
        self.write(folder / "memory.limit_in_bytes", f"{limit}\n")
        self.write(folder / "memory.usage_in_bytes", f"{usage}\n")
        self.write(folder / "memory.stat", stat)

    def available(self):
        return available_memory(self.proc, self.sysfs)


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path)
    machine.meminfo(4096 * 1024)
    return machine


def test_without_groups_the_machine_says(machine):
    assert (machine.available().n_bytes, machine.available().source) == (4096 * MIB, "MemAvailable")


def test_v2_limit_less_what_cannot_be_given_back(machine):
    machine.own("0::/system.slice/quantd.service\n")
    stat = f"anon {300 * MIB}\nfile {500 * MIB}\nactive_file {100 * MIB}\ninactive_file {390 * MIB}\nslab_reclaimable {10 * MIB}\n"
    machine.v2("/system.slice/quantd.service", maximum=2048 * MIB, current=1000 * MIB, stat=stat)
    available = machine.available()
    assert available.n_bytes == (2048 - 500) * MIB
    assert "/system.slice/quantd.service" in available.source


def test_v2_the_tightest_group_on_the_way_up_counts(machine):
    machine.own("0::/a/b\n")
    machine.v2("/a/b", maximum=3000 * MIB)
    machine.v2("/a", maximum=1000 * MIB, current=100 * MIB)
    assert machine.available().n_bytes == 900 * MIB


def test_v2_high_slows_down_as_early_as_max_kills(machine):
    machine.own("0::/a\n")
    machine.v2("/a", maximum=3000 * MIB, high=2000 * MIB)
    assert machine.available().n_bytes == 2000 * MIB


def test_v2_without_a_limit_or_above_the_machine(machine):
    machine.own("0::/a/b\n")
    machine.v2("/a/b")
    machine.v2("/a", maximum=1 << 40)
    assert machine.available().n_bytes == 4096 * MIB


def test_v1_limit(machine):
    machine.own("5:devices:/x\n4:cpu,memory:/docker/abc\n0::/\n")
    stat = (
        f"cache {500 * MIB}\nactive_file 1\ntotal_active_file {100 * MIB}\ntotal_inactive_file {200 * MIB}\n"
    )
    machine.v1("/docker/abc", limit=1024 * MIB, usage=800 * MIB, stat=stat)
    machine.v1("/", limit=0x7FFFFFFFFFFFF000, usage=800 * MIB)
    assert machine.available().n_bytes == (1024 - 500) * MIB


def test_v1_in_a_container_that_sees_only_its_own_mount(machine):
    machine.own("4:memory:/docker/host-path\n")
    machine.v1("/", limit=512 * MIB, usage=12 * MIB)
    assert machine.available().n_bytes == 500 * MIB


def test_v2_on_the_unified_mount_of_a_hybrid_system(machine):
    machine.own("0::/a\n")
    machine.v2("/unified/a", maximum=700 * MIB)
    assert machine.available().n_bytes == 700 * MIB


def test_a_path_above_the_namespace_stays_inside_the_mount(machine, tmp_path):
    machine.own("0::/../../outside\n")
    machine.write(machine.sysfs / "outside" / "memory.max", "1\n")
    machine.v2("/", maximum=600 * MIB)
    assert machine.available().n_bytes == 600 * MIB


def test_more_in_use_than_the_limit_leaves_nothing(machine):
    machine.own("0::/a\n")
    machine.v2("/a", maximum=10 * MIB, current=11 * MIB)
    assert machine.available().n_bytes == 0


@pytest.mark.parametrize("text", ["", "garbage", "::::", "0::", "4:memory", "\x00"])
def test_strange_group_lines_are_no_limit(machine, text):
    machine.own(text)
    assert machine.available().n_bytes == 4096 * MIB


def test_hidden_meminfo_falls_back_to_the_memory_nodes(machine):
    (machine.proc / "meminfo").unlink()
    for node in (0, 1):
        machine.write(
            machine.sysfs / "devices/system/node" / f"node{node}" / "meminfo",
            f"Node {node} MemTotal:  1024000 kB\nNode {node} MemFree:  100000 kB\nNode {node} Active(file): 50000 kB\n"
            f"Node {node} Inactive(file): 30000 kB\nNode {node} Active(anon): 777 kB\nNode {node} SReclaimable: 5000 kB\n",
        )
    assert machine.available().n_bytes == 2 * (100000 + 50000 + 30000 + 5000 - 10240) * 1024


def test_without_any_file_the_system_call_answers(tmp_path):
    assert available_memory(tmp_path / "none", tmp_path / "none").n_bytes > 0


def test_this_machine():
    assert available_memory_bytes() > 16 * MIB


def test_what_this_process_holds(machine, tmp_path):
    machine.write(machine.proc / "self" / "status", "Name:\tpython\nVmRSS:\t  9000 kB\nRssAnon:\t  5000 kB\n")
    assert own_anonymous_bytes(machine.proc) == 5000 * 1024
    assert own_anonymous_bytes(tmp_path / "none") == 0
    assert own_anonymous_bytes() > MIB
