"""GenerateService over real gRPC and a fake engine: answers, every bad field, cancel, deadline, slow readers."""

import asyncio
import time

import grpc
import pytest
from google.rpc import error_details_pb2

from daemon.errors import from_rpc_error
from quantd.v1 import generate_pb2 as pb
from quantd.v1 import generate_service_pb2 as rpc
from runtime.errors import QueueFullError
from tests.daemon.fakes import CONTEXT_TOKENS


async def collect(stream):
    return [event async for event in stream]


def text_of(events):
    return "".join(event.delta.text for event in events if event.HasField("delta"))


async def refusal(call):
    """The ApiError that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "__aiter__"):
            await collect(call)
        else:
            await call
    assert caught.value.code() is not grpc.StatusCode.UNKNOWN
    assert "Traceback" not in caught.value.details()
    return from_rpc_error(caught.value)


async def until(condition, seconds=3.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        await asyncio.sleep(0.005)


async def test_a_stream_is_started_deltas_done(world):
    call = world.generate.Generate(pb.GenerateRequest(text="hi", options=pb.GenerationOptions()))
    events = await collect(call)
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["started", *["delta"] * 5, "done"]
    started, done = events[0].started, events[-1].done
    assert started.model == "tiny"
    assert started.prompt_tokens == 2
    assert abs(started.created_unix_ms / 1000 - time.time()) < 60
    assert dict(await call.initial_metadata())["x-request-id"] == started.request_id
    assert text_of(events) == "hello"
    assert done.finish_reason == pb.FINISH_REASON_STOP
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (2, 6)
    assert (done.timings.prefill_ms, done.timings.decode_ms) == (2, 3)
    assert 1 <= done.timings.queue_ms < 500, "that of the engine, and the time in the line before it"
    assert [list(event.delta.token_ids) for event in events[1:-1]] == [[byte] for byte in b"hello"]


@pytest.mark.parametrize(
    ("given", "kept"), [("abc-1.2_Z", True), ("x" * 65, False), ("a b", False), ("", False)]
)
async def test_a_callers_request_id_is_kept_if_harmless(world, given, kept):
    calls = [
        world.generate.Generate(pb.GenerateRequest(text="hi"), metadata=(("x-request-id", given),))
        for _ in range(2)
    ]
    for events in [await collect(call) for call in calls]:
        assert (events[0].started.request_id == given) == kept


async def test_the_seed_is_drawn_and_reported(world):
    done = (await collect(world.generate.Generate(pb.GenerateRequest(text="hi"))))[-1].done
    assert done.seed == world.engine.requests[-1].sampling.seed
    options = pb.GenerationOptions(sampling=pb.SamplingParams(seed=2**64 - 1))
    done = (await collect(world.generate.Generate(pb.GenerateRequest(text="hi", options=options))))[-1].done
    assert done.seed == 2**64 - 1


async def test_chat_renders_the_template(world):
    request = pb.ChatRequest(
        messages=[
            pb.ChatMessage(role="developer", content="be kind"),
            pb.ChatMessage(role="user", content="hi"),
        ]
    )
    events = await collect(world.generate.Chat(request))
    assert text_of(events) == "hello"
    assert bytes(world.engine.requests[-1].prompt_ids) == b"system:be kind\nuser:hi\n"


async def test_unary_forms_give_the_same_answer(world):
    answer = await world.generate.GenerateUnary(
        rpc.GenerateUnaryRequest(request=pb.GenerateRequest(text="hi"))
    )
    assert answer.answer.text == "hello"
    assert answer.started.prompt_tokens == 2
    assert answer.done.finish_reason == pb.FINISH_REASON_STOP
    chat = pb.ChatRequest(messages=[pb.ChatMessage(role="user", content="hi")])
    answer = await world.generate.ChatUnary(rpc.ChatUnaryRequest(request=chat))
    assert answer.answer.text == "hello"
    assert list(answer.answer.token_ids) == list(b"hello")


async def test_max_tokens_and_the_room_of_the_context(world):
    options = pb.GenerationOptions(max_tokens=3)
    events = await collect(world.generate.Generate(pb.GenerateRequest(text="hi", options=options)))
    assert text_of(events) == "hel"
    assert events[-1].done.finish_reason == pb.FINISH_REASON_LENGTH
    await collect(world.generate.Generate(pb.GenerateRequest(text="x" * 100)))
    assert world.engine.requests[-1].max_tokens == CONTEXT_TOKENS - 100
    options = pb.GenerationOptions(max_tokens=CONTEXT_TOKENS)
    await collect(world.generate.Generate(pb.GenerateRequest(text="x" * 100, options=options)))
    assert world.engine.requests[-1].max_tokens == CONTEXT_TOKENS - 100


async def test_ignore_eos_and_echo_and_tokens(world):
    options = pb.GenerationOptions(max_tokens=8, ignore_eos=True)
    request = pb.GenerateRequest(tokens=pb.TokenIds(ids=b"abc"), options=options, echo=True)
    events = await collect(world.generate.Generate(request))
    assert text_of(events) == "abchellohe"
    assert world.engine.requests[-1].stop_token_ids == frozenset()
    assert events[-1].done.usage.completion_tokens == 8


async def test_a_stop_text_ends_the_answer_and_the_session(world):
    world.engine.script = list(b"one two three four five six seven")
    options = pb.GenerationOptions(stop=["two", "zzz"])
    events = await collect(world.generate.Generate(pb.GenerateRequest(text="hi", options=options)))
    done = events[-1].done
    assert text_of(events) == "one "
    assert (done.finish_reason, done.stop_text) == (pb.FINISH_REASON_STOP, "two")
    assert done.usage.completion_tokens == len("one two")
    await until(lambda: not world.engine.running)


async def test_log_probabilities_come_with_each_token(world):
    world.engine.top = ((104, -0.5), (101, -1.5))
    options = pb.GenerationOptions(top_logprobs=2)
    events = await collect(world.generate.Generate(pb.GenerateRequest(text="hi", options=options)))
    logprobs = [one for event in events for one in event.delta.logprobs]
    assert b"".join(one.token for one in logprobs) == b"hello"
    assert [(top.token, top.logprob) for top in logprobs[0].top] == [(b"h", -0.5), (b"e", -1.5)]
    assert logprobs[0].logprob == -0.5


BAD_OPTIONS = [
    ("options.max_tokens", {"max_tokens": value})
    for value in (0, -1, CONTEXT_TOKENS + 1, 2**31 - 1, -(2**31))
]
BAD_OPTIONS += [("options.top_logprobs", {"top_logprobs": value}) for value in (-1, 21, 2**31 - 1, -(2**31))]
BAD_OPTIONS += [
    ("options.stop", {"stop": ["x"] * 17}),
    ("options.stop[1]", {"stop": ["x", ""]}),
    ("options.stop[0]", {"stop": ["x" * 257]}),
    ("options.stop[0]", {"stop": ["é" * 129]}),
]
NAN, INF = float("nan"), float("inf")
BAD_SAMPLING = {
    "temperature": (-0.1, 2.1, 1e38, NAN, INF, -INF),
    "top_k": (-1, 1001, 2**31 - 1, -(2**31)),
    "top_p": (0, -0.1, 1.1, NAN, INF),
    "min_p": (-0.1, 1.1, NAN, INF),
    "repeat_penalty": (0, -1, 2.1, NAN, INF),
    "repeat_last_n": (-1, 4097, 2**31 - 1, -(2**31)),
    "presence_penalty": (-2.1, 2.1, NAN, INF),
    "frequency_penalty": (-2.1, 2.1, NAN, -INF),
    "logit_bias": (
        {-1: 1.0},
        {257: 1.0},
        {2**31 - 1: 1.0},
        {0: 101.0},
        {0: -101.0},
        {0: NAN},
        dict.fromkeys(range(1025), 0.0),
    ),
}
BAD_OPTIONS += [
    (f"options.sampling.{name}", {"sampling": pb.SamplingParams(**{name: value})})
    for name, values in BAD_SAMPLING.items()
    for value in values
]


async def test_every_bad_option_is_refused_by_name(world):
    chat = [pb.ChatMessage(role="user", content="hi")]
    for field, options in BAD_OPTIONS:
        error = await refusal(
            world.generate.Generate(pb.GenerateRequest(text="hi", options=pb.GenerationOptions(**options)))
        )
        assert (error.reason, error.field) == ("INVALID_ARGUMENT", field), options
        error = await refusal(
            world.generate.ChatUnary(
                rpc.ChatUnaryRequest(
                    request=pb.ChatRequest(messages=chat, options=pb.GenerationOptions(**options))
                )
            )
        )
        assert (error.reason, error.field) == ("INVALID_ARGUMENT", field), options
    assert not world.engine.requests
    assert world.host.num_requests == 0


async def test_the_edges_of_every_range_are_accepted(world):
    good = [
        {"temperature": 0, "top_k": 0, "top_p": 1, "min_p": 0, "repeat_penalty": 2, "repeat_last_n": 0},
        {
            "temperature": 2,
            "top_k": 1000,
            "top_p": 1e-6,
            "min_p": 1,
            "repeat_penalty": 1e-3,
            "repeat_last_n": 4096,
        },
        {"presence_penalty": -2, "frequency_penalty": 2, "logit_bias": {0: -100, 256: 100}, "seed": 0},
    ]
    for sampling in good:
        options = pb.GenerationOptions(
            sampling=pb.SamplingParams(**sampling),
            top_logprobs=20,
            stop=["x" * 256] * 16,
            max_tokens=CONTEXT_TOKENS,
        )
        assert (
            text_of(await collect(world.generate.Generate(pb.GenerateRequest(text="hi", options=options))))
            == "hello"
        )


async def test_unset_options_take_the_documented_defaults(world):
    await collect(world.generate.Generate(pb.GenerateRequest(text="hi")))
    sampling = world.engine.requests[-1].sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.8, 40, 0.95, 0.05)
    assert (sampling.repeat_penalty, sampling.repeat_last_n, sampling.top_logprobs) == (1.0, 64, None)


@pytest.mark.parametrize(
    ("request_", "reason", "field"),
    [
        (pb.GenerateRequest(), "INVALID_ARGUMENT", "prompt"),
        (pb.GenerateRequest(text=""), "INVALID_ARGUMENT", "text"),
        (pb.GenerateRequest(tokens=pb.TokenIds()), "INVALID_ARGUMENT", "tokens.ids"),
        (pb.GenerateRequest(tokens=pb.TokenIds(ids=[-1])), "INVALID_ARGUMENT", "tokens.ids"),
        (pb.GenerateRequest(tokens=pb.TokenIds(ids=[257])), "INVALID_ARGUMENT", "tokens.ids"),
        (pb.GenerateRequest(tokens=pb.TokenIds(ids=[2**31 - 1])), "INVALID_ARGUMENT", "tokens.ids"),
        (pb.GenerateRequest(text="x" * CONTEXT_TOKENS), "CONTEXT_LENGTH_EXCEEDED", "text"),
        (pb.GenerateRequest(text="x" * 100_000), "CONTEXT_LENGTH_EXCEEDED", "text"),
        (
            pb.GenerateRequest(tokens=pb.TokenIds(ids=[1] * CONTEXT_TOKENS)),
            "CONTEXT_LENGTH_EXCEEDED",
            "tokens",
        ),
        (pb.GenerateRequest(model="nope", text="hi"), "MODEL_NOT_FOUND", "model"),
        (pb.GenerateRequest(model="../tiny", text="hi"), "MODEL_NOT_FOUND", "model"),
        (pb.GenerateRequest(model="x" * 5000, text="hi"), "MODEL_NOT_FOUND", "model"),
        (pb.ChatRequest(), "INVALID_ARGUMENT", "messages"),
        (pb.ChatRequest(messages=[pb.ChatMessage(content="hi")]), "INVALID_ARGUMENT", "messages[0].role"),
        (
            pb.ChatRequest(messages=[pb.ChatMessage(role="user"), pb.ChatMessage(role="robot")]),
            "INVALID_ARGUMENT",
            "messages[1].role",
        ),
        (pb.ChatRequest(messages=[pb.ChatMessage(role="user")] * 4097), "INVALID_ARGUMENT", "messages"),
        (
            pb.ChatRequest(messages=[pb.ChatMessage(role="user", content="x" * 500)]),
            "CONTEXT_LENGTH_EXCEEDED",
            "messages",
        ),
    ],
)
async def test_bad_prompts_are_refused(world, request_, reason, field):
    method = world.generate.Chat if isinstance(request_, pb.ChatRequest) else world.generate.Generate
    error = await refusal(method(request_))
    assert (error.reason, error.field) == (reason, field)
    assert world.host.num_requests == 0
    assert text_of(await collect(world.generate.Generate(pb.GenerateRequest(text="hi")))) == "hello"


async def test_a_message_over_the_limit_is_refused_by_grpc(world):
    error = await refusal(world.generate.Generate(pb.GenerateRequest(text="x" * (4 * 2**20 + 100))))
    assert error.reason == "REQUEST_TOO_LARGE"


async def test_context_errors_carry_code_and_both_numbers(world):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(world.generate.Generate(pb.GenerateRequest(text="x" * 500)))
    assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE
    assert "500" in caught.value.details()
    assert str(CONTEXT_TOKENS) in caught.value.details()


async def test_cancel_frees_the_session_also_during_a_long_prompt(world):
    world.engine.prefill_s = 60
    call = world.generate.Generate(pb.GenerateRequest(text="hi"))
    await call.read()  # Started
    await until(lambda: world.engine.running)
    call.cancel()
    await until(lambda: not world.engine.running)
    await until(lambda: world.host.num_requests == 0)


async def test_cancel_while_decoding_frees_the_session(world):
    world.engine.script = [104]
    call = world.generate.Generate(pb.GenerateRequest(text="hi"))
    for _ in range(5):
        await call.read()
    call.cancel()
    await until(lambda: not world.engine.running and world.host.num_requests == 0)


async def test_cancel_of_a_unary_call_frees_the_session(world):
    world.engine.prefill_s = 60
    call = world.generate.GenerateUnary(rpc.GenerateUnaryRequest(request=pb.GenerateRequest(text="hi")))
    await until(lambda: world.engine.running)
    call.cancel()
    await until(lambda: not world.engine.running and world.host.num_requests == 0)


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.2])
async def test_deadlines_end_the_call_and_the_work(world, seconds):
    world.engine.prefill_s = 60
    started = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(world.generate.Generate(pb.GenerateRequest(text="hi"), timeout=seconds))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - started < seconds + 1
    await until(lambda: not world.engine.running and world.host.num_requests == 0)


async def test_the_engine_is_told_the_deadline(world):
    await collect(world.generate.Generate(pb.GenerateRequest(text="hi"), timeout=50))
    assert 0 < world.engine.requests[-1].deadline - time.monotonic() < 51  # the transport rounds up
    await collect(world.generate.Generate(pb.GenerateRequest(text="hi")))
    assert world.engine.requests[-1].deadline is None


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("non_finite_logits", "NON_FINITE_LOGITS"),
        ("no_token", "CONSTRAINT_FAILED"),
        ("engine_failed", "INTERNAL"),
        ("engine_stopped", "UNAVAILABLE"),
        ("model_file_changed", "MODEL_FILE_CHANGED"),
        ("something else", "INTERNAL"),
    ],
)
async def test_failures_of_the_engine_have_reasons(world, word, reason):
    world.engine.error = word
    assert (await refusal(world.generate.Generate(pb.GenerateRequest(text="hi")))).reason == reason
    world.engine.error = None
    assert text_of(await collect(world.generate.Generate(pb.GenerateRequest(text="hi")))) == "hello"


async def test_an_unexpected_exception_leaks_nothing(world):
    world.engine.submit_error = RuntimeError("secret /etc/path")
    error = await refusal(world.generate.Generate(pb.GenerateRequest(text="hi")))
    assert error.reason == "INTERNAL"
    assert "secret" not in error.message
    assert world.host.num_requests == 0


async def test_a_full_queue_says_when_to_come_back(world):
    world.engine.submit_error = QueueFullError("full", retry_after_s=2.5)
    error = await refusal(world.generate.Generate(pb.GenerateRequest(text="hi")))
    assert (error.reason, error.retry_after_s) == ("QUEUE_FULL", 2.5)


async def test_admission_is_bounded_before_any_work(world):
    world.engine.prefill_s = 60
    calls = [world.generate.Generate(pb.GenerateRequest(text="hi")) for _ in range(4)]
    for call in calls:
        await call.read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(world.generate.Generate(pb.GenerateRequest(text="hi")))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert from_rpc_error(caught.value).retry_after_s == 1.0
    for call in calls:
        call.cancel()
    await until(lambda: world.host.num_requests == 0)


async def test_an_error_after_the_first_token_is_a_status_too(world):
    world.engine.script = [104]
    call = world.generate.Generate(pb.GenerateRequest(text="hi"))
    events = call.__aiter__()
    for _ in range(2):
        await events.__anext__()
    world.engine.error = "non_finite_logits"
    assert (await refusal(events)).reason == "NON_FINITE_LOGITS"


async def test_metrics_count_accepted_rejected_and_failed(world):
    await collect(world.generate.Generate(pb.GenerateRequest(text="hi")))
    await refusal(world.generate.Generate(pb.GenerateRequest(text="")))
    world.engine.error = "non_finite_logits"
    await refusal(world.generate.Generate(pb.GenerateRequest(text="hi")))
    text = world.host.metrics.render().decode()
    assert 'vllm:request_success_total{engine="0",finished_reason="stop",model_name="tiny"} 1.0' in text
    assert 'quantd_requests_rejected_total{reason="INVALID_ARGUMENT"} 1.0' in text
    assert 'quantd_requests_failed_total{reason="NON_FINITE_LOGITS"} 1.0' in text
    assert 'vllm:time_to_first_token_seconds_count{engine="0",model_name="tiny"} 1.0' in text


async def test_no_chat_template_is_a_precondition(world):
    world.fake.models.clear()
    await world.host.unload(world.host.find("tiny"))

    load = world.host.parts.load_model

    def load_without_template(path, settings, **options):
        model = load(path, settings, **options)
        model.chat_template = None
        return model

    object.__setattr__(world.host.parts, "load_model", load_without_template)
    await world.host.load_path(world.folder / "tiny.gguf")
    error = await refusal(
        world.generate.Chat(pb.ChatRequest(messages=[pb.ChatMessage(role="user", content="hi")]))
    )
    assert error.reason == "NO_CHAT_TEMPLATE"


async def test_bad_request_details_name_the_field(world):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(world.generate.Generate(pb.GenerateRequest(text="")))
    details = dict(caught.value.trailing_metadata())["grpc-status-details-bin"]
    from google.rpc import status_pb2

    status = status_pb2.Status.FromString(details)
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in status.details if detail.Is(bad.DESCRIPTOR))
    assert bad.field_violations[0].field == "text"


async def test_places_in_the_line_are_told_and_priorities_count(world):
    world.engine.prefill_s = 0.2
    request = pb.GenerateRequest(text="hi")
    running = [asyncio.ensure_future(collect(world.generate.Generate(request))) for _ in range(2)]
    await until(lambda: len(world.engine.requests) == 2)
    low = pb.GenerateRequest(
        text="low", options=pb.GenerationOptions(report_queue_position=True, priority=-1)
    )
    high = pb.GenerateRequest(text="high", options=pb.GenerationOptions(report_queue_position=True))
    first = asyncio.ensure_future(collect(world.generate.Generate(low)))
    await until(lambda: world.host.snapshots()[0].requests_waiting == 1)
    second = asyncio.ensure_future(collect(world.generate.Generate(high)))
    places = {}
    for name, call in (("low", first), ("high", second)):
        places[name] = [event.queued.position for event in await call if event.HasField("queued")]
    await asyncio.gather(*running)
    assert places["high"] == [1]
    assert places["low"][:2] == [1, 2]
    prompts = [len(sent.prompt_ids) for sent in world.engine.requests]
    assert prompts == [2, 2, 4, 3], "the urgent one first"


async def test_a_priority_that_is_none_is_refused(world):
    request = pb.GenerateRequest(text="hi", options=pb.GenerationOptions(priority=11))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(world.generate.Generate(request))
    assert from_rpc_error(caught.value).field == "options.priority"
