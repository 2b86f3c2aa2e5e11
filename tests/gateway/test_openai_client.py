"""The official client against a real server."""

from __future__ import annotations

import openai
import pytest

from daemon.errors import ApiError
from quantd.v1 import generate_pb2 as pb


@pytest.fixture
def ask(serve):
    with openai.OpenAI(
        base_url=f"{serve(ping_s=0.05, first_event_s=0.1)}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


MESSAGES = [{"role": "user", "content": "Hi"}]


def test_chat(ask, backend):
    answer = ask.chat.completions.create(
        model="demo", messages=MESSAGES, max_tokens=7, temperature=0.5, seed=3
    )
    assert answer.choices[0].message.content == "Hello, wörld!"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.created == 1_700_000_000
    assert answer.usage.total_tokens == 9
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    sent = backend.requests[0]
    assert sent.options.max_tokens == 7
    assert sent.options.sampling.seed == 3
    assert sent.options.sampling.temperature == 0.5
    assert not sent.options.sampling.HasField("top_p")
    assert not sent.options.HasField("top_logprobs")


def test_stream(ask, backend):
    backend.texts = [0.2, "Hello", 0.2, ", wörld!"]  # pings before and between the tokens
    stream = ask.chat.completions.create(
        model="demo", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert [c.choices[0].delta.content for c in chunks if c.choices] == ["", "Hello", ", wörld!", None]
    assert [c.choices[0].delta.role for c in chunks if c.choices] == ["assistant", None, None, None]
    assert [c.choices[0].finish_reason for c in chunks if c.choices] == [None, None, None, "stop"]
    assert len({c.id for c in chunks}) == 1
    assert {c.created for c in chunks} == {1_700_000_000}
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 4
    assert all(c.usage is None for c in chunks[:-1])


def test_stream_without_usage(ask):
    chunks = list(ask.chat.completions.create(model="demo", messages=MESSAGES, stream=True))
    assert all(len(c.choices) == 1 for c in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_logprobs(ask, backend):
    answer = ask.chat.completions.create(model="demo", messages=MESSAGES, logprobs=True, top_logprobs=1)
    content = answer.choices[0].logprobs.content
    assert "".join(item.token for item in content) == answer.choices[0].message.content
    assert content[2].bytes == list("wörld".encode())
    assert content[0].top_logprobs[0].logprob == -0.5
    stream = ask.chat.completions.create(model="demo", messages=MESSAGES, logprobs=True, stream=True)
    tokens = [t.token for c in stream if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert "".join(tokens) == "Hello, wörld!"
    assert [r.options.top_logprobs for r in backend.requests] == [1, 0]


def test_completions(ask, backend):
    answer = ask.completions.create(
        model="demo", prompt="Once", logprobs=1, stop=["x"], logit_bias={"5": -100}
    )
    assert answer.object == "text_completion"
    assert answer.choices[0].text == "Hello, wörld!"
    assert answer.choices[0].logprobs.tokens == backend.texts
    assert answer.choices[0].logprobs.text_offset == [0, 5, 7, 12]
    sent = backend.requests[0]
    assert (sent.text, sent.options.max_tokens, list(sent.options.stop)) == ("Once", 16, ["x"])
    assert dict(sent.options.sampling.logit_bias) == {5: -100}
    ask.completions.create(model="demo", prompt=[1, 2, 3])
    assert list(backend.requests[1].tokens.ids) == [1, 2, 3]
    ask.completions.create(model="demo", prompt=["one"])
    assert backend.requests[2].text == "one"
    chunks = list(ask.completions.create(model="demo", prompt="Once", stream=True))
    assert "".join(c.choices[0].text for c in chunks) == "Hello, wörld!"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_length(ask, backend):
    backend.finish = pb.FINISH_REASON_LENGTH
    answer = ask.chat.completions.create(model="demo", messages=MESSAGES)
    assert answer.choices[0].finish_reason == "length"


def test_models(ask):
    assert [(m.id, m.meta["loaded"]) for m in ask.models.list()] == [("demo", True), ("other", False)]
    assert ask.models.retrieve("demo").created == 1_700_000_000
    with pytest.raises(openai.NotFoundError):
        ask.models.retrieve("nope")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("QUEUE_FULL", openai.RateLimitError),
        ("CONTEXT_LENGTH_EXCEEDED", openai.BadRequestError),
        ("NO_CHAT_TEMPLATE", openai.ConflictError),
        ("UNAVAILABLE", openai.InternalServerError),
    ],
)
def test_errors_before_the_first_token_are_statuses(ask, backend, stream, reason, expected):
    backend.texts = [ApiError(reason, "No.")]
    with pytest.raises(expected) as caught:
        ask.chat.completions.create(model="demo", messages=MESSAGES, stream=stream)
    assert caught.value.body["message"] == "No."
    assert backend.num_open == 0


def test_errors_after_started_are_statuses_too(ask, backend):
    backend.texts = [0.0, ApiError("NON_FINITE_LOGITS", "Broken.")]
    with pytest.raises(openai.InternalServerError):
        ask.chat.completions.create(model="demo", messages=MESSAGES, stream=True)


def test_an_error_on_the_way_ends_the_stream(ask, backend):
    backend.texts = ["Hello", ApiError("NON_FINITE_LOGITS", "Broken.")]
    stream = ask.chat.completions.create(model="demo", messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError, match=r"Broken\."):
        list(stream)


def test_unexpected_failures_are_logged_and_tell_nothing(ask, backend, logs):
    backend.texts = [ValueError("secret prompt")]
    with pytest.raises(openai.InternalServerError) as caught:
        ask.chat.completions.create(model="demo", messages=MESSAGES)
    assert "secret" not in str(caught.value)
    backend.texts = ["a", ValueError("secret prompt")]
    with pytest.raises(openai.APIError) as caught:
        list(ask.chat.completions.create(model="demo", messages=MESSAGES, stream=True))
    assert "secret" not in str(caught.value)
    assert [entry["event"] for entry in logs].count("internal_error") == 2
