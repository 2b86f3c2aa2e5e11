"""API keys: what the file may say, how it is written, and that a running daemon follows it."""

import os
import stat

import pytest
from click.testing import CliRunner

from daemon.access import keys as module
from daemon.access.gate import Gate
from daemon.access.keys import Key, hash_of, new_secret, parse_keys, read_keys, write_keys
from daemon.cli.key import command
from daemon.errors import ApiError

SHA = "0" * 64


def entry(**changes):
    values = {"name": '"ci"', "sha256": f'"{SHA}"', **changes}
    return "[[keys]]\n" + "\n".join(f"{key} = {value}" for key, value in values.items()) + "\n"


def test_a_file_with_every_setting():
    text = entry(max_sessions=2, max_waiting=0, tokens_per_minute=600, priority=-3, manage="true")
    assert parse_keys(text, "f") == {SHA: Key("ci", SHA, 2, 0, 600, -3, manage=True)}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("keys = 3", "[[keys]]"),
        ("other = 3", "[[keys]]"),
        ("[[keys]", "f:"),
        (entry(name='"a b"'), "name"),
        (entry(name=f'"{"x" * 65}"'), "name"),
        (entry(sha256=f'"{"F" * 64}"'), "sha256"),
        (entry(sha256=f'"{"0" * 63}"'), "sha256"),
        (entry(max_sessions=0), "max_sessions"),
        (entry(max_waiting=-1), "max_waiting"),
        (entry(tokens_per_minute=0), "tokens_per_minute"),
        (entry(priority=11), "priority"),
        (entry(max_sessions='"two"'), "max_sessions"),
        (entry(manage=1), "manage"),
        (entry(secret='"x"'), "secret"),
        (entry() + entry(name='"b"'), "twice"),
        (entry() + entry(sha256=f'"{"1" * 64}"'), "twice"),
    ],
)
def test_what_a_file_must_not_say(text, part):
    with pytest.raises(ApiError) as caught:
        parse_keys(text, "f")
    assert caught.value.reason == "INVALID_CONFIG"
    assert part in caught.value.message


def test_written_keys_are_read_back_and_only_the_owner_may(tmp_path):
    path = tmp_path / "keys.toml"
    made = [Key("a", SHA), Key("b", "1" * 64, 1, 2, 3, 4, manage=True)]
    write_keys(path, made)
    assert list(read_keys(path).values()) == made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["keys.toml"]


def test_a_large_file_is_refused_unread(tmp_path):
    path = tmp_path / "keys.toml"
    path.write_text("#" * (module.MAX_FILE_BYTES + 1))
    with pytest.raises(ApiError, match="larger"):
        read_keys(path)


def test_without_a_file_everybody_may():
    gate = Gate(None)
    assert gate.caller(None).name == ""
    gate.caller("anything").require_manage()


def test_the_gate_follows_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHECK_S", 0.0)
    path = tmp_path / "keys.toml"
    one, two = new_secret(), new_secret()
    write_keys(path, [Key("a", hash_of(one), max_sessions=1)])
    gate = Gate(path)
    caller = gate.caller(one)
    assert caller.name == "a"
    for wrong in (None, "", two, one[:-1], "x" * 10_000):
        with pytest.raises(ApiError) as caught:
            gate.caller(wrong)
        assert (caught.value.reason, caught.value.http_status) == ("UNAUTHENTICATED", 401)
        assert not wrong or wrong not in caught.value.message

    write_keys(path, [Key("a", hash_of(one), max_sessions=5), Key("b", hash_of(two))])
    assert gate.caller(one) is caller, "what a key has in use outlives a change of the file"
    assert caller.key.max_sessions == 5
    assert gate.caller(two).name == "b"

    path.write_text("[[keys]")
    assert gate.caller(two).name == "b", "a broken file changes nothing"
    path.unlink()
    assert gate.caller(two).name == "b"

    write_keys(path, [Key("b", hash_of(two))])
    with pytest.raises(ApiError):
        gate.caller(one)


def test_a_missing_file_at_the_start_is_an_error(tmp_path):
    with pytest.raises(ApiError) as caught:
        Gate(tmp_path / "none.toml")
    assert caught.value.reason == "INVALID_CONFIG"


def test_the_command_makes_lists_and_removes(tmp_path):
    path = str(tmp_path / "keys.toml")

    def run(*words):
        return CliRunner().invoke(command, [*words, "--file", path])

    made = run("add", "ci", "--max-sessions", "2", "--manage")
    assert made.exit_code == 0
    secret = made.stdout.strip()
    assert Gate(tmp_path / "keys.toml").caller(secret).key.max_sessions == 2
    assert secret not in (tmp_path / "keys.toml").read_text()
    for words in (("add", "ci"), ("add", "a b"), ("remove", "nobody")):
        assert isinstance(run(*words).exception, ApiError)
    listed = run("list").stdout
    assert "ci" in listed
    assert "yes" in listed
    assert run("remove", "ci").exit_code == 0
    assert read_keys(tmp_path / "keys.toml") == {}
