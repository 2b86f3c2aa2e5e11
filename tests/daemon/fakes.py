"""A model and an engine for tests of the services: no weights, no native code, one token at a time from a thread."""

import queue
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

from daemon.services.host import Parts
from daemon.text.template import ChatTemplate
from runtime.errors import EngineStoppedError
from runtime.memory import MemoryPlan
from runtime.request import FinishEvent, FinishReason, PromptEvent, TokenEvent

CONTEXT_TOKENS = 128
EOS = 256


class FakeTokenizer:
    """One token for each byte; 256 ends a text."""

    n_vocab = 257
    warnings = ()
    bos_id = None
    eos_id = EOS
    add_bos = False
    eog_ids = frozenset({EOS})
    vocabulary = SimpleNamespace(tokens=[*map(chr, range(256)), "<|end|>"], fim_ids=None)
    control_tokens: ClassVar = {"<|end|>": EOS}

    def all_token_bytes(self):
        return [self.token_bytes(i) for i in range(self.n_vocab)]

    def is_control(self, token_id):
        return token_id == EOS

    def encode_continuation(self, text):
        return list(text.encode())

    def encode(self, text, *, add_special=True, parse_special=False, drop=""):
        return list((text.replace(drop, "") if drop else text).encode())

    def token_text(self, token_id):
        return "<eos>" if token_id == EOS else chr(token_id)

    def break_special(self, text, mark):
        return text

    def decode(self, ids):
        return bytes(one for one in ids if one < 256).decode(errors="replace")

    def token_bytes(self, token_id):
        return bytes([token_id]) if token_id < 256 else b""


TEMPLATE = "{% for one in messages %}{{ one.role + ':' + one.content + '\n' }}{% endfor %}"


class FakeTemplate(ChatTemplate):
    """A real template over the fake tokenizer."""

    def __init__(self, source=TEMPLATE):
        super().__init__(source)


class FakeFile:
    size_bytes = 10
    architecture = "llama"
    tensors = {"token_embd.weight": SimpleNamespace(type_name="Q4_K", n_elements=1000)}  # noqa: RUF012

    def get(self, key, default=None):
        return ["a"] * 257 if key == "tokenizer.ggml.tokens" else default

    def length(self, key):
        return len(self.get(key, []))

    def integer(self, key, default=None, **limits):
        return 2048

    def resident_bytes(self):
        return 5


