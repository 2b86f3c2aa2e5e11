"""Whole files: what is written, that it reads back, and that the same bytes come out every time."""

from __future__ import annotations

import threading
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as T

from quant.errors import CannotCreateError, OutputExistsError, QuantizeCancelledError
from quant.quantizer import Progress, Quantizer
from quant.recipes import RECIPES, UnsupportedRecipeError
from runtime.errors import ModelChangedError, ModelFormatError, RequestError, UnsupportedModelError
from runtime.gguf import ModelFile
from tests.quant.helpers import decode, encode, write_model


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("source") / "small-f16.gguf")


def quantize(source: Path, output: Path, recipe: str = "Q4_K_M", **options) -> Path:
    Quantizer(source, output, recipe, **options).run()
    return output


def data_of(path: Path) -> tuple[list[tuple], bytes]:
    """Table and bytes of the tensors, without the metadata, which names the inputs."""
    file = ModelFile.open(path)
    start = file.shards[0].data_offset
    table = [(t.name, t.type_id, t.shape, t.offset - start) for t in file.tensors.values()]
    return table, path.read_bytes()[start:]


def entries(path: Path) -> list[Path]:
    return sorted(path.iterdir())


@pytest.mark.parametrize("recipe", RECIPES)
def test_output_reads_back(source, tmp_path, recipe):
    output = quantize(source, tmp_path / "out.gguf", recipe)
    before = {t.name: t for t in gguf.GGUFReader(source).tensors}
    after = gguf.GGUFReader(output)
    ours = ModelFile.open(output)
    assert {t.name for t in after.tensors} == set(before) == set(ours.tensors)
    for tensor in after.tensors:
        x = before[tensor.name].data
        assert ours.tensors[tensor.name].type_id == tensor.tensor_type
        assert np.array_equal(ours.data(tensor.name), tensor.data.reshape(-1).view(np.uint8))
        if tensor.tensor_type == T.F32:
            assert np.array_equal(tensor.data, x)
        else:
            blocks = np.ascontiguousarray(tensor.data).view(np.uint8).reshape(len(x), -1)
            assert np.array_equal(blocks, encode(x, tensor.tensor_type))
            error = decode(tensor.data, tensor.tensor_type) - x.astype(np.float32)
            allowed = {"Q2": 0.4, "Q3": 0.25, "Q4": 0.12, "IQ": 0.12}.get(recipe[:2], 0.06)
            assert np.sqrt((error**2).mean()) < allowed * np.sqrt((x.astype(np.float32) ** 2).mean())
    assert output.stat().st_size % ours.shards[0].alignment == 0


