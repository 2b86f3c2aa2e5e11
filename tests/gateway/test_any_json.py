"""Whatever JSON a field holds: a message or a refusal, never another exception."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.errors import ApiError, openai_body
from daemon.gateway.body import parse_object
from daemon.gateway.schema import ChatCompletionRequest, CompletionRequest, read_chat, read_completion
from daemon.gateway.translate import chat_request, completion_requests

numbers = st.integers() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
parts = st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url"]) | values, "text": values})
messages = st.lists(
    st.dictionaries(
        st.sampled_from(["role", "content", "name", "tool_calls", "tool_call_id"]),
        values | st.lists(parts, max_size=2),
    ),
    max_size=3,
)


def bodies(kind, **known):
    """Bodies that are right but for some fields."""
    fields = sorted({*kind.model_fields, "n", "tools", "response_format", "unknown"})
    changes = st.dictionaries(st.sampled_from(fields), values, max_size=4)
    base = st.fixed_dictionaries({"model": st.just("demo"), **known})
    return st.tuples(base, changes).map(lambda both: both[0] | both[1])


def check(body, read, translate):
    raw = json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")
    try:
        made = translate(read(parse_object(raw)))
        for message in made if isinstance(made, list) else [made]:
            message.SerializeToString()
    except ApiError as failure:
        assert failure.http_status == 400
        assert len(json.dumps(openai_body(failure))) < 4096


@settings(max_examples=100, deadline=None)
@given(bodies(ChatCompletionRequest, messages=messages | st.just([{"role": "user", "content": "x"}])))
def test_chat(body):
    check(body, read_chat, chat_request)


@settings(max_examples=60, deadline=None)
@given(bodies(CompletionRequest, prompt=values | st.lists(numbers) | st.just("x")))
def test_completion(body):
    check(body, read_completion, completion_requests)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:0eE+-.\\unul \ud800', max_size=40))
def test_bytes(raw):
    data = raw if isinstance(raw, bytes) else raw.encode("utf-8", "surrogatepass")
    try:
        assert isinstance(parse_object(data), dict)
    except ApiError as failure:
        assert failure.http_status == 400
