"""An encoder with random weights, served by the real daemon to the real client."""

import grpc
import numpy as np
import openai
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from daemon.errors import from_rpc_error
from quantd.v1 import embedding_service_pb2 as rpc
from quantd.v1 import embedding_service_pb2_grpc, generate_pb2, generate_service_pb2_grpc
from runtime.memory import RuntimeSettings
from runtime.model import load_model
from tests.e2e.encoder import write_encoder
from tests.e2e.harness import Daemon


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder") / "mini.gguf")


@pytest.fixture(scope="module")
def daemon(encoder):
    made = Daemon(encoder, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--kv-budget", "16MiB")
    yield made
    made.kill()


def test_the_official_client_gets_the_models_vectors(daemon, encoder):
    texts = ["a fox ran home", "the dogs saw the red sea", "now"]
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.embeddings.create(model="mini", input=texts)
        short = client.embeddings.create(model="mini", input=texts[0], dimensions=8).data[0].embedding
        assert client.models.list().data[0].meta["gives_embeddings"]
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(model="mini", input=["a", "fox " * 40])
        with pytest.raises(openai.BadRequestError, match="gives embeddings"):
            client.completions.create(model="mini", prompt="a")
        ranked = client.post(
            "/rerank", body={"model": "mini", "query": texts[2], "documents": texts}, cast_to=object
        )
    model = load_model(encoder, RuntimeSettings(kv_budget_bytes=16 << 20, threads=1))
    ids = [model.tokenizer.encode(text) for text in texts]
    expected = model.embed(ids)
    model.close()
    assert [len(one) for one in ids] == [6, 9, 3]
    assert answer.usage.prompt_tokens == 18
    np.testing.assert_allclose([one.embedding for one in answer.data], expected, atol=1e-6)
    np.testing.assert_allclose(short, expected[0, :8] / np.linalg.norm(expected[0, :8]), atol=1e-6)
    assert (caught.value.param, caught.value.code) == ("input[1]", "context_length_exceeded")
    assert [one["index"] for one in ranked["results"]] == [
        int(i) for i in np.argsort(-(expected @ expected[2]))
    ]


def test_grpc(daemon):
    with grpc.insecure_channel(daemon.grpc) as channel:
        asked = health_pb2.HealthCheckRequest(service="quantd.v1.EmbeddingService")
        assert health_pb2_grpc.HealthStub(channel).Check(asked).status == 1
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        wanted = reflection_pb2.ServerReflectionRequest(list_services="")
        listed = next(reflection.ServerReflectionInfo(iter([wanted]))).list_services_response.service
        assert asked.service in {one.name for one in listed}
        stub = embedding_service_pb2_grpc.EmbeddingServiceStub(channel)
        answer = stub.Embed(rpc.EmbedRequest(input=[{"text": "fox " * 40}], truncate=True))
        assert answer.embeddings[0].truncated
        assert answer.prompt_tokens == 32
        assert np.linalg.norm(answer.embeddings[0].values) == pytest.approx(1, abs=1e-5)
        generate = generate_service_pb2_grpc.GenerateServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            next(generate.Generate(generate_pb2.GenerateRequest(text="a")))
        assert from_rpc_error(caught.value).field == "model"