def test_experts_become_mxfp4(tmp_path):
    """Stacked experts, slice by slice; everything else is Q8_0."""
    n_experts, n_ff, n_embd = 3, 96, 64
    writer = gguf.GGUFWriter(tmp_path / "in.gguf", "llama")
    writer.add_block_count(1)
    writer.add_expert_count(n_experts)
    x = np.random.default_rng(1).standard_normal((n_experts, n_embd, n_ff)).astype(np.float16)
    writer.add_tensor("blk.0.ffn_down_exps.weight", x)
    writer.add_tensor("blk.0.attn_q.weight", x[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = ModelFile.open(quantize(tmp_path / "in.gguf", tmp_path / "out.gguf", "MXFP4"))
    assert {t.name: t.type_name for t in file.tensors.values()} == {
        "blk.0.ffn_down_exps.weight": "MXFP4",
        "blk.0.attn_q.weight": "Q8_0",
    }
    assert file.get("general.file_type") == 38
    blocks = file.data("blk.0.ffn_down_exps.weight").reshape(n_experts * n_embd, -1)
    assert np.array_equal(blocks, encode(x.reshape(-1, n_ff), T.MXFP4))


def test_metadata_is_carried_over(source, tmp_path):
    before = ModelFile.open(source)
    after = ModelFile.open(quantize(source, tmp_path / "out.gguf"))
    changed = {"general.file_type", "general.quantization_version"}
    assert [key for key in after.keys() if key not in changed and not key.startswith("quantd.")] == [
        key for key in before.keys() if key not in changed
    ]
    for key in before.keys():
        if key not in changed:
            assert (after.kind(key), after.get(key)) == (before.kind(key), before.get(key))
    assert after.get("general.file_type") == 15
    assert after.get("general.quantization_version") == 2


def test_every_kind_of_value_keeps_its_bytes(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "in.gguf", "llama")
    kind = gguf.GGUFValueType
    values = [
        (kind.UINT8, 255), (kind.INT8, -128), (kind.UINT16, 65535), (kind.INT16, -32768), (kind.UINT32, 2**32 - 1),
        (kind.INT32, -(2**31)), (kind.UINT64, 2**64 - 1), (kind.INT64, -(2**63)), (kind.FLOAT32, 0.1),
        (kind.FLOAT64, 0.1), (kind.BOOL, True), (kind.STRING, "naïve ☃"),
    ]  # fmt: skip
    for type_id, value in values:
        writer.add_key_value(f"test.{type_id.name.lower()}", value, type_id)
        writer.add_key_value(f"test.array.{type_id.name.lower()}", [value] * 3, kind.ARRAY, type_id)
    writer.add_key_value("test.broken", b"\xff\xfe\x00broken", kind.STRING)
    writer.add_key_value("llama.block_count", 1, kind.UINT32)
    writer.add_tensor("blk.0.attn_q.weight", np.ones((2, 256), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source, output = tmp_path / "in.gguf", quantize(tmp_path / "in.gguf", tmp_path / "out.gguf")
    before, after = gguf.GGUFReader(source).fields, gguf.GGUFReader(output).fields
    compared = 0
    for name, field in before.items():
        if name.startswith("test."):
            raw = [part.tobytes() for part in field.parts]
            assert [part.tobytes() for part in after[name].parts] == raw
            assert after[name].types == field.types
            compared += 1
    assert compared == 25


@pytest.mark.parametrize("recipe", RECIPES)
def test_same_bytes_whatever_the_threads_and_the_chunks(source, tmp_path, monkeypatch, recipe):
    one = quantize(source, tmp_path / "one.gguf", recipe, threads=1).read_bytes()
    assert quantize(source, tmp_path / "two.gguf", recipe, threads=3).read_bytes() == one
    monkeypatch.setattr("quant.quantizer.CHUNK_ELEMENTS", 8192)
    monkeypatch.setattr("quant.writer.FLUSH_BYTES", 20000)
    assert quantize(source, tmp_path / "three.gguf", recipe).read_bytes() == one


@pytest.mark.parametrize("level", ["scalar", "avx2", "avxvnni", "avx512vnni"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_same_bytes_at_every_level(source, tmp_path, monkeypatch, level, recipe):
    wanted = quantize(source, tmp_path / "best.gguf", recipe).read_bytes()
    monkeypatch.setenv("QUANTD_CPU_LEVEL", level)
    try:
        found = quantize(source, tmp_path / "level.gguf", recipe).read_bytes()
    except ValueError:
        pytest.skip(f"this CPU has no {level}")
    assert found == wanted


def test_float_types_of_the_source_agree(tmp_path):
    """Values that f16 and bf16 both hold exactly give the same blocks from all three source types."""
    outputs = []
    for dtype in ("float32", "float16", "bfloat16"):
        source = tmp_path / f"{dtype}.gguf"
        writer = gguf.GGUFWriter(source, "llama")
        writer.add_block_count(1)
        x = np.random.default_rng(3).integers(-64, 64, (64, 256)).astype(np.float32) / 64
        if dtype == "bfloat16":
            packed = gguf.quants.quantize(x, T.BF16)
            writer.add_tensor("output.weight", packed, raw_shape=packed.shape, raw_dtype=T.BF16)
        else:
            writer.add_tensor("output.weight", x.astype(dtype))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        outputs.append(data_of(quantize(source, tmp_path / f"{dtype}-out.gguf")))
    assert outputs[0] == outputs[1] == outputs[2]


def split_in_two(source: Path, folder: Path) -> Path:
    """The same model as two shards, the way gguf-split writes them."""
    reader = gguf.GGUFReader(source)
    middle = len(reader.tensors) // 2
    for index, tensors in enumerate((reader.tensors[:middle], reader.tensors[middle:])):
        path = folder / f"split-{index + 1:05d}-of-00002.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        if index == 0:
            for name, field in reader.fields.items():
                if not name.startswith("GGUF.") and name != "general.architecture":
                    kind = field.types[0]
                    element = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
                    writer.add_key_value(name, field.contents(), kind, element)
        writer.add_uint16("split.no", index)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in tensors:
            writer.add_tensor(tensor.name, tensor.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return folder / "split-00001-of-00002.gguf"


def test_split_source_gives_one_file(source, tmp_path):
    shard = split_in_two(source, tmp_path)
    whole = quantize(source, tmp_path / "whole.gguf")
    joined = quantize(shard, tmp_path / "joined.gguf")
    assert data_of(joined) == data_of(whole)
    second = tmp_path / "split-00002-of-00002.gguf"
    with pytest.raises(CannotCreateError, match="source itself"):
        Quantizer(shard, second, force=True)


def test_file_equals_llama_quantize(shared_dir, tmp_path):
    """Q8_0 has no choices: all data is the same.  Of the others everything but the blocks is, and the manifest is ours."""
    models = shared_dir / "models"
    for name in ("Q8_0", "Q4_K_M", "Q5_K_S"):
        ours = ModelFile.open(quantize(models / "tiny256-f16.gguf", tmp_path / f"{name}.gguf", name))
        theirs = ModelFile.open(models / f"tiny256-{name}.gguf")
        keys = [key for key in ours.keys() if not key.startswith("quantd.")]
        assert keys == theirs.keys()
        assert all((ours.kind(key), ours.get(key)) == (theirs.kind(key), theirs.get(key)) for key in keys)
        start, other = ours.shards[0].data_offset, theirs.shards[0].data_offset
        places = [(t.name, t.type_id, t.shape, t.offset - start) for t in ours.tensors.values()]
        assert places == [(t.name, t.type_id, t.shape, t.offset - other) for t in theirs.tensors.values()]
        data, expected = ours.path.read_bytes()[start:], theirs.path.read_bytes()[other:]
        assert len(data) == len(expected)
        assert (data == expected) is (name == "Q8_0")


def test_progress_counts_up_to_everything(source, tmp_path, monkeypatch):
    monkeypatch.setattr("quant.progress.PROGRESS_INTERVAL_S", 0.0)
    seen: list[Progress] = []
    result = Quantizer(source, tmp_path / "out.gguf").run(seen.append)
    assert [p.bytes_done for p in seen] == sorted({p.bytes_done for p in seen})
    assert seen[-1].bytes_done == seen[-1].bytes_total
    assert seen[-1].tensors_done == seen[-1].tensors_total == len(ModelFile.open(source).tensors)
    assert seen[-1].eta_s == 0
    assert all(p.bytes_per_s > 0 and p.eta_s >= 0 and p.tensor for p in seen)
    assert result.output_bytes == (tmp_path / "out.gguf").stat().st_size
    assert result.source_bytes == source.stat().st_size
    assert 4.5 < result.bits_per_weight < 7
    assert sum(count for count, _ in result.types.values()) == seen[-1].tensors_total


def test_cancel_leaves_nothing(source, tmp_path):
    cancel = threading.Event()
    job = Quantizer(source, tmp_path / "out.gguf")
    with pytest.raises(QuantizeCancelledError):
        job.run(lambda _: cancel.set(), cancel)
    assert entries(tmp_path) == []


def test_failure_in_progress_leaves_nothing(source, tmp_path):
    def fail(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Quantizer(source, tmp_path / "out.gguf").run(fail)
    assert entries(tmp_path) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_bad_weight_is_refused_by_name_and_row(tmp_path, value, dtype):
    source = write_model(
        tmp_path / "bad.gguf", n_layers=1, dtype=dtype, spoil="blk.0.attn_k.weight", value=value
    )
    with pytest.raises(
        ModelFormatError, match=r"blk\.0\.attn_k\.weight, row 3, column 5: .*not finite"
    ) as caught:
        quantize(source, tmp_path / "out.gguf")
    assert (caught.value.code, caught.value.where) == ("NOT_FINITE", "blk.0.attn_k.weight")
    stored = source.read_bytes()[caught.value.offset :][: 4 if dtype == "float32" else 2]
    exponent = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000}[dtype]
    assert int.from_bytes(stored, "little") & exponent == exponent
    assert entries(tmp_path) == [source]


def test_weight_beyond_the_scales_is_refused(tmp_path):
    source = write_model(
        tmp_path / "big.gguf", n_layers=1, dtype="float32", spoil="output.weight", value=1e30
    )
    with pytest.raises(ModelFormatError, match=r"output\.weight, row 3, column 5: 1.*larger than"):
        quantize(source, tmp_path / "out.gguf")
    assert entries(tmp_path) == [source]


def test_narrow_rows_fall_back(tmp_path):
    source = write_model(tmp_path / "narrow.gguf", n_layers=1, n_embd=96, n_ff=100, tied=True)
    types = {
        name: info.type_name
        for name, info in ModelFile.open(quantize(source, tmp_path / "out.gguf")).tensors.items()
    }
    assert types["token_embd.weight"] == "Q8_0"
    assert types["blk.0.attn_q.weight"] == "Q5_0"
    assert types["blk.0.ffn_down.weight"] == "F16"


def test_refusals_before_any_work(source, tmp_path):
    target = tmp_path / "out.gguf"
    with pytest.raises(UnsupportedRecipeError):
        Quantizer(source, target, "IQ2_M")
    for threads in (0, -1, 257):
        with pytest.raises(RequestError, match="threads"):
            Quantizer(source, target, threads=threads)
    with pytest.raises(FileNotFoundError):
        Quantizer(tmp_path / "absent.gguf", target)
    with pytest.raises(CannotCreateError, match="does not exist"):
        Quantizer(source, tmp_path / "absent" / "out.gguf")
    with pytest.raises(CannotCreateError, match="is a folder"):
        Quantizer(source, tmp_path)
    with pytest.raises(CannotCreateError):
        Quantizer(source, tmp_path / ("n" * 300))
    with pytest.raises(CannotCreateError, match="source itself"):
        Quantizer(source, source, force=True)
    link = tmp_path / "link.gguf"
    link.symlink_to(source)
    with pytest.raises(CannotCreateError, match="source itself"):
        Quantizer(source, link, force=True)
    assert entries(tmp_path) == [link]


def test_existing_output_needs_force(source, tmp_path):
    target = tmp_path / "out.gguf"
    target.write_bytes(b"precious")
    with pytest.raises(OutputExistsError, match="--force"):
        Quantizer(source, target)
    assert target.read_bytes() == b"precious"
    quantize(source, target, force=True)
    assert target.read_bytes()[:4] == b"GGUF"
    assert entries(tmp_path) == [target, tmp_path / "out.gguf.manifest.json"]


def test_name_taken_during_the_work_is_not_replaced(source, tmp_path):
    target = tmp_path / "out.gguf"
    job = Quantizer(source, target)
    with pytest.raises(OutputExistsError, match="meanwhile"):
        job.run(lambda _: target.write_bytes(b"precious"))
    assert target.read_bytes() == b"precious"
    assert entries(tmp_path) == [target]


def test_quantized_and_empty_sources_are_refused(source, tmp_path):
    small = quantize(source, tmp_path / "small.gguf")
    with pytest.raises(UnsupportedModelError, match=r"output\.weight is Q6_K"):
        Quantizer(small, tmp_path / "again.gguf")
    writer = gguf.GGUFWriter(tmp_path / "vocabulary.gguf", "llama")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UnsupportedModelError, match="no tensors"):
        Quantizer(tmp_path / "vocabulary.gguf", tmp_path / "out.gguf")


def test_damaged_sources_are_refused(source, tmp_path):
    damaged = tmp_path / "damaged.gguf"
    whole = source.read_bytes()
    for size in (0, 3, 24, 1000, len(whole) // 2, len(whole) - 1000):
        damaged.write_bytes(whole[:size])
        with pytest.raises(ModelFormatError):
            Quantizer(damaged, tmp_path / "out.gguf")
    assert entries(tmp_path) == [damaged]


@pytest.mark.parametrize("how", ["truncate", "touch"])
def test_source_that_changes_meanwhile_is_noticed(tmp_path, how, monkeypatch):
    source = write_model(tmp_path / "in.gguf")
    monkeypatch.setattr("quant.quantizer.CHUNK_ELEMENTS", 8192)

    def change(_):
        if how == "touch":
            with source.open("r+b") as file:
                file.write(b"GGUF")
        elif source.stat().st_size > 40000:
            with source.open("r+b") as file:
                file.truncate(40000)

    with pytest.raises(ModelChangedError, match="changed while"):
        Quantizer(source, tmp_path / "out.gguf").run(change)
    assert entries(tmp_path) == [source]
