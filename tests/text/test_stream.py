"""TextStream: whole characters, nothing of a stop text, whatever the tokens."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.text.stream import TextStream


class Pieces:
    """A tokenizer whose token i is pieces[i]."""

    def __init__(self, pieces):
        self.pieces = pieces

    def token_bytes(self, token_id):
        return self.pieces[token_id]


def stream(pieces, stop=()):
    text = TextStream(Pieces(pieces), stop)
    out = [text.push(i) for i in range(len(pieces))]
    out.append(text.finish())
    return out, text.stopped


def test_split_characters_come_out_whole():
    fox = "🦊".encode()
    out, _ = stream([b"a" + fox[:1], fox[1:2], fox[2:], b"b"])
    assert out == ["a", "", "🦊", "b", ""]
    assert stream([b"a", fox[:3]])[0] == ["a", "", "\ufffd"]
    assert stream([b"\xff", b"a\xc3", b"a"])[0] == ["\ufffd", "a", "\ufffda", ""]
    assert stream([b"", b"x"])[0] == ["", "x", ""]


def test_stop_text():
    assert stream([b"one tw", b"o three"], ["two"]) == (["one ", "", ""], "two")
    assert stream([b"one t", b"en", b" x"], ["two"]) == (["one ", "ten", " x", ""], None)
    assert stream([b"one tw"], ["two"]) == (["one ", "tw"], None)
    assert stream([b"abcd"], ["cd", "bcd", "c"]) == (["ab", ""], "c")
    assert stream([b"abcd"], ["cd", "bcd"]) == (["a", ""], "bcd")
    assert stream([b"ab"], ["ab"]) == (["", ""], "ab")
    assert stream([b"x\n", b"\n", b"y"], ["\n\n"]) == (["x", "", "", ""], "\n\n")
    half = "ü".encode()
    assert stream([b"a" + half[:1], half[1:], b"b"], ["ü"]) == (["a", "", "", ""], "ü")


def test_nothing_comes_after_a_stop():
    text = TextStream(Pieces([b"a", b"b"]), ["a"])
    assert [text.push(0), text.push(1), text.finish()] == ["", "", ""]


@given(st.text("abc🦊é", max_size=30), st.data())
def test_cutting_into_tokens_changes_nothing(text, data):
    stop = data.draw(st.lists(st.text("abcé", min_size=1, max_size=4), max_size=3))
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)))) | {0, len(raw)})
    pieces = [raw[a:b] for a, b in itertools.pairwise(cuts)]
    out, stopped = stream(pieces, stop)
    whole, whole_stopped = stream([raw], stop)
    assert ("".join(out), stopped) == ("".join(whole), whole_stopped)
    if stopped is None:
        assert "".join(out) == text
        assert not any(s in text for s in stop)
    else:
        assert text.startswith("".join(out) + stopped)


@pytest.mark.parametrize("stop", [[], ["zz"]])
def test_most_text_is_not_held_back(stop):
    assert stream([b"hello", b" world"], stop)[0][:2] == ["hello", " world"]
