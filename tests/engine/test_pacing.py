import pytest

from runtime.pacing import LiveRates, StepPacer


def test_before_anything_is_measured_steps_are_small():
    pacer = StepPacer(250, 256)
    assert pacer.row_budget(0) == 64
    assert pacer.row_budget(3) == 3 + 16


def test_a_slow_first_answer_makes_the_first_prompt_step_smaller():
    pacer = StepPacer(250, 256)
    pacer.measured(decode_rows=1, prompt_rows=0, step_ms=40)
    assert pacer.row_budget(0) == 25
    pacer.measured(decode_rows=1, prompt_rows=0, step_ms=10_000)
    assert pacer.row_budget(0) == 16


def test_prompts_get_the_time_that_answers_leave():
    pacer = StepPacer(250, 256)
    pacer.measured(decode_rows=4, prompt_rows=0, step_ms=50)
    pacer.measured(decode_rows=4, prompt_rows=20, step_ms=150)  # 5 ms a prompt row
    assert pacer.row_budget(4) == 4 + 20  # 60 % of 250 ms, without the 50 ms of the answers
    assert pacer.row_budget(0) == 200  # four budgets, where nobody's answer waits


def test_where_answers_alone_are_slow_a_prompt_may_slow_them_down_further():
    pacer = StepPacer(250, 256)
    pacer.measured(decode_rows=2, prompt_rows=0, step_ms=400)
    pacer.measured(decode_rows=2, prompt_rows=20, step_ms=600)  # 10 ms a prompt row
    assert pacer.row_budget(2) == 2 + 32  # 60 % of three times 400 ms


def test_prompts_always_get_some_rows_and_never_too_many():
    pacer = StepPacer(250, 256)
    pacer.measured(decode_rows=4, prompt_rows=0, step_ms=900)
    pacer.measured(decode_rows=0, prompt_rows=64, step_ms=64_000)
    assert pacer.row_budget(4) == 4 + 4
    assert pacer.row_budget(0) == 16
    pacer = StepPacer(250, 256)
    pacer.measured(decode_rows=0, prompt_rows=64, step_ms=0.0)
    assert pacer.row_budget(0) == pacer.row_budget(5) == 256


def test_a_few_prompt_rows_without_answers_say_little_about_their_cost():
    pacer = StepPacer(250, 256)
    pacer.measured(decode_rows=0, prompt_rows=2, step_ms=100)
    assert not pacer.prompt_costs.measured


def test_the_pacer_follows_a_machine_that_slows_down():
    pacer = StepPacer(250, 256)
    pacer.measured(decode_rows=0, prompt_rows=100, step_ms=100)
    for _ in range(40):
        pacer.measured(decode_rows=0, prompt_rows=100, step_ms=1000)
    assert pacer.prompt_costs.row_ms(100) == pytest.approx(10, rel=0.01)


def step_ms(decode_rows: int, prompt_rows: int) -> float:
    """A machine on which many rows of a prompt cost 7 ms each and few of them twice as much."""
    each_ms = 7 if prompt_rows > 16 else 10 if prompt_rows > 8 else 14
    return 60 + 8 * decode_rows + each_ms * prompt_rows


def settle(pacer: StepPacer, decode_rows: int, steps: int = 30) -> list[float]:
    """Times of steps that the pacer sized, the last ten."""
    times = []
    for _ in range(steps):
        rows = pacer.row_budget(decode_rows) - decode_rows
        times.append(step_ms(decode_rows, rows))
        pacer.measured(decode_rows=decode_rows, prompt_rows=rows, step_ms=times[-1])
    return times[-10:]


def test_few_rows_are_known_to_cost_more_and_steps_stay_within_their_part_of_the_budget():
    pacer = StepPacer(250, 256)
    pacer.measured(decode_rows=3, prompt_rows=0, step_ms=step_ms(3, 0))
    times = settle(pacer, 3)
    assert max(times) <= 0.6 * 250
    assert min(times) >= 0.45 * 250  # and use it


def test_costs_of_all_numbers_of_rows_move_together():
    pacer = StepPacer(250, 256)
    pacer.measured(decode_rows=3, prompt_rows=0, step_ms=80)
    pacer.measured(decode_rows=3, prompt_rows=32, step_ms=80 + 320)
    pacer.measured(decode_rows=3, prompt_rows=8, step_ms=80 + 120)
    for _ in range(40):  # the machine becomes three times as fast
        pacer.measured(decode_rows=3, prompt_rows=8, step_ms=80 + 40)
    assert pacer.prompt_costs.row_ms(32) == pytest.approx(10 / 3, rel=0.05)
    assert pacer.row_budget(3) == 3 + 20


def test_rates_over_the_last_seconds():
    rates = LiveRates()
    assert rates.rates(1000.0) == (0.0, 0.0)
    for i in range(100):
        rates.count(1000.0 + 0.1 * i, 0.1, 5, 2)
    prompt, generated = rates.rates(1009.9)
    assert prompt == pytest.approx(50, rel=0.15)
    assert generated == pytest.approx(20, rel=0.15)
    assert rates.rates(1020.0) == (0.0, 0.0)


def test_the_first_second_after_a_pause_is_not_diluted():
    rates = LiveRates()
    rates.count(1000.0, 0.1, 10, 0)
    for i in range(20):
        rates.count(2000.0 + 0.05 * i, 0.05, 0, 1)
    assert rates.rates(2000.95)[1] == pytest.approx(20, rel=0.15)


def test_a_step_longer_than_the_window_does_not_look_fast():
    rates = LiveRates()
    rates.count(1000.0, 10.0, 100, 0)
    assert rates.rates(1000.0)[0] == pytest.approx(10)
