"""tritonclient, KServe v2 over gRPC: health, metadata, infer, its parameters, decoupled streams, vectors, errors."""

import importlib.metadata
import queue
import sys

import numpy as np
import tritonclient.grpc as triton

print("tritonclient", importlib.metadata.version("tritonclient"))
client = triton.InferenceServerClient(sys.argv[2])
assert client.is_server_live()
assert client.is_server_ready()
assert client.is_model_ready("demo")
assert not client.is_model_ready("nobody")
metadata = client.get_model_metadata("demo", as_json=True)
print("metadata:", client.get_server_metadata().version, [one["name"] for one in metadata["outputs"]])


def text(*prompts, shape=None, name="text_input"):
    values = np.array([one.encode() for one in prompts], dtype=np.object_).reshape(shape or [len(prompts)])
    tensor = triton.InferInput(name, list(values.shape), "BYTES")
    tensor.set_data_from_numpy(values)
    return tensor


def number(name, value, kind, dtype):
    tensor = triton.InferInput(name, [1, 1], kind)
    tensor.set_data_from_numpy(np.array([[value]], dtype=dtype))
    return tensor


whole = client.infer(
    "demo", [text("Once upon a time")], parameters={"max_tokens": 8, "seed": 3}, request_id="a"
)
assert whole.get_response().id == "a"
said = whole.as_numpy("text_output")
assert whole.as_numpy("finish_reason").tolist() == [b"length"]
print("infer:", said[0].decode())

# As clients of Triton's backends for vLLM and TensorRT-LLM send their options.
same = client.infer(
    "demo",
    [
        text("Once upon a time", shape=[1, 1]),
        number("max_tokens", 8, "INT32", np.int32),
        text('{"seed": 3}', name="sampling_parameters"),
    ],
)
assert same.as_numpy("text_output").tolist() == [said.tolist()]

batch = client.infer(
    "demo",
    [text("Once", "The", "A", "One", shape=[2, 2])],
    outputs=[triton.InferRequestedOutput("text_output")],
    parameters={"max_tokens": 4},
)
assert batch.as_numpy("text_output").shape == (2, 2)
assert batch.as_numpy("finish_reason") is None
print("batch:", batch.as_numpy("text_output").tolist())

answers = queue.Queue()
client.start_stream(lambda result, error: answers.put((result, error)))
client.async_stream_infer(
    "demo",
    [text("Once upon a time")],
    request_id="s",
    parameters={"max_tokens": 8, "seed": 3},
    enable_empty_final_response=True,
)
pieces = []
while True:
    result, error = answers.get(timeout=60)
    assert error is None, error
    pieces.append(result.as_numpy("text_output")[0].decode())
    if result.get_response().parameters["triton_final_response"].bool_param:
        break
assert "".join(pieces) == said[0].decode()
client.async_stream_infer("demo", [text("Once")], request_id="bad", parameters={"temperature": "9"})
_, error = answers.get(timeout=60)
assert "INVALID_ARGUMENT" in str(error)
client.stop_stream()
print("stream:", len(pieces), "responses; a refusal:", error.message())

vectors = client.infer("mini", [text("a fox ran home", "now")]).as_numpy("embedding")
assert vectors.shape[0] == 2
assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
print("vectors:", vectors.shape)

try:
    client.infer("nobody", [text("x")])
except triton.InferenceServerException as failure:
    assert failure.status() == "StatusCode.NOT_FOUND"
    print("errors:", failure.message())
