"""Hashes of the inputs: the same whatever was offered of them, in whatever order, and whatever had to be read."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest

from quant import checksums
from quant.checksums import InputHashes
from quant.errors import QuantizeCancelledError

SIZES = (700_000, 0, 300_001)


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(1)
    paths = []
    for index, size in enumerate(SIZES):
        paths.append(tmp_path / f"{index}.bin")
        paths[-1].write_bytes(rng.bytes(size))
    return paths


def runs_of(paths, n_bytes=50_000):
    """(file, offset, data) of all files but the bytes between them, as tensors leave them."""
    for file, path in enumerate(paths):
        raw = np.frombuffer(path.read_bytes(), np.uint8)
        for start in range(100, len(raw), n_bytes):
            yield file, start, raw[start : start + n_bytes - 40]


def wanted(paths):
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


@pytest.mark.parametrize("order", ["file", "shuffled", "some", "overlapping", "none"])
@pytest.mark.parametrize("room_bytes", [60_000, 200_000, 10_000_000])
def test_any_offers_give_the_hash_of_the_file(files, order, room_bytes, monkeypatch):
    monkeypatch.setattr(checksums, "_OFFERED_BYTES", room_bytes)
    monkeypatch.setattr(checksums, "_OFFER_WAIT_S", 0.001)
    monkeypatch.setattr(checksums, "_GAP_BYTES", 1000)
    offers = list(runs_of(files))
    if order == "shuffled":
        random.Random(2).shuffle(offers)
    elif order == "some":
        offers = offers[3::4]
    elif order == "overlapping":
        offers = [(file, start - 90, np.concatenate([data[:90] * 0, data])) for file, start, data in offers]
        for file, start, data in offers:
            data[:90] = np.frombuffer(files[file].read_bytes(), np.uint8)[start : start + 90]
    elif order == "none":
        offers = []
    with InputHashes(files, len(files), drop_cache=False) as hashes:
        for offer in offers:
            hashes.offer(*offer)
        assert hashes.result() == wanted(files)


def test_whoever_reads_in_order_is_waited_for(tmp_path, monkeypatch):
    """Nothing is read a second time as long as what comes next is offered, however little room there is."""
    path = tmp_path / "large.bin"
    path.write_bytes(np.random.default_rng(1).bytes(24 << 20))
    raw = memoryview(path.read_bytes())
    monkeypatch.setattr(checksums, "_OFFERED_BYTES", 2 << 20)
    monkeypatch.setattr(checksums, "_OFFER_WAIT_S", 60.0)
    reads = []
    monkeypatch.setattr(checksums.os, "preadv", lambda fd, into, at: reads.append(at) or len(into[0]))
    with InputHashes([path], 1, drop_cache=False) as hashes:
        for start in range(0, len(raw), 1 << 20):
            hashes.offer(0, start, raw[start : start + (1 << 20)])
        assert hashes.result() == wanted([path])
    assert reads == []


def test_what_is_offered_is_what_counts(files):
    """The hash is that of the bytes that were used, not of a second look at the file."""
    used = np.frombuffer(files[0].read_bytes(), np.uint8).copy()
    used[5] ^= 1
    with InputHashes(files[:1], 1, drop_cache=False) as hashes:
        hashes.offer(0, 0, used)
        assert hashes.result() == [hashlib.sha256(used).hexdigest()]


def test_stops_while_it_waits(files):
    with InputHashes(files, len(files), drop_cache=True) as hashes:
        hashes.offer(0, 100_000, np.zeros(10, np.uint8))
    with pytest.raises(QuantizeCancelledError):
        hashes.check()
