"""Events of an answer with thoughts, text and two calls, as a backend sends them."""

from quantd.v1 import generate_pb2 as pb


def call(index, name="", arguments="", call_id=""):
    return pb.Delta(tool_calls=[pb.ToolCallDelta(index=index, id=call_id, name=name, arguments=arguments)])


def full_answer():
    return [
        pb.Delta(reasoning="Hm"),
        pb.Delta(reasoning=", so."),
        pb.Delta(text="Let me "),
        pb.Delta(text="see."),
        call(0, "add", call_id="call_a"),
        call(0, arguments='{"a": '),
        call(0, arguments="1}"),
        call(1, "now", call_id="call_b"),
    ]
