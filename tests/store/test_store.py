"""Blobs and manifests: shared, collected, and whole after a crash at any point."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from daemon.errors import ApiError
from daemon.store.blobs import parse_digest
from daemon.store.manifest import MAX_MANIFEST_BYTES, Blob, Manifest, parameters_json
from daemon.store.models import ModelStore
from daemon.store.names import ModelName
from quantd.v1 import generate_pb2 as pb

NAME = ModelName.parse("a")


@pytest.fixture
def store(tmp_path):
    return ModelStore(tmp_path / "store")


def blob(store, data, file=""):
    return Blob(store.blobs.add_bytes(data), len(data), file)


def model(store, data=b"weights", **changes):
    return Manifest(weights=(blob(store, data),), **changes)


def files(store):
    return sorted(path.name for path in (store.root / "blobs").iterdir())


def test_an_absent_store_is_empty(store):
    assert store.names() == store.entries() == []
    assert store.find(NAME) is None
    assert store.collect_stale() == 0
    assert not store.root.exists()
    with pytest.raises(ApiError) as caught:
        store.remove(NAME)
    assert caught.value.reason == "MODEL_NOT_FOUND"


def test_what_is_put_is_found_with_everything(store):
    options = pb.GenerationOptions(
        stop=["x"], context_tokens=4096, sampling=pb.SamplingParams(temperature=0.5)
    )
    manifest = model(
        store,
        template=blob(store, b"{{ messages }}"),
        system=blob(store, b"Be brief."),
        licenses=(blob(store, b"MIT"),),
        parameters_json=parameters_json(options),
        source="a test",
    )
    store.put(NAME, manifest)
    again = ModelStore(store.root).find(NAME)
    assert again.manifest.parameters == options
    overrides = store.overrides(again)
    assert (overrides.template, overrides.system) == ("{{ messages }}", "Be brief.")
    assert again.path.read_bytes() == b"weights"
    assert again.manifest.size_bytes == 7 + 14 + 9 + 3
    assert again.manifest.created_unix_ms > 0


def test_names_share_blobs_and_the_last_one_frees_them(store):
    store.put(NAME, model(store))
    store.copy(NAME, ModelName.parse("b:2"))
    assert [str(name) for name in store.names()] == ["a:latest", "b:2"]
    assert store.remove(NAME) == 0
    assert len(files(store)) == 1
    assert store.remove(ModelName.parse("b:2")) == 7
    assert files(store) == []


def test_a_name_given_anew_frees_what_it_stood_for(store):
    store.put(NAME, model(store, b"old"))
    store.put(NAME, model(store, b"new", system=blob(store, b"hi")))
    assert store.find(NAME).path.read_bytes() == b"new"
    assert len(files(store)) == 2


def test_a_manifest_without_its_blobs_is_refused(store):
    with pytest.raises(ApiError) as caught:
        store.put(NAME, Manifest(weights=(Blob("0" * 64, 3),)))
    assert caught.value.reason == "MODEL_NOT_FOUND"
    assert store.names() == []


def test_split_models_stand_side_by_side(store):
    parts = [blob(store, data, f"m-0000{i}-of-00002.gguf") for i, data in ((1, b"one"), (2, b"two"))]
    stored = store.put(NAME, Manifest(weights=tuple(parts)))
    assert stored.path.name == "m-00001-of-00002.gguf"
    assert stored.path.with_name("m-00002-of-00002.gguf").read_bytes() == b"two"
    store.remove(NAME)
    assert list((store.root / "views").iterdir()) == files(store) == []


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b'{"schema": 2}', b'{"schema": 1}', b'{"schema": 1, "weights": []}', b"\xff",
        b'{"schema": 1, "weights": [{"digest": "sha256:../../x", "size_bytes": 1}]}',
        b'{"schema": 1, "weights": [{"digest": "sha256:' + b"0" * 64 + b'", "size_bytes": -1}]}',
        b'{"schema": 1, "weights": [{"digest": "sha256:' + b"0" * 64 + b'", "size_bytes": 1, "file": "../x"}]}',
        b'{"schema": 1, "weights": [{"digest": "sha256:' + b"0" * 64 + b'", "size_bytes": 1}], "parameters": [1]}',
        b"[" * 100_000,
        b" " * (MAX_MANIFEST_BYTES + 1),
    ],
)  # fmt: skip
def test_a_damaged_manifest_hides_its_name_and_frees_nothing(store, content):
    store.put(ModelName.parse("b"), model(store, b"other"))
    store.put(NAME, model(store))
    (store.root / "manifests" / NAME.file_name).write_bytes(content)
    assert store.find(NAME) is None
    assert [str(one.name) for one in store.entries()] == ["b:latest"]
    store.remove(ModelName.parse("b"))
    assert len(files(store)) == 2, "what the damaged manifest refers to is unknown"
    store.remove(NAME)
    assert store.names() == []


def test_a_manifest_that_is_a_link_is_none(store, tmp_path):
    store.put(NAME, model(store))
    path = store.root / "manifests" / NAME.file_name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert store.find(NAME) is None


def test_too_much_for_a_manifest(store):
    options = pb.GenerationOptions(stop=["x" * 1000] * 300)
    with pytest.raises(ApiError, match="at most"):
        store.put(NAME, model(store, parameters_json=parameters_json(options)))


def test_a_wrong_digest_leaves_nothing(store):
    with pytest.raises(ApiError) as caught, store.blobs.partial("0" * 64) as partial:
        partial.write(b"data")
        partial.commit()
    assert caught.value.reason == "DIGEST_MISMATCH"
    assert files(store) == []


def test_a_blob_is_resumed_with_its_digest(store):
    digest = hashlib.sha256(b"first second").hexdigest()
    with store.blobs.partial(digest) as partial:
        partial.write(b"first ")
    assert store.blobs.size(digest) is None
    with store.blobs.partial(digest) as partial:
        assert partial.resume() == 6
        partial.write(b"second")
        partial.commit()
    assert store.blobs.path(digest).read_bytes() == b"first second"


def test_one_writer_of_a_blob_at_a_time(store):
    with store.blobs.partial("1" * 64), pytest.raises(ApiError) as caught, store.blobs.partial("1" * 64):
        pass
    assert caught.value.reason == "MODEL_BUSY"


def test_a_full_disk_is_told_before_the_work(store):
    with pytest.raises(ApiError) as caught:
        store.blobs.require_room(2**60)
    assert caught.value.reason == "DISK_FULL"
    assert caught.value.details["needed_bytes"] == str(2**60)


@pytest.mark.parametrize(
    "text", ["", "sha256:", "sha256:" + "0" * 63, "sha256:" + "G" * 64, "md5:" + "0" * 64, "sha256:../x"]
)
def test_digests_are_checked(text):
    with pytest.raises(ApiError) as caught:
        parse_digest(text)
    assert caught.value.field == "digest"


def test_abandoned_files_go_after_their_time(store):
    store.put(NAME, model(store))
    store.blobs.add_bytes(b"uploaded and never used")
    with store.blobs.partial("2" * 64) as partial:
        partial.write(b"x")
    store.blobs.new_path(".gguf").write_bytes(b"half of a quantization")
    folder = store.blobs.new_path()
    folder.mkdir()
    (folder / "config.json").hardlink_to(store.find(NAME).path)
    assert store.collect_stale() == 0
    old = time.time() - 8 * 86400
    for path in (store.root / "blobs").iterdir():
        os.utime(path, (old, old))
    assert store.collect_stale() == 4
    assert store.find(NAME).path.read_bytes() == b"weights"


def test_threads_change_names_one_after_the_other(store):
    store.put(NAME, model(store))

    def work(number):
        for index in range(5):
            copy = ModelName.parse(f"t{number}-{index}")
            store.copy(NAME, copy)
            if index % 2:
                store.remove(copy)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.names()) == 1 + 4 * 3
    assert store.find(NAME).path.read_bytes() == b"weights"


# For each step that touches the disk, a process that dies right before it.
CRASHING = """
import os, sys
from pathlib import Path
from daemon.store import blobs, models
from daemon.store.manifest import Blob, Manifest
from daemon.store.names import ModelName

