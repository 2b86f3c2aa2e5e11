"""Verifying files: sound ones pass, a block that is not finite is named, a wrong checksum is noticed."""

from __future__ import annotations

import hashlib
import json

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as T

from daemon.__main__ import run
from quant.verify import verify
from runtime.gguf import ModelFile
from tests.quant.helpers import encode

TYPES = [
    *(T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K),
    *(T.IQ4_NL, T.IQ4_XS, T.MXFP4, T.F16, T.BF16, T.F32),
]


def write(path, type_id, blocks, checksum=None):
    writer = gguf.GGUFWriter(path, "llama")
    if checksum is not None:
        writer.add_string("quantd.data_sha256", checksum)
    writer.add_tensor("blk.0.ffn_up.weight", blocks, raw_shape=blocks.shape, raw_dtype=type_id)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rows(type_id):
    x = np.random.default_rng(4).standard_normal((4, 512)).astype(np.float32)
    if type_id == T.F32:
        return x.view(np.uint8)
    return encode(x, type_id)


@pytest.mark.parametrize("type_id", TYPES, ids=lambda t: t.name)
def test_each_type(tmp_path, type_id):
    blocks = rows(type_id)
    sound = verify(write(tmp_path / "sound.gguf", type_id, blocks))
    assert sound.is_sound
    assert (sound.tensors, sound.n_bytes, sound.checksum, sound.unchecked) == (1, blocks.size, "none", ())
    _, block_bytes = gguf.GGML_QUANT_SIZES[type_id]
    damaged = blocks.reshape(-1, block_bytes).copy()
    for at in range(block_bytes):  # some byte of a block can make it not finite, at any type
        damaged[1, at] = 0xFF
    result = verify(write(tmp_path / "bad.gguf", type_id, damaged.reshape(blocks.shape)))
    assert not result.is_sound
    fault = result.faults[0]
    assert (fault.tensor, fault.block, fault.n_blocks) == ("blk.0.ffn_up.weight", 1, 1)
    data_offset = ModelFile.open(tmp_path / "bad.gguf").tensors["blk.0.ffn_up.weight"].offset
    assert fault.offset == data_offset + block_bytes


def test_checksum(tmp_path):
    blocks = rows(T.Q8_0)
    right = hashlib.sha256(blocks.tobytes().ljust(-(-blocks.size // 32) * 32, b"\0")).hexdigest()
    assert verify(write(tmp_path / "right.gguf", T.Q8_0, blocks, right)).checksum == "ok"
    wrong = verify(write(tmp_path / "wrong.gguf", T.Q8_0, blocks, "0" * 64))
    assert (wrong.checksum, wrong.is_sound) == ("wrong", False)


def test_command(tmp_path, capsys):
    blocks = rows(T.Q4_K)
    path = write(tmp_path / "m.gguf", T.Q4_K, blocks)
    assert run(["verify", str(path)]) == 0
    assert "sound" in capsys.readouterr().out
    blocks[2, 145] = 0x7C  # the high byte of a scale
    assert run(["verify", str(write(path, T.Q4_K, blocks)), "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["sound"] is False
    assert facts["faults"][0]["block"] == 5
    path.write_bytes(path.read_bytes()[:-100])
    assert run(["verify", str(path)]) == 65
