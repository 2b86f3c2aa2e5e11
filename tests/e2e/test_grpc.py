"""The real daemon over gRPC: every service, rich errors, cancel, deadlines, reproducible answers under load."""

import re
import threading
import time
import urllib.request
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from daemon.errors import from_rpc_error
from quantd.v1 import generate_pb2 as pb
from quantd.v1 import generate_service_pb2 as rpc
from quantd.v1 import model_service_pb2, quantize_service_pb2, tokenizer_service_pb2


def options(max_tokens=16, **sampling):
    return pb.GenerationOptions(max_tokens=max_tokens, sampling=pb.SamplingParams(**sampling))


def text_of(events):
    return "".join(event.delta.text for event in events if event.HasField("delta"))


def refusal(call, *arguments, **options):
    with pytest.raises(grpc.RpcError) as caught:
        list(call(*arguments, **options))
    return caught.value


def gauge(served, name):
    text = urllib.request.urlopen(f"{served.url}/metrics", timeout=5).read().decode()
    return sum(
        float(value) for value in re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
    )


HELD = ("vllm:num_requests_running", "vllm:num_requests_waiting", 'quantd_kv_cache_bytes{state="used"}')


def wait_until_idle(served, seconds=5.0):
    """Nothing runs, waits or holds pages.  A request whose caller is gone may still be on its way to the engine."""
    end = time.monotonic() + seconds
    while any(gauge(served, name) for name in HELD):
        assert time.monotonic() < end, "a session is still held"
        time.sleep(0.02)


def test_generate_streams_text_and_ends(stubs):
    events = list(
        stubs.generate.Generate(pb.GenerateRequest(text="Once upon a time", options=options(temperature=0)))
    )
    assert events[0].started.model == "demo"
    done = events[-1].done
    assert done.usage.completion_tokens <= 16
    assert done.usage.prompt_tokens == events[0].started.prompt_tokens > 0
    assert text_of(events).strip()
    assert done.timings.prefill_ms > 0


def test_chat_answers_with_the_models_template(stubs):
    request = pb.ChatRequest(messages=[pb.ChatMessage(role="user", content="Hello!")], options=options())
    answer = stubs.generate.ChatUnary(rpc.ChatUnaryRequest(request=request))
    assert answer.answer.text
    assert answer.done.finish_reason in (pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH)


def test_streamed_and_unary_answers_are_the_same(stubs):
    request = pb.GenerateRequest(text="A fox", options=options(seed=5))
    streamed = text_of(stubs.generate.Generate(request))
    assert stubs.generate.GenerateUnary(rpc.GenerateUnaryRequest(request=request)).answer.text == streamed


def test_token_bytes_join_to_the_text(stubs):
    request = pb.GenerateRequest(text="A fox", options=options(seed=5))
    request.options.top_logprobs = 3
    events = list(stubs.generate.Generate(request))
    logprobs = [one for event in events for one in event.delta.logprobs]
    assert b"".join(one.token for one in logprobs).decode(errors="replace") == text_of(events)
    assert all(len(one.top) == 3 and one.top[0].logprob <= 0 for one in logprobs)


def test_tokenize_and_back(stubs):
    text = "Hello, world! 12 + 7 = 19. Ünïcödé 🦊"
    ids = stubs.tokenizer.Tokenize(tokenizer_service_pb2.TokenizeRequest(text=text, no_special=True)).ids
    assert stubs.tokenizer.Detokenize(tokenizer_service_pb2.DetokenizeRequest(ids=ids)).text == text
    events = list(
        stubs.generate.Generate(pb.GenerateRequest(tokens=pb.TokenIds(ids=ids), options=options(1)))
    )
    assert events[0].started.prompt_tokens == len(ids)


def test_models_and_plans(stubs):
    models = stubs.models.ListModels(model_service_pb2.ListModelsRequest()).models
    assert [(one.name, one.loaded) for one in models[:2]] == [("demo", True), ("demo-f16", False)]
    assert models[0].architecture == "llama"
    assert models[0].size_bytes < models[1].size_bytes
    assert models[0].num_parameters == models[1].num_parameters > 1e6
    assert models[0].has_chat_template
    plan = stubs.models.PlanMemory(model_service_pb2.PlanMemoryRequest(name="demo-f16", sessions=1)).plan
    parts = plan.weights_bytes + plan.kv_arena_bytes + plan.scratch_bytes + plan.process_bytes
    assert plan.total_bytes == parts
    assert plan.fits


def test_same_seed_same_text_alone_and_under_load(stubs, served):
    request = pb.GenerateRequest(text="The capital of", options=options(24, seed=11, temperature=1.0))
    alone = text_of(stubs.generate.Generate(request))
    others = [
        threading.Thread(
            target=lambda n=n: list(
                stubs.generate.Generate(
                    pb.GenerateRequest(text="story " * (n + 1), options=options(64, seed=n))
                )
            )
        )
        for n in range(6)
    ]
    for other in others:
        other.start()
    under_load = [text_of(stubs.generate.Generate(request)) for _ in range(2)]
    for other in others:
        other.join()
    assert under_load == [alone, alone]
    wait_until_idle(served)


