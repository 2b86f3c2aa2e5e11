"""An engine in this process with a client that notes when each token arrives: for the measurements of this folder."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Self

from runtime.engine import Engine
from runtime.memory import RuntimeSettings
from runtime.model import LoadedModel, load_model
from runtime.request import FinishEvent, Request
from runtime.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0.0)


class EngineClient:
    """Submits requests and waits for them.  Times are time.perf_counter() seconds, taken in the engine's thread."""

    def __init__(self, path: Path, settings: RuntimeSettings, **options: Any) -> None:
        self.model: LoadedModel = load_model(path, settings)
        self._changed = threading.Condition()
        self.arrivals: dict[str, list[float]] = defaultdict(list)
        self.tokens: dict[str, list[int]] = defaultdict(list)
        self.ends: dict[str, FinishEvent] = {}
        self.engine = Engine(self.model, sink=self._take, **options)
        self._count = 0

    def __enter__(self) -> Self:
        self.engine.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.stop(0.0)
        self.model.close()

    def _take(self, events: list[Any]) -> None:
        now_s = time.perf_counter()
        with self._changed:
            for event in events:
                if isinstance(event, FinishEvent):
                    self.ends[event.request_id] = event
                else:
                    self.arrivals[event.request_id].append(now_s)
                    self.tokens[event.request_id].append(event.token_id)
            self._changed.notify_all()

    def submit(self, prompt_ids: list[int], max_tokens: int, **options: Any) -> str:
        """Start a request; returns its id."""
        self._count += 1
        id_ = f"r{self._count}"
        self.engine.submit(Request(id_, prompt_ids, max_tokens, **{"sampling": GREEDY, **options}))
        return id_

    def wait(self, *ids: str, timeout_s: float = 600) -> None:
        """Until all of these have ended."""
        with self._changed:
            if not self._changed.wait_for(lambda: all(id_ in self.ends for id_ in ids), timeout_s):
                raise TimeoutError(f"no end of {ids}")

    def wait_tokens(self, id_: str, count: int, timeout_s: float = 600) -> None:
        """Until a request has given `count` tokens."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.arrivals[id_]) >= count, timeout_s):
                raise TimeoutError(f"no {count} tokens of {id_}")

    def random_prompt(self, rng: random.Random, length: int) -> list[int]:
        """Token ids that share no beginning with other prompts."""
        n_vocab = self.model.config.n_vocab
        return [rng.randrange(300 if n_vocab > 600 else 3, n_vocab) for _ in range(length)]
