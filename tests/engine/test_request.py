import pytest

from runtime.request import TRANSITIONS, FinishReason, Move, Request, Sequence, State, next_state
from runtime.sampling import SamplingParams

TRIGGERS = [*Move, *FinishReason]


def sequence() -> Sequence:
    return Sequence(Request("a", [1, 2, 3], 4), None, limit_tokens=7, page_tokens=4, submitted_s=10.0)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("trigger", TRIGGERS)
def test_the_table_is_all_there_is(state, trigger):
    if trigger in TRANSITIONS[state]:
        assert next_state(state, trigger) is TRANSITIONS[state][trigger]
    else:
        with pytest.raises(RuntimeError, match=f"a {state.value} request cannot take '{trigger.value}'"):
            next_state(state, trigger)


def test_every_reason_ends_a_running_request_and_nothing_follows():
    assert all(TRANSITIONS[State.RUNNING][reason] is State.DONE for reason in FinishReason)
    assert TRANSITIONS[State.DONE] == {}


def test_a_waiting_request_has_no_answer_that_could_end():
    assert FinishReason.STOP not in TRANSITIONS[State.WAITING]
    assert FinishReason.LENGTH not in TRANSITIONS[State.WAITING]


def test_need_is_rounded_up_to_pages():
    assert sequence().need_pages == 2


def test_times_of_a_request_that_ended_in_the_queue():
    event = sequence().finish(FinishReason.CANCELLED, 10.5)
    assert (event.queue_ms, event.prefill_ms, event.decode_ms) == (500.0, 0.0, 0.0)
    assert (event.prompt_tokens, event.completion_tokens) == (3, 0)


def test_a_request_ends_once():
    done = sequence()
    done.finish(FinishReason.CANCELLED, 11.0)
    with pytest.raises(RuntimeError):
        done.finish(FinishReason.CANCELLED, 12.0)


@pytest.mark.parametrize(
    ("params", "penalties"),
    [
        (SamplingParams(), False),
        (SamplingParams(repeat_penalty=1.1), True),
        (SamplingParams(presence_penalty=0.5), True),
        (SamplingParams(frequency_penalty=-0.5), True),
        (SamplingParams(repeat_penalty=1.1, repeat_last_n=0), False),
    ],
)
def test_penalties_are_active_only_where_they_can_change_something(params, penalties):
    assert params.has_penalties is penalties