def test_stop_text(stubs):
    whole = text_of(
        stubs.generate.Generate(pb.GenerateRequest(text="Once", options=options(24, temperature=0)))
    )
    stop = whole[len(whole) // 2 :][:3]
    request = pb.GenerateRequest(text="Once", options=options(24, temperature=0))
    request.options.stop.append(stop)
    events = list(stubs.generate.Generate(request))
    assert text_of(events) == whole[: whole.index(stop)]
    assert events[-1].done.stop_text == stop


def test_cancel_frees_the_session(stubs, served):
    call = stubs.generate.Generate(
        pb.GenerateRequest(text="Once", options=pb.GenerationOptions(ignore_eos=True))
    )
    for _ in range(3):
        next(call)
    call.cancel()
    wait_until_idle(served)


def test_cancel_and_deadline_free_the_session_during_a_long_prompt(stubs, served):
    context = stubs.models.GetModel(model_service_pb2.GetModelRequest()).model.session_context_tokens
    long_prompt = pb.GenerateRequest(tokens=pb.TokenIds(ids=[5] * (context - 4)), options=options(4))
    call = stubs.generate.Generate(long_prompt)
    next(call)  # Started
    call.cancel()
    wait_until_idle(served)
    error = refusal(stubs.generate.Generate, long_prompt, timeout=0.02)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until_idle(served)


def test_errors_are_rich(stubs):
    error = refusal(stubs.generate.Generate, pb.GenerateRequest(text="x", options=options(temperature=3)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(bad)
    assert (info.domain, info.reason) == ("quantd", "INVALID_ARGUMENT")
    assert bad.field_violations[0].field == "options.sampling.temperature"


def test_a_prompt_longer_than_the_context(stubs):
    started = time.monotonic()
    error = refusal(stubs.generate.Generate, pb.GenerateRequest(text="word " * 50_000))
    assert error.code() is grpc.StatusCode.OUT_OF_RANGE
    assert from_rpc_error(error).reason == "CONTEXT_LENGTH_EXCEEDED"
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("name", ["nope", "../demo", "/etc/passwd", "demo.gguf", "demo-f17"])
def test_models_that_do_not_serve(stubs, name):
    assert from_rpc_error(
        refusal(stubs.generate.Generate, pb.GenerateRequest(model=name, text="x"))
    ).reason == ("MODEL_NOT_FOUND")


def test_quantize_reports_progress_and_a_result(stubs, served):
    request = quantize_service_pb2.QuantizeRequest(source="demo-f16", output="made", recipe="Q8_0")
    events = list(stubs.quantize.Quantize(request))
    try:
        assert events[0].WhichOneof("event") == "progress"
        result = events[-1].result
        assert result.output == "made"
        assert result.output_bytes == (served.models / "made.gguf").stat().st_size
        assert 8 < result.bits_per_weight < 9.5
        again = refusal(stubs.quantize.Quantize, request)
        assert again.code() is grpc.StatusCode.ALREADY_EXISTS
        assert len(result.data_sha256) == 64
    finally:
        (served.models / "made.gguf").unlink()
        (served.models / "made.gguf.manifest.json").unlink()


def test_a_dry_run_and_a_comparison(stubs, served):
    before = sorted(path.name for path in served.models.iterdir())
    request = quantize_service_pb2.QuantizeRequest(
        source="demo-f16", output="made", recipe="Q8_0", dry_run=True
    )
    events = list(stubs.quantize.Quantize(request))
    planned = {event.planned_tensor.name: event.planned_tensor for event in events[:-1]}
    assert planned["blk.0.attn_q.weight"].to_type == "Q8_0"
    assert events[-1].plan.recipe == "Q8_0"
    assert sorted(path.name for path in served.models.iterdir()) == before
    text = (Path(__file__).resolve().parents[2] / "ops/demo/heldout.txt").read_text(encoding="utf-8")[:5000]
    request.dry_run, request.verify_text, request.max_increase_percent = False, text, -50
    *others, last = stubs.quantize.Quantize(request)
    try:
        assert {event.WhichOneof("event") for event in others} == {"progress", "verifying"}
        assert last.result.output_bytes == events[-1].plan.output_bytes
        divergence = last.result.divergence
        assert 0 < divergence.kl_mean < 0.05
        assert not divergence.passed
        assert divergence.chunks == others[-1].verifying.chunks_done >= 2
    finally:
        (served.models / "made.gguf").unlink()
        (served.models / "made.gguf.manifest.json").unlink()
    request.verify_text = "too short"
    error = refusal(stubs.quantize.Quantize, request)
    assert from_rpc_error(error).field == "verify_text"
    assert sorted(path.name for path in served.models.iterdir()) == before


def test_quantizations_wait_for_each_other_and_a_cancelled_one_leaves_no_file(stubs, served):
    before = sorted(path.name for path in served.models.iterdir())

    call = stubs.quantize.Quantize(
        quantize_service_pb2.QuantizeRequest(source="demo-f16", output="cancelled")
    )
    time.sleep(0.1)
    other = stubs.quantize.Quantize(
        quantize_service_pb2.QuantizeRequest(source="demo-f16", output="other", recipe="Q9_Z")
    )
    assert next(other).queued.jobs_ahead == 1
    call.cancel()
    # Now that nothing is in its way: recipes that are not there are refused by name.
    with pytest.raises(grpc.RpcError) as caught:
        list(other)
    error = from_rpc_error(caught.value)
    assert error.grpc_code.name == "INVALID_ARGUMENT"
    assert "Q9_Z" in error.message
    assert sorted(path.name for path in served.models.iterdir()) == before


def test_health_and_reflection(stubs):
    health = health_pb2_grpc.HealthStub(stubs.channel)
    names = ["", "quantd.v1.GenerateService", "quantd.v1.TokenizerService", "quantd.v1.ModelService"]
    names.append("quantd.v1.EmbeddingService")
    for name in [*names, "quantd.v1.QuantizeService"]:
        assert health.Check(health_pb2.HealthCheckRequest(service=name)).status == 1
    reflection = reflection_pb2_grpc.ServerReflectionStub(stubs.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    listed = next(reflection.ServerReflectionInfo(iter([request]))).list_services_response.service
    assert {*names[1:], "grpc.health.v1.Health"} <= {one.name for one in listed}