def dying(step):
    def run(*args, **kwargs):
        global steps
        if steps == at:
            os.kill(os.getpid(), 9)
        steps += 1
        return step(*args, **kwargs)
    return run

def model(store, data):
    return Manifest(weights=(Blob(store.blobs.add_bytes(data), len(data)),))

def work(store):
    for owner, names in ((os, ("fsync", "write", "ftruncate")), (Path, ("replace", "unlink", "mkdir", "hardlink_to"))):
        for name in names:
            setattr(owner, name, dying(getattr(owner, name)))
    store.put(ModelName.parse("a"), model(store, b"new"))
    store.copy(ModelName.parse("a"), ModelName.parse("b"))
    store.remove(ModelName.parse("b"))
    store.remove(ModelName.parse("old"))

for at in range(1000):
    steps = 0
    store = models.ModelStore(Path(sys.argv[1]) / str(at))
    for name in ("a", "old"):
        store.put(ModelName.parse(name), model(store, b"old"))
    child = os.fork()
    if not child:
        work(store)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
print(at)
"""


def test_a_crash_at_any_step_leaves_every_name_whole(tmp_path):
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-S", "-c", CRASHING, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    num_steps = int(done.stdout)
    assert num_steps > 8
    for at in range(num_steps + 1):
        after = ModelStore(tmp_path / str(at))
        for stored in after.entries():
            data = stored.path.read_bytes()
            assert hashlib.sha256(data).hexdigest() == stored.manifest.digest
            assert data in (b"old", b"new")
        assert len(after.entries()) == len(after.names())
        assert after.find(NAME) is not None, "a name that was there is never lost"
        for path in (after.root / "manifests").iterdir():
            assert path.name.startswith(".") or json.loads(path.read_bytes())
        after.put(ModelName.parse("c"), model(after, b"after"))  # and it works on
    assert [str(name) for name in after.names()] == ["a:latest", "c:latest"]
