"""A scheduler over the fake model, driven by hand."""

from runtime.pages import PagePool
from runtime.prefix import PrefixKeys
from runtime.prompt_scores import make_scorers
from runtime.request import Event, Request
from runtime.scheduler import Scheduler
from tests.engine.fakes import Collector, FakeModel, FakeSampler, next_token


class Bench:
    """A scheduler over the fake model, driven by hand."""

    def __init__(
        self,
        *,
        n_pages=16,
        page_tokens=4,
        sessions=4,
        context_tokens=32,
        max_step_rows=64,
        max_bypass=8,
        cache=False,
        costs=None,
        follow=next_token,
    ):
        self.model = FakeModel(n_pages, page_tokens, context_tokens, follow=follow)
        self.scheduler = Scheduler(
            PagePool(n_pages, sessions),
            page_tokens=page_tokens,
            context_tokens=context_tokens,
            max_step_rows=max_step_rows,
            max_bypass=max_bypass,
            prefix=PrefixKeys(model="fake", kv_type="f16", page_tokens=page_tokens) if cache else None,
            costs=costs,
        )
        self.samplers: dict[str, FakeSampler] = {}
        self.sink = Collector()
        self.events: list[Event] = []  # all of them, in order
        self.now_s = 100.0

    def add(self, request: Request) -> None:
        sampler = self.samplers[request.id] = FakeSampler(request.sampling)
        scorers = make_scorers(request, FakeSampler, self.scheduler.max_step_rows)
        self.scheduler.add(self.scheduler.prepare(request, sampler, self.now_s, scorers))

    def step(self, row_budget: int = 64) -> list[Event]:
        plan = self.scheduler.schedule(row_budget, self.now_s)
        if plan is None:
            return []
        assert plan.n_rows <= row_budget
        result = self.model.step(plan)
        self.now_s += 0.01
        events = self.scheduler.apply(result, self.now_s)
        self.sink(events)
        self.events += events
        return events

    def run(self, max_steps: int = 1000) -> None:
        for _ in range(max_steps):
            if not self.scheduler.has_work:
                return
            self.step()
        raise AssertionError("still at work")


def request(id_: str, prompt: int = 3, max_tokens: int = 4, **more) -> Request:
    return Request(id_, [(len(id_) * 7 + ord(id_[-1]) + i) % 97 for i in range(prompt)], max_tokens, **more)


class CheapRows:
    """Costs by which guesses always pay."""

    def decode_ms(self, num_rows):
        return 1.0 + 0.01 * num_rows
