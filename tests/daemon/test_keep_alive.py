"""Durations as people and Ollama's clients write them."""

import pytest

from daemon.keep_alive import FOREVER, format_keep_alive, from_ms, parse_keep_alive


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5m", 300),
        ("1h30m", 5400),
        ("90", 90),
        ("0", 0),
        (0, 0),
        (2.5, 2.5),
        ("250ms", 0.25),
        ("1.5h", 5400),
        ("24h", 86400),
        ("-1", FOREVER),
        (-1, FOREVER),
        ("-5m", FOREVER),
        (" 10s ", 10),
        (10**30, FOREVER),
        ("9223372036s", FOREVER),
    ],
)
def test_durations(value, seconds):
    assert parse_keep_alive(value) == seconds


@pytest.mark.parametrize(
    "value", ["", "m", "5x", "5 m", "1h 30m", "--1", "1e3", "nan", "inf", True, float("nan"), "9" * 40]
)
def test_what_is_no_duration(value):
    with pytest.raises(ValueError, match="is no duration"):
        parse_keep_alive(value)


def test_the_wire_counts_milliseconds():
    assert (from_ms(0), from_ms(1500), from_ms(-1), from_ms(2**63 - 1)) == (0, 1.5, FOREVER, FOREVER)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.6, "1 min"),
        (299, "4 min 59 s"),
        (7500, "2 h 5 min"),
        (90061, "1 d 1 h"),
        (FOREVER, "for ever"),
    ],
)
def test_for_people(seconds, text):
    assert format_keep_alive(seconds) == text
