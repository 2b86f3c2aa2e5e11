"""A model without weights: its "keys and values" are the tokens themselves, kept in pages like the real ones.

The next token is a hash of everything that the sequence's page table leads to, so a wrong page, a wrong position or a page
that two sequences share changes the answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from runtime.memory import RuntimeSettings
from runtime.request import Event, FinishEvent, PromptEvent, Request, TokenEvent
from runtime.sampling import SamplingParams
from runtime.step_plan import MAX_TOP_LOGPROBS, Outcome, StepPlan, StepResult

N_VOCAB = 97


class FakeSampler:
    def __init__(self, params: SamplingParams) -> None:
        if params.temperature < 0:
            raise ValueError("temperature is negative")
        self.params = params
        self.accepted: list[int] = []
        self.drawn: list[int] = []
        self.mask: np.ndarray | None = None

    def set_mask(self, mask: np.ndarray | None) -> None:
        self.mask = None if mask is None else mask.copy()

    def choose(self, token: int) -> int:
        """The token itself, or the next one around the vocabulary that the mask allows."""
        while self.mask is not None and not self.mask[token // 32] >> (token % 32) & 1:
            token = (token + 1) % N_VOCAB
        return token

    def accept(self, token_ids: list[int]) -> None:
        self.accepted += token_ids


def next_token(history: list[int], seed: int = 0) -> int:
    value = 17 + seed
    for token in history:
        value = (value * 31 + token + 1) % 1_000_003
    return value % N_VOCAB


def logprob_of(history: list[int], token: int) -> float:
    """What the fake model says of a token behind a history."""
    return -1.0 - next_token([*history, token])


def echo_token(history: list[int], seed: int = 0) -> int:
    """Mostly the token of seven places before, so that answers repeat themselves; now and then another one."""
    value = next_token(history, seed)
    return value if len(history) < 7 or value % 8 == 0 else history[-7]


def answer_alone(request: Request, follow: Callable[[list[int], int], int] = next_token) -> list[int]:
    """What a model that computes one request at a time would emit, the stop token included."""
    history = list(request.prompt_ids)
    while len(history) < len(request.prompt_ids) + request.max_tokens:
        history.append(follow(history, request.sampling.seed))
        if history[-1] in request.stop_token_ids:
            break
    return history[len(request.prompt_ids) :]


@dataclass
class FakeConfig:
    n_vocab: int = N_VOCAB


@dataclass
class FakeModel:
    """`gate`, where given, is acquired before each step, so that a test decides when the engine may go on."""

    n_pages: int = 16
    page_tokens: int = 4
    context_tokens: int = 32
    settings: RuntimeSettings = field(default_factory=lambda: RuntimeSettings(sessions=4, max_step_rows=64))
    config: FakeConfig = field(default_factory=FakeConfig)
    gate: threading.Semaphore | None = None
    name: str = "fake"
    poison: int = -1  # a history with this token gives non-finite logits
    error: Exception | None = None  # raised by the next step
    follow: Callable[[list[int], int], int] = next_token
    n_threads: int = 1

    def __post_init__(self) -> None:
        self.cells = np.full((self.n_pages, self.page_tokens), -1, np.int64)
        self.steps: list[list[int]] = []  # rows of each sequence of each step
        self.in_step = threading.Event()
        self.threads_used: list[int] = []  # as they were told

    def use_threads(self, n_threads: int) -> None:
        self.threads_used.append(n_threads)

    def step(self, plan: StepPlan) -> StepResult:
        self.in_step.set()
        if self.gate is not None:
            assert self.gate.acquire(timeout=20)
        self.in_step.clear()
        if self.error is not None:
            raise self.error
        check_plan(plan, self.page_tokens)
        n_out = plan.n_out
        result = StepResult(
            token_ids=[-1] * n_out,
            logprobs=np.zeros(n_out, np.float32),
            target_logprobs=np.zeros(n_out, np.float32),
            top_ids=np.full((n_out, MAX_TOP_LOGPROBS), -1, np.int32),
            top_logprobs=np.zeros((n_out, MAX_TOP_LOGPROBS), np.float32),
            outcomes=np.zeros(n_out, np.uint8),
        )
        outputs = {int(row): index for index, row in enumerate(plan.out_rows)}
        for i in range(plan.n_seqs):
            pages = plan.pages[plan.page_starts[i] : plan.page_starts[i + 1]]
            for row in range(plan.seq_starts[i], plan.seq_starts[i + 1]):
                position = int(plan.positions[row])
                self.cells[pages[position // self.page_tokens], position % self.page_tokens] = plan.tokens[
                    row
                ]
                if row not in outputs:
                    continue
                history = self.cells[pages].reshape(-1)[: position + 1].tolist()
                index = outputs[row]
                if self.poison in history:
                    result.outcomes[index] = Outcome.NON_FINITE
                    continue
                sampler = plan.samplers[index]
                if plan.targets[index] >= 0:
                    result.target_logprobs[index] = logprob_of(history, int(plan.targets[index]))
                if sampler is None:
                    continue
                if index and row - 1 in outputs and sampler is plan.samplers[index - 1]:
                    # A guess: nothing is drawn behind a wrong one.
                    if result.token_ids[index - 1] != plan.tokens[row]:
                        continue
                result.token_ids[index] = sampler.choose(self.follow(history, sampler.params.seed))
                sampler.drawn.append(result.token_ids[index])
                result.logprobs[index] = -0.5
                result.top_ids[index, :3] = [result.token_ids[index], 1, 2]
                result.top_logprobs[index, :3] = [-0.5, -1.5, -2.5]
        self.steps.append(np.diff(plan.seq_starts).tolist())
        return result


def check_plan(plan: StepPlan, page_tokens: int) -> None:
    """The promises of StepPlan."""
    arrays = [
        plan.tokens,
        plan.positions,
        plan.seq_starts,
        plan.page_starts,
        plan.pages,
        plan.out_rows,
        plan.targets,
    ]
    assert all(array.dtype == np.int32 and array.flags.c_contiguous for array in arrays)
    assert plan.seq_starts[0] == plan.page_starts[0] == 0
    assert plan.seq_starts[-1] == plan.n_rows == len(plan.positions) > 0
    assert plan.page_starts[-1] == len(plan.pages)
    assert (np.diff(plan.seq_starts) > 0).all()
    writers: dict[int, int] = {}  # page -> sequence that writes it in this step
    for seq, (begin, end) in enumerate(zip(plan.seq_starts[:-1], plan.seq_starts[1:], strict=True)):
        assert (np.diff(plan.positions[begin:end]) == 1).all()
        pages = plan.pages[plan.page_starts[seq] : plan.page_starts[seq + 1]]
        assert len(set(pages.tolist())) == len(pages)
        for page in pages[plan.positions[begin] // page_tokens : plan.positions[end - 1] // page_tokens + 1]:
            assert writers.setdefault(int(page), seq) == seq, "a page is written by two sequences"
    for seq in range(plan.n_seqs):
        for page in plan.pages[plan.page_starts[seq] : plan.page_starts[seq + 1]].tolist():
            assert writers.get(page, seq) == seq, "a page is read while another sequence writes it"
    out_rows = plan.out_rows.tolist()
    assert out_rows == sorted(set(out_rows))
    # Of a sequence, its last rows: the last known token and the guesses behind it; and rows that tell of a prompt.
    targets = dict(zip(out_rows, plan.targets.tolist(), strict=True))
    last_rows = set((plan.seq_starts[1:] - 1).tolist())
    assert all(row in last_rows or row + 1 in out_rows or targets[row] >= 0 for row in out_rows)
    assert plan.n_out == len(plan.samplers) == len(plan.targets)
    drawing = [one for one in plan.samplers if one is not None]
    blocks = [one for at, one in enumerate(drawing) if not at or one is not drawing[at - 1]]
    assert len({id(one) for one in blocks}) == len(blocks), "one sampler draws for two rows"
    for row, target in targets.items():
        assert target == -1 or row in last_rows or target == plan.tokens[row + 1], "not the token behind it"


class Collector:
    """A sink that sorts events by request and checks that nothing follows the FinishEvent."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.tokens: dict[str, list[TokenEvent]] = {}
        self.finished: dict[str, FinishEvent] = {}
        self.prompts: dict[str, list[PromptEvent]] = {}
        self.calls = 0

    def __call__(self, events: list[Event]) -> None:
        with self._changed:
            self.calls += 1
            for event in events:
                assert event.request_id not in self.finished, "an event after the last one"
                if isinstance(event, FinishEvent):
                    self.finished[event.request_id] = event
                elif isinstance(event, PromptEvent):
                    self.prompts.setdefault(event.request_id, []).append(event)
                else:
                    self.tokens.setdefault(event.request_id, []).append(event)
            self._changed.notify_all()

    def ids(self, request_id: str) -> list[int]:
        return [event.token_id for event in self.tokens.get(request_id, [])]

    def wait(self, *request_ids: str, timeout_s: float = 20) -> list[FinishEvent]:
        with self._changed:
            assert self._changed.wait_for(
                lambda: all(id_ in self.finished for id_ in request_ids), timeout_s
            ), f"unfinished: {[id_ for id_ in request_ids if id_ not in self.finished]}"
            return [self.finished[id_] for id_ in request_ids]

    def wait_tokens(self, request_id: str, count: int, timeout_s: float = 20) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.tokens.get(request_id, [])) >= count, timeout_s)
