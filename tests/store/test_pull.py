"""Downloads, against servers on loopback that behave like the real ones."""

import json
import threading

import pytest

from daemon.errors import ApiError
from daemon.store import download
from daemon.store.download import PullCancelledError
from daemon.store.hub import group_files, quant_of
from daemon.store.names import ModelName
from daemon.store.places import Places
from daemon.store.pull import pull
from runtime.errors import UnsupportedModelError
from runtime.memory import RuntimeSettings
from tests.daemon.fakes import write_gguf
from tests.store.server import TOKEN, sha256

REPO = "owner/Tiny-GGUF"


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(download, "_RETRY_S", (0.0, 0.0, 0.0, 0.0))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    """A sound GGUF of a few hundred bytes with some more behind it."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path.read_bytes() + bytes(300_000)


def fetch(store, name, hub=None, registry=None, **options):
    steps = []
    places = Places(
        hub.url if hub else "http://127.0.0.1:1", registry.url if registry else "http://127.0.0.1:1"
    )
    options.setdefault("cancel", threading.Event())
    final = pull(store, ModelName.parse(name), places=places, report=steps.append, **options)
    return store.find(final), steps


def refused(store, name, reason, *args, **options):
    with pytest.raises(ApiError) as caught:
        fetch(store, name, *args, **options)
    assert caught.value.reason == reason, caught.value
    assert store.names() == []
    return caught.value


def test_a_quantization_of_the_hub(store, hub, files, gguf):
    hub.add(REPO, {"tiny-Q4_K_M.gguf": gguf, "tiny-Q8_0.gguf": gguf + b"8", "mmproj-F16.gguf": b"no model"})
    stored, steps = fetch(store, f"hf.co/{REPO}:q8_0", hub)
    assert stored.path.read_bytes() == gguf + b"8"
    assert stored.manifest.digest == sha256(gguf + b"8")
    assert stored.manifest.source == f"hf.co/{REPO} at cccccccccccc, tiny-Q8_0"
    assert steps[0].status == f"looking for hf.co/{REPO}:q8_0"
    assert steps[-1].status == "writing the manifest"
    assert any(step.completed_bytes == step.total_bytes == len(gguf) + 1 for step in steps)
    assert len([path for path, _ in files.origin.requests]) == 1


def test_without_a_tag_the_preferred_quantization(store, hub, gguf):
    hub.add(REPO, {"a-F16.gguf": gguf + b"f", "b-Q4_K_M.gguf": gguf, "c-Q2_K.gguf": gguf + b"2"})
    stored, _ = fetch(store, f"hf.co/{REPO}", hub)
    assert stored.path.read_bytes() == gguf
    assert str(stored.name) == f"hf.co/{REPO}:latest"


def test_another_name_and_no_second_download(store, hub, files, gguf):
    hub.add(REPO, {"b-Q4_K_M.gguf": gguf})
    fetch(store, f"hf.co/{REPO}", hub)
    stored, _ = fetch(store, f"huggingface.co/{REPO}", hub, as_name=ModelName.parse("tiny"))
    assert str(stored.name) == "tiny:latest"
    assert len(files.origin.requests) == 1


def test_a_split_model(store, hub, tmp_path, gguf):
    parts = {f"q4/m-Q4_0-0000{i}-of-00002.gguf": gguf + bytes([i]) for i in (1, 2)}
    hub.add(REPO, parts)
    stored, _ = fetch(store, f"hf.co/{REPO}:Q4_0", hub)
    assert stored.path.name == "m-Q4_0-00001-of-00002.gguf"
    assert stored.path.with_name("m-Q4_0-00002-of-00002.gguf").read_bytes() == gguf + bytes([2])


def test_tokens_stay_with_the_hub(store, hub, files, gguf, monkeypatch):
    hub.add(REPO, {"b-Q4_K_M.gguf": gguf})
    hub.gated.add(REPO)
    error = refused(store, f"hf.co/{REPO}", "PERMISSION_DENIED", hub)
    assert "gated" in error.message
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    fetch(store, f"hf.co/{REPO}", hub)
    assert any(headers.get("authorization") for _, headers in hub.origin.requests)
    assert not any("authorization" in headers for _, headers in files.origin.requests)


def test_what_the_hub_does_not_have(store, hub, gguf):
    hub.add(REPO, {"b-Q4_K_M.gguf": gguf, "b-Q8_0.gguf": gguf})
    hub.add("owner/empty", {"model.safetensors": b"x"})
    assert "has no repository" in refused(store, "hf.co/owner/none", "MODEL_NOT_FOUND", hub).message
    assert "holds no GGUF" in refused(store, "hf.co/owner/empty", "MODEL_NOT_FOUND", hub).message
    assert "it has Q4_K_M, Q8_0" in refused(store, f"hf.co/{REPO}:Q5_K_M", "MODEL_NOT_FOUND", hub).message


def test_a_server_that_is_not_there(store):
    refused(store, f"hf.co/{REPO}", "DOWNLOAD_FAILED")
    refused(store, "llama3.2", "DOWNLOAD_FAILED")


def test_other_hosts_only_where_allowed(store):
    error = refused(store, "example.invalid/a/b", "PERMISSION_DENIED")
    assert "example.invalid" in error.message


def test_an_ollama_model_with_everything(store, registry, gguf):
    params = {
        "stop": ["<|end|>"],
        "temperature": 0.6,
        "num_ctx": 8192,
        "num_gpu": 99,
        "top_p": 7,
        "seed": True,
    }
    registry.add(
        "library/tiny:1b",
        [
            ("model", gguf),
            ("template", b"{{ if .System }}{{ .System }}{{ end }}{{ .Prompt }}"),
            ("system", b"You are kind."),
            ("params", json.dumps(params).encode()),
            ("license", b"MIT"),
            ("license", b"and another"),
            ("messages", b"[]"),
        ],
    )
    stored, _ = fetch(store, "tiny:1b", registry=registry)
    manifest = stored.manifest
    assert stored.path.read_bytes() == gguf
    assert manifest.template is None
    assert store.blobs.read_text(manifest.go_template.digest).endswith("{{ .Prompt }}")
    assert store.overrides(stored).system == "You are kind."
    assert [store.blobs.read_text(blob.digest) for blob in manifest.licenses] == ["MIT", "and another"]
    options = manifest.parameters
    assert (list(options.stop), options.context_tokens) == (["<|end|>"], 8192)
    assert options.sampling.temperature == pytest.approx(0.6)
    assert not options.sampling.HasField("top_p")
    assert not options.sampling.HasField("seed")
    assert not any("authorization" in headers for _, headers in registry._files.origin.requests)


def test_a_registry_of_the_name(store, registry, gguf):
    registry.add("me/mine:latest", [("model", gguf)])
    fetch(store, "me/mine", registry=registry)
    fetch(store, f"{registry.origin.host}/me/mine", registry=registry)
    assert len(store.names()) == 2


def test_what_a_registry_does_not_have_or_says_wrong(store, registry, gguf):
    refused(store, "none", "MODEL_NOT_FOUND", None, registry)
    registry.add("library/two:latest", [("model", gguf), ("model", gguf + b"2")])
    refused(store, "two", "UNSUPPORTED_MODEL", None, registry)
    registry.add("library/lora:latest", [("model", gguf), ("adapter", b"x")])
    assert "adapter" in refused(store, "lora", "UNSUPPORTED_MODEL", None, registry).message
    for wrong in (
        b"",
        b"[]",
        b"{}",
        b'{"layers": 1}',
        b'{"layers": [1]}',
        b"\xff",
        b"[" * 5000,
        b" " * (2 << 20),
    ):
        registry.manifests["library/wrong:latest"] = wrong
        refused(store, "wrong", "DOWNLOAD_FAILED", None, registry)
    for digest, size in (
        ("sha256:../x", 1),
        ("sha256:" + "0" * 64, -1),
        ("sha256:" + "0" * 64, 1 << 60),
        (None, 1),
    ):
        layer = {"mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": size}
        registry.manifests["library/wrong:latest"] = json.dumps({"layers": [layer]}).encode()
        refused(store, "wrong", "DOWNLOAD_FAILED", None, registry)


def path_of(gguf):
    return f"/cdn/{REPO}/b-Q4_K_M.gguf"


def test_a_cut_answer_is_resumed(store, hub, files, gguf):
    hub.add(REPO, {"b-Q4_K_M.gguf": gguf})
    files.origin.cut_after[path_of(gguf)] = [100_000, 50_000, 10, 1]
    stored, _ = fetch(store, f"hf.co/{REPO}", hub)
    assert stored.path.read_bytes() == gguf
    starts = [headers.get("range") for _, headers in files.origin.requests]
    assert starts == [None, "bytes=100000-", "bytes=150000-", "bytes=150010-", "bytes=150011-"]


def test_a_later_pull_goes_on_where_the_first_ended(store, hub, files, gguf):
    hub.add(REPO, {"b-Q4_K_M.gguf": gguf})
    files.origin.cut_after[path_of(gguf)] = [100_000, 0, 0, 0, 0]
    error = refused(store, f"hf.co/{REPO}", "DOWNLOAD_FAILED", hub)
    assert f"100000 of {len(gguf)} bytes are kept" in error.message
    assert len(files.origin.requests) == download.MAX_TRIES
    files.origin.requests.clear()
    fetch(store, f"hf.co/{REPO}", hub)
    assert [headers.get("range") for _, headers in files.origin.requests] == ["bytes=100000-"]


def test_a_server_without_ranges_begins_anew(store, hub, files, gguf):
    hub.add(REPO, {"b-Q4_K_M.gguf": gguf})
    files.no_ranges = True
    files.origin.cut_after[path_of(gguf)] = [100_000]
    stored, _ = fetch(store, f"hf.co/{REPO}", hub)
    assert stored.path.read_bytes() == gguf


def test_what_an_earlier_try_left_wrong_is_fetched_again(store, hub, files, gguf):
    hub.add(REPO, {"b-Q4_K_M.gguf": gguf})
    with store.blobs.partial(sha256(gguf)) as partial:
        partial.write(b"garbage" * 1000)
    stored, _ = fetch(store, f"hf.co/{REPO}", hub)
    assert stored.path.read_bytes() == gguf
    assert [headers.get("range") for _, headers in files.origin.requests] == ["bytes=7000-", None]


@pytest.mark.parametrize("left", [0, 1])
def test_a_partial_file_that_is_whole_or_too_long(store, hub, gguf, left):
    hub.add(REPO, {"b-Q4_K_M.gguf": gguf})
    with store.blobs.partial(sha256(gguf)) as partial:
        partial.write(gguf + bytes(left))
    stored, _ = fetch(store, f"hf.co/{REPO}", hub)
    assert stored.path.read_bytes() == gguf


def test_a_wrong_digest_is_refused_and_leaves_nothing(store, hub, gguf):
    hub.add(REPO, {"b-Q4_K_M.gguf": gguf})
    hub.lies["b-Q4_K_M.gguf"] = "0" * 64
    error = refused(store, f"hf.co/{REPO}", "DIGEST_MISMATCH", hub)
    assert sha256(gguf) in error.message
    assert list((store.root / "blobs").iterdir()) == []


def test_more_bytes_than_announced(store, hub, files, gguf):
    hub.add(REPO, {"b-Q4_K_M.gguf": gguf})
    files.files[path_of(gguf)] = gguf + b"more"
    refused(store, f"hf.co/{REPO}", "DIGEST_MISMATCH", hub)
    assert list((store.root / "blobs").iterdir()) == []


def test_a_busy_server_is_asked_again(store, hub, files, gguf):
    hub.add(REPO, {"b-Q4_K_M.gguf": gguf})
    files.fail[path_of(gguf)] = [(503, {"Retry-After": "0"}), (429, {"Retry-After": "0"}), (500, {})]
    fetch(store, f"hf.co/{REPO}", hub)
    assert len(files.origin.requests) == 4


@pytest.mark.parametrize(
    ("status", "reason"), [(403, "PERMISSION_DENIED"), (404, "MODEL_NOT_FOUND"), (418, "DOWNLOAD_FAILED")]
)
def test_final_answers_are_not_asked_again(store, hub, gguf, status, reason):
    files = hub._files
    hub.add(REPO, {"b-Q4_K_M.gguf": gguf})
    files.fail[path_of(gguf)] = [(status, {})]
    refused(store, f"hf.co/{REPO}", reason, hub)
    assert len(files.origin.requests) == 1


def test_what_is_no_model_gets_no_name(store, hub):
    hub.add(REPO, {"b-Q4_K_M.gguf": b"<html>not a model</html>" * 100})
    refused(store, f"hf.co/{REPO}", "INVALID_MODEL_FILE", hub)


def test_a_cancelled_pull_keeps_what_came(store, hub, files, gguf):
    hub.add(REPO, {"b-Q4_K_M.gguf": gguf})
    cancel = threading.Event()
    places = Places(hub.url, hub.url)

    def report(step):
        if step.completed_bytes:
            cancel.set()

    with pytest.raises(PullCancelledError):
        pull(store, ModelName.parse(f"hf.co/{REPO}"), places=places, report=report, cancel=cancel)
    assert store.names() == []
    with store.blobs.partial(sha256(gguf)) as partial:
        assert 0 < partial.size < len(gguf)


def test_the_memory_plan_is_made_before_the_rest_is_fetched(store, hub, demo_model, monkeypatch):
    data = demo_model.read_bytes()
    hub.add(REPO, {"d-F16.gguf": data, "d-Q4_K_M.gguf": data[:3_000_000]})
    monkeypatch.setattr(download, "HEAD_BYTES", 1 << 19)
    monkeypatch.setattr("runtime.memory.own_anonymous_bytes", lambda: 0)
    from runtime.machine_memory import Available

    monkeypatch.setattr("runtime.memory.available_memory", lambda: Available(40 << 20, "a small machine"))
    settings = RuntimeSettings(sessions=1, context_tokens=64, threads=1)
    error = refused(store, f"hf.co/{REPO}:F16", "INSUFFICIENT_MEMORY", hub, settings=settings)
    assert "a small machine" in error.message
    with store.blobs.partial(sha256(data)) as partial:
        assert partial.size < len(data), "the rest was not fetched"
    stored, _ = fetch(store, f"hf.co/{REPO}:F16", hub)
    assert stored.path.read_bytes() == data


def test_the_quantization_that_would_fit_is_named(store, hub, demo_model, monkeypatch):
    from runtime.gguf import ModelFile
    from runtime.machine_memory import Available
    from runtime.memory import plan_memory
    from runtime.model import read_config

    data = demo_model.read_bytes()
    hub.add(REPO, {"d-F16.gguf": data, "d-Q4_K_M.gguf": data[:3_000_000], "d-Q2_K.gguf": data[:1_000_000]})
    settings = RuntimeSettings(sessions=1, context_tokens=64, threads=1)
    file = ModelFile.open(demo_model)
    total = plan_memory(file, read_config(file), settings).total_bytes
    monkeypatch.setattr("runtime.memory.own_anonymous_bytes", lambda: 0)
    monkeypatch.setattr(
        "runtime.memory.available_memory", lambda: Available(total - 1_000_000, "a small machine")
    )
    error = refused(store, f"hf.co/{REPO}:F16", "INSUFFICIENT_MEMORY", hub, settings=settings)
    assert "Of the same model, Q4_K_M (2.9 MiB) would fit." in error.message


def test_an_architecture_that_is_not_served_is_told_from_the_head(store, registry, tmp_path):
    import gguf as writer_of
    import numpy as np

    writer = writer_of.GGUFWriter(tmp_path / "x.gguf", "nosucharch")
    writer.add_tensor("t", np.zeros((4, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    registry.add("library/x:latest", [("model", (tmp_path / "x.gguf").read_bytes())])
    with pytest.raises(UnsupportedModelError, match="nosucharch"):
        fetch(store, "x", registry=registry, settings=RuntimeSettings())


@pytest.mark.parametrize(
    ("stem", "quant"),
    [
        ("Llama-3.2-3B-Instruct-Q4_K_M", "Q4_K_M"), ("model.Q8_0", "Q8_0"), ("x-IQ4_XS", "IQ4_XS"), ("x-fp16", "F16"),
        ("q4_0/x", "Q4_0"), ("Qwen2.5-7B-UD-Q4_K_XL", "UD-Q4_K_XL"), ("x-BF16", "BF16"), ("qwen2-7b", None), ("x", None),
        ("gpt-oss-20b-MXFP4", "MXFP4"), ("x-Q4_K_M-imat", "Q4_K_M"),
    ],
)  # fmt: skip
def test_quantizations_in_file_names(stem, quant):
    assert quant_of(stem) == quant


def test_incomplete_splits_are_no_models():
    class Sibling:
        def __init__(self, name):
            self.rfilename = name

    names = ["a-00001-of-00003.gguf", "a-00002-of-00003.gguf", "b.gguf", "c.txt", "b-mmproj.gguf"]
    assert list(group_files([Sibling(name) for name in names])) == ["b"]
