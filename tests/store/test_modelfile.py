"""Modelfiles: what they say, and that an error names its line."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.store.modelfile import ModelfileError, modelfile_text, parse_modelfile
from quantd.v1 import generate_pb2 as pb
from quantd.v1 import model_pb2
from quantd.v1 import model_service_pb2 as rpc

WHOLE = '''# what people write
FROM ./model.gguf

parameter temperature 0.25
PARAMETER num_ctx 8192
PARAMETER num_predict -1
PARAMETER seed 18446744073709551615
PARAMETER repeat_last_n -1
PARAMETER stop "<|im_end|>"
PARAMETER stop User:
PARAMETER num_gpu 99
TEMPLATE """{% for m in messages %}
{{ m["content"] }} """ is no end here
{% endfor %}"""
SYSTEM You are "Mario" from Super Mario Bros.
MESSAGE user """Two
lines"""
MESSAGE Assistant Yes.
LICENSE "MIT
of 2026"
  LICENSE   other
ADAPTER ./lora
REQUIRES 0.14.0
'''


def test_everything_that_a_modelfile_says():
    found = parse_modelfile(WHOLE)
    assert (found.source.value, found.source.line) == ("./model.gguf", 2)
    options = found.parameters
    assert options.sampling.temperature == 0.25
    assert options.sampling.seed == 2**64 - 1
    assert options.sampling.repeat_last_n == 4096
    assert options.context_tokens == 8192
    assert not options.HasField("max_tokens")
    assert list(options.stop) == ["<|im_end|>", "User:"]
    assert found.template.value.splitlines()[1] == '{{ m["content"] }} """ is no end here'
    assert found.template.line == 12
    assert found.system.value == 'You are "Mario" from Super Mario Bros.'
    assert found.messages == [("user", "Two\nlines"), ("assistant", "Yes.")]
    assert found.licenses == ["MIT\nof 2026", "other"]
    assert [(one.value, one.line) for one in found.adapters] == [("./lora", 22)]
    assert found.warnings == [
        "line 11: PARAMETER num_gpu has no effect here",
        "line 23: REQUIRES has no effect here",
    ]


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("", 1, "without FROM"),
        ("# nothing\nSYSTEM hi\n", 3, "without FROM"),
        ("FROM\n", 1, "FROM says nothing"),
        ("FROM a\n\nFROM b\n", 3, "a second time (first on line 1)"),
        ("FROM a\nFORM b\n", 2, "'FORM' is no instruction; there are FROM, PARAMETER"),
        ("FROM a\nPARAMETER\n", 2, "needs a name and a value"),
        ("FROM a\nPARAMETER temperature\n", 2, "needs a name and a value"),
        ("FROM a\nPARAMETER heat 3\n", 2, "heat is no parameter; there are temperature"),
        ("FROM a\nPARAMETER temperature hot\n", 2, "temperature must be a number, not 'hot'"),
        ("FROM a\nPARAMETER temperature 9\n", 2, "temperature must be 0 to 2, not 9"),
        ("FROM a\nPARAMETER temperature nan\n", 2, "temperature must be a number"),
        ("FROM a\nPARAMETER top_k 1.5\n", 2, "top_k must be a whole number"),
        ("FROM a\nPARAMETER num_ctx 3\n", 2, "num_ctx must be 16 to"),
        ("FROM a\n" + "PARAMETER stop x\n" * 17, 18, "stop at most 16"),
        ('FROM a\n\n# x\nSYSTEM """one\ntwo\n', 4, 'begins with """ and is never closed'),
        ('FROM a\nLICENSE "one\ntwo\n', 2, 'begins with " and is never closed'),
        ("FROM a\nMESSAGE robot hi\n", 2, "the role must be one of system, user, assistant"),
        ("FROM a\nMESSAGE user\n", 2, "needs a role and a text"),
        ("FROM a\n" + "MESSAGE user x\n" * 65, 66, "more than 64 times"),
        ("FROM a\n" + "LICENSE x\n" * 17, 18, "more than 16 times"),
        ("FROM a\nADAPTER\n", 2, "ADAPTER says nothing"),
        ("x" * (4 << 20) + "y", 1, "at most"),
    ],
)
def test_an_error_names_its_line(text, line, part):
    with pytest.raises(ModelfileError) as caught:
        parse_modelfile(text, "Modelfile")
    assert caught.value.message.startswith(f"Modelfile, line {line}: ")
    assert part in caught.value.message
    assert caught.value.reason == "INVALID_ARGUMENT"


def test_a_model_tells_a_modelfile_that_makes_it_again():
    shown = rpc.ShowModelResponse(
        model=model_pb2.Model(name="mine:latest"),
        template='{{ x }}\n"""\nmore',
        template_is_override=True,
        system="Be\nkind.",
        licenses=["MIT"],
        messages=[pb.ChatMessage(role="user", content='say "hi"')],
        parameters=pb.GenerationOptions(
            stop=["a b", "\n"], context_tokens=99, sampling=pb.SamplingParams(temperature=0.7, seed=5)
        ),
    )
    text = modelfile_text(shown).replace(
        '{{ x }}\n"""\nmore', "{{ x }}"
    )  # a line of quotes cannot be written
    found = parse_modelfile(text)
    assert found.source.value == "mine:latest"
    assert (found.template.value, found.system.value) == ("{{ x }}", "Be\nkind.")
    assert found.messages == [("user", 'say "hi"')]
    assert found.licenses == ["MIT"]
    assert found.parameters.sampling.temperature == pytest.approx(0.7)
    assert (found.parameters.sampling.seed, found.parameters.context_tokens) == (5, 99)
    assert list(found.parameters.stop) == ["a b", "\n"]


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='FROMSYTE "\n#pt07.\\\r\u2028', max_size=80))
def test_any_text_is_read_or_refused(text):
    try:
        found = parse_modelfile("FROM a\n" + text)
    except ModelfileError as failure:
        assert "line " in failure.message
    else:
        assert found.source.value
