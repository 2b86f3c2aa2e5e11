"""The real daemon through the official ollama client."""

import pytest

from tests.e2e.harness import small

ollama = pytest.importorskip("ollama", reason="needs the ollama client (the dev extra)")

QUESTION = [{"role": "user", "content": "What is 12 plus 7?"}]
OPTIONS = {"temperature": 0, "num_predict": 16}


@pytest.fixture(scope="module")
def client(served):
    with ollama.Client(host=served.url) as made:
        yield made


def test_chat_and_its_stream(client):
    whole = client.chat("demo:latest", QUESTION, options=OPTIONS)
    parts = list(client.chat("demo", QUESTION, options=OPTIONS, stream=True))
    assert whole.message.content
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert (parts[-1].done, parts[-1].eval_count) == (True, whole.eval_count)
    assert whole.prompt_eval_count > 0
    assert 0 < whole.eval_duration <= whole.total_duration


def test_generate(client):
    whole = client.generate("demo", "What is 12 plus 7?", options=OPTIONS)
    assert whole.response == client.chat("demo", QUESTION, options=OPTIONS).message.content
    raw = client.generate("demo", "Once upon a time", raw=True, options={"num_predict": 10**6, "num_ctx": 32})
    assert (raw.done, raw.prompt_eval_count > 0) == (True, True)


def test_what_is_there(client):
    assert {"demo", "demo-f16"} <= {model.model for model in client.list().models}
    facts = client.show("demo")
    assert facts.details.family == facts.modelinfo["general.architecture"]
    assert "completion" in facts.capabilities
    assert "demo" in [model.model for model in client.ps().models]
    with pytest.raises(ollama.ResponseError) as caught:
        client.show("nope")
    assert caught.value.status_code == 404


def test_models_of_the_store(start, models, tmp_path):
    daemon = start(*small(models), "--store-dir", tmp_path)
    with ollama.Client(host=daemon.url) as client:
        digest = client.create_blob(models / "demo.gguf")
        client.create("mine", files={"demo.gguf": digest}, parameters={"num_predict": 4}, system="Be brief")
        assert client.show("mine").parameters == "num_predict 4"
        assert client.chat("mine", QUESTION).eval_count <= 4
        client.copy("mine", "other")
        assert client.generate("mine", keep_alive=0).done_reason == "unload"
        client.delete("mine")
        names = {model.model for model in client.list().models}
        assert "other:latest" in names
        assert "mine:latest" not in names
