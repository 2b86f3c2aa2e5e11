"""Names: what is one, and that none of them leaves the store."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.errors import ApiError
from daemon.store.names import ModelName


@pytest.mark.parametrize(
    ("text", "path", "tag"),
    [
        ("llama3.2", "llama3.2", "latest"),
        ("llama3.2:3b", "llama3.2", "3b"),
        ("library/llama3.2:3b-instruct-q4_K_M", "library/llama3.2", "3b-instruct-q4_K_M"),
        ("hf.co/owner/Repo-GGUF:Q4_K_M", "hf.co/owner/Repo-GGUF", "Q4_K_M"),
        ("localhost:5000/owner/name:tag", "localhost:5000/owner/name", "tag"),
        ("localhost:5000/owner/name", "localhost:5000/owner/name", "latest"),
        ("_x", "_x", "latest"),
    ],
)
def test_names(text, path, tag):
    name = ModelName.parse(text)
    assert (name.path, name.tag) == (path, tag)
    assert ModelName.of_file_name(name.file_name) == name
    assert ModelName.parse(str(name)) == name
    assert "/" not in name.file_name


HOSTILE = [
    "", " ", ".", "..", "../x", "x/..", "x/../y", "/etc/passwd", "//x", "x//y", "x/", "/x", ".x", "-x", "x/.y", "x/-y",
    "x:", ":x", "x:.t", "x:-t", "x:../t", "x:a/b", "x y", "x\0", "x\n", "x\\y", "x%2fy", "é", "x:é", "x?y", "x#y", "~x",
    "a/b/c/d/e", "x" * 201, "host:99999999/a/b", "http://host/a", "C:\\x", "x@sha256:00", "a:b:c",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names(text):
    assert ModelName.find(text) is None
    with pytest.raises(ApiError) as caught:
        ModelName.parse(text, "source")
    assert (caught.value.reason, caught.value.field) == ("INVALID_ARGUMENT", "source")


@given(st.text(max_size=60))
def test_any_text_is_a_sound_name_or_none(text):
    name = ModelName.find(text)
    if name is not None:
        assert not any(part in ("", ".", "..") or part.startswith((".", "-")) for part in name.parts)
        assert ModelName.of_file_name(name.file_name) == name
        assert len(name.file_name.encode()) <= 255


@pytest.mark.parametrize(
    "file_name", ["x.json", "x%3Alatest", "..%2Fx%3Alatest.json", ".1.partial", "X%3alatest.json"]
)
def test_other_files_are_no_manifests(file_name):
    assert ModelName.of_file_name(file_name) is None
