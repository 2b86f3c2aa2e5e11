"""The number of threads follows what the steps take, and trials stay rare."""

from __future__ import annotations

from runtime.team import Team


class Machine:
    """Steps of a machine on which each number of threads takes its own time."""

    def __init__(self, team: Team, times_ms: dict[int, float]) -> None:
        self.team = team
        self.times_ms = times_ms
        self.used: list[int] = []

    def run(self, steps: int, *, decode_rows: int = 1, prompt_rows: int = 0) -> list[int]:
        """The threads of each of these steps."""
        for _ in range(steps):
            size = self.team.choose(decode_rows=decode_rows, prompt_rows=prompt_rows)
            self.team.measured(decode_rows=decode_rows, prompt_rows=prompt_rows, step_ms=self.times_ms[size])
            self.used.append(size)
        return self.used[-steps:]


QUIET = {2: 70.0, 1: 110.0}
BUSY = {2: 130.0, 1: 112.0}


def test_all_threads_compute_on_a_quiet_machine_and_trials_become_rare():
    machine = Machine(Team(2), QUIET)
    machine.run(4000)
    assert machine.used.count(1) <= 40  # 1 %, most of them in the beginning
    assert machine.run(500).count(1) <= 4


def test_a_neighbour_takes_a_thread_away_within_a_few_steps_and_gives_it_back():
    machine = Machine(Team(2), dict(QUIET))
    machine.run(1000)
    machine.times_ms = BUSY
    assert machine.run(60)[-40:].count(1) >= 32  # all threads are tried again now and then
    assert machine.run(200).count(1) >= 180  # trials of all threads apart
    machine.times_ms = QUIET
    assert machine.run(100)[-20:].count(2) == 20


def test_a_slower_machine_without_a_neighbour_keeps_all_threads():
    machine = Machine(Team(2), dict(QUIET))
    machine.run(1000)
    machine.times_ms = {2: 140.0, 1: 220.0}
    assert machine.run(1000).count(1) <= 50


def test_prompts_are_computed_by_all_and_say_nothing():
    machine = Machine(Team(2), BUSY)
    machine.run(100)
    assert machine.team.size == 1
    assert machine.run(50, prompt_rows=64) == [2] * 50
    assert machine.team.size == 1


def test_steps_with_other_rows_are_not_compared():
    machine = Machine(Team(2), dict(QUIET))
    for _ in range(200):
        machine.times_ms = QUIET
        machine.run(4, decode_rows=1)
        machine.times_ms = {2: 200.0, 1: 80.0}
        machine.run(4, decode_rows=8)
    assert machine.team.size == 2


def test_of_four_threads_three_stay():
    machine = Machine(Team(4), {4: 50.0, 3: 40.0})
    assert machine.run(60)[-1] == 3


def test_one_thread_is_one_thread():
    machine = Machine(Team(1), {1: 10.0})
    assert machine.run(50) == [1] * 50
