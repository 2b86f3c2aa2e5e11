"""ModelFile over real files."""

from __future__ import annotations

import pytest

from runtime.errors import ModelFormatError
from runtime.gguf import ModelFile


def test_reads_a_real_model(shared_dir):
    file = ModelFile.open(shared_dir / "models" / "stories260K.gguf")
    assert file.architecture == "llama"
    assert file.integer("llama.embedding_length", minimum=1) == 64
    assert len(file.strings("tokenizer.ggml.tokens")) == 512
    assert file.number("llama.attention.layer_norm_rms_epsilon") > 0
    tensor = file.tensors["token_embd.weight"]
    assert (tensor.type_name, tensor.shape, tensor.n_bytes) == ("F32", (64, 512), 64 * 512 * 4)
    assert file.data("token_embd.weight").shape == (tensor.n_bytes,)
    assert 0 < file.resident_bytes() <= file.size_bytes + 4096


def test_getters_name_the_key(shared_dir):
    file = ModelFile.open(shared_dir / "models" / "stories260K.gguf")
    with pytest.raises(ModelFormatError, match="nothing is missing") as caught:
        file.integer("llama.nothing")
    assert (caught.value.code, caught.value.where) == ("MISSING_KEY", "llama.nothing")
    with pytest.raises(ModelFormatError, match="of type string; it must be an integer"):
        file.integer("general.architecture")
    with pytest.raises(ModelFormatError, match="is 64; it must be at least 65") as caught:
        file.integer("llama.embedding_length", minimum=65)
    assert caught.value.code == "OUT_OF_RANGE"
    assert file.integer("llama.nothing", 7) == 7