def write_gguf(path, *, name="other", context_length=512):
    """A real, tiny GGUF file with one tensor; enough to be listed and described."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_context_length(context_length)
    writer.add_token_list(["a", "b", "c"])
    writer.add_chat_template("{{ messages }}")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class FakeModel:
    def __init__(self, path):
        self.name = Path(path).stem
        self.tokenizer = FakeTokenizer()
        self.config = SimpleNamespace(n_vocab=257)
        self.context_tokens = CONTEXT_TOKENS
        self.generates = True
        self.is_warm = False
        self.eog_token_ids = frozenset({EOS})
        self.chat_template = "a template"
        self.file = FakeFile()
        self.plan = plan()
        self.closed = False

    def close(self):
        self.closed = True


def plan(**changes):
    values = {
        "weights_bytes": 10,
        "kv_arena_bytes": 20,
        "scratch_bytes": 3,
        "process_bytes": 4,
        "total_bytes": 37,
        "available_bytes": 100,
        "fits": True,
        "sessions": 2,
        "session_context_tokens": CONTEXT_TOKENS,
        "session_share_tokens": CONTEXT_TOKENS,
        "max_sessions": 2,
        "max_context_tokens": CONTEXT_TOKENS,
        "n_pages": 4,
        "page_tokens": 32,
        "kv_type": "f16",
        "explanation": "it fits",
    }
    return MemoryPlan(**{**values, **changes})


class FakeEngine:
    """Answers each request with the script's tokens ("hello" and the end by default), one a step."""

    def __init__(self, sink):
        self.sink = sink
        self.script = [*b"hello", EOS]
        self.step_s = 0.001
        self.prefill_s = 0.0
        self.error = None  # fail every request with this word
        self.fails_warm_up = False
        self.top = ()
        self.logprob_of = lambda request: -0.5
        self.requests = []
        self.cancelled = set()
        self.running = {}
        self.failed = False
        self.submit_error = None
        self._inbox = queue.Queue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self):
        self._thread.start()

    def submit(self, request):
        if self._stop.is_set():
            raise EngineStoppedError("stopped")
        if self.submit_error:
            raise self.submit_error
        if request.id != "warm-up":
            self.requests.append(request)
        self._inbox.put(request)

    def cancel(self, request_id):
        self.cancelled.add(request_id)

    def stats(self):
        return SimpleNamespace(
            running=len(self.running),
            failed="RuntimeError: broken" if self.failed else None,
            waiting=0,
            pages_total=4,
            pages_used=0,
            pages_reserved=0,
            pages_cached=0,
            cache_queried_tokens_total=0,
            cache_hit_tokens_total=0,
            preemptions_total=0,
            drafts_total=0,
            drafted_tokens_total=0,
            accepted_tokens_total=0,
            prompt_tokens_total=0,
            generation_tokens_total=0,
            prompt_tokens_per_s=0.0,
            generation_tokens_per_s=0.0,
            heartbeat_s=time.monotonic(),
        )

    def healthy(self):
        return not self.failed

    def stop(self, drain_s):
        end = time.monotonic() + drain_s
        while self.running and time.monotonic() < end:
            time.sleep(0.005)
        self._stop.set()
        self._thread.join(5)

    def _run(self):
        while not self._stop.is_set():
            self._take()
            events = []
            for request_id, sequence in list(self.running.items()):
                event = self._step(request_id, sequence)
                if event is not None:
                    events.append(event)
                if isinstance(event, FinishEvent):
                    del self.running[request_id]
            if events:
                self.sink(events)
        self.sink(
            [
                self._finish(sequence, FinishReason.FAILED, "engine_stopped")
                for sequence in self.running.values()
            ]
        )
        self.running.clear()

    def _take(self):
        try:
            while True:
                request = self._inbox.get(timeout=self.step_s if self.running else 0.02)
                self.running[request.id] = SimpleNamespace(
                    request=request,
                    sent=0,
                    told=False,
                    ready=time.monotonic() + (0 if request.id == "warm-up" else self.prefill_s),
                )
        except queue.Empty:
            return

    def _step(self, request_id, sequence):
        request = sequence.request
        if request_id in self.cancelled:
            return self._finish(sequence, FinishReason.CANCELLED)
        if request.deadline is not None and time.monotonic() >= request.deadline:
            return self._finish(sequence, FinishReason.DEADLINE)
        if time.monotonic() < sequence.ready:
            return None
        if self.error and (self.fails_warm_up or request_id != "warm-up"):
            return self._finish(sequence, FinishReason.FAILED, self.error)
        if sequence.sent >= request.max_tokens:
            return self._finish(sequence, FinishReason.LENGTH)
        if request.prompt_logprobs is not None and not sequence.told:
            sequence.told = True
            count = len(request.prompt_ids) - 1
            tops = ((((7, -1.0),) * request.prompt_logprobs),) * count
            return PromptEvent(request_id, 1, tuple(-0.25 * (n + 1) for n in range(count)), tops)
        token_id = self.script[sequence.sent % len(self.script)]
        sequence.sent += 1
        if token_id in request.stop_token_ids:
            return self._finish(sequence, FinishReason.STOP)
        logprob = self.logprob_of(request) if request.sampling.top_logprobs is not None else None
        return TokenEvent(request_id, token_id, logprob, self.top)

    def _finish(self, sequence, reason, error=None):
        return FinishEvent(
            sequence.request.id, reason, len(sequence.request.prompt_ids), sequence.sent, 1.0, 2.0, 3.0, error
        )


class FakeWorld:
    """Parts for a ModelHost, and handles on what they made."""

    def __init__(self):
        self.models = []
        self.engines = []
        self.loads = []  # (name, totals of the plans beside it), in order
        self.load_s = 0.0
        self.load_error = None
        self.room_bytes = None
        self.sizes = {}
        self.next_plan = plan()
        self.on_engine = lambda engine: None

    def parts(self):
        return Parts(
            load_model=self._load,
            make_engine=self._engine,
            make_template=lambda model: FakeTemplate() if model.chat_template else None,
            plan=self._plan,
        )

    def _plan(self, path, settings, *, others=(), leaving=()):
        """The next plan; where `room_bytes` is set, what is left of it beside the others."""
        if self.room_bytes is None:
            return self.next_plan
        taken = sum(other.total_bytes for other in others)
        total, left = self.sizes.get(Path(path).stem, 37), max(0, self.room_bytes - taken)
        return plan(
            total_bytes=total,
            available_bytes=left,
            fits=total <= left,
            explanation=f"{total} of {left}",
        )

    def _load(self, path, settings, *, others=()):
        self.loads.append((Path(path).stem, [other.total_bytes for other in others]))
        time.sleep(self.load_s)
        if self.load_error:
            raise self.load_error
        model = FakeModel(path)
        if self.room_bytes is not None:
            model.plan = self._plan(path, settings, others=others)
            model.plan.ensure_fits()
        self.models.append(model)
        return model

    def _engine(self, model, max_waiting, sink):
        engine = FakeEngine(sink)
        self.engines.append(engine)
        self.on_engine(engine)
        return engine
