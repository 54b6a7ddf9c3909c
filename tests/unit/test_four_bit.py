"""bitsandbytes' 4-bit weights: decoded by hand, against the library, from checkpoint to actions."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from cli_helpers import refused
from policy_helpers import IMAGES, STATE, TASK, tiny_checkpoint

from smolvla_edge.checkpoint import read_checkpoint
from smolvla_edge.errors import CheckpointError, QuantizationError
from smolvla_edge.four_bit import find_four_bit
from smolvla_edge.names import lerobot_name
from smolvla_edge.policy import load
from smolvla_edge.safetensors_file import (
    SafetensorsFile,
    SafetensorsWriter,
    TensorLayout,
    as_float32,
    read_tensor,
)
from smolvla_edge.source import open_source

NAME = "some.layer.weight"
STATE_NAME = NAME + ".quant_state.bitsandbytes__nf4"
KINDS = {"uint8": "U8", "float32": "F32"}


def made(shape=(5, 7), block=32, nested=None, said=None):
    """The tensors of one weight, random codes. said: what its state says instead; None: nothing."""
    random = np.random.default_rng(0)
    count = shape[0] * shape[1]
    blocks = -(-count // block)
    state = {"quant_type": "nf4", "blocksize": block, "dtype": "float32", "shape": list(shape)}
    tensors = {
        NAME: random.integers(0, 256, ((count + 1) // 2, 1), dtype=np.uint8),
        NAME + ".quant_map": np.sort(random.uniform(-1, 1, 16)).astype(np.float32),
        NAME + ".absmax": random.uniform(0.1, 2, blocks).astype(np.float32),
    }
    if nested:
        state |= {"nested_blocksize": nested, "nested_dtype": "float32", "nested_offset": 0.75}
        tensors[NAME + ".absmax"] = random.integers(0, 256, blocks, dtype=np.uint8)
        inner = random.uniform(0.1, 1, -(-blocks // nested))
        tensors[NAME + ".nested_absmax"] = inner.astype(np.float32)
        tensors[NAME + ".nested_quant_map"] = np.linspace(-1, 1, 256, dtype=np.float32)
    state |= said or {}
    text = json.dumps({key: value for key, value in state.items() if value is not None})
    tensors[STATE_NAME] = np.frombuffer(text.encode(), np.uint8)
    return tensors


def stored(tensors, folder):
    layouts = [TensorLayout(name, KINDS[str(a.dtype)], a.shape) for name, a in tensors.items()]
    with SafetensorsWriter(folder / "w.safetensors", layouts) as writer:
        for layout in writer.order:
            writer.write(layout.name, np.ascontiguousarray(tensors[layout.name]))
    return SafetensorsFile(folder / "w.safetensors").entries


def decoded(tensors, folder):
    weights, _ = find_four_bit(stored(tensors, folder))
    return weights[NAME].weight()


@pytest.mark.parametrize("nested", [None, 32])
@pytest.mark.parametrize("shape, block", [((5, 7), 32), ((3, 720), 64), ((64, 64), 64)])
def test_a_weight_is_what_its_codes_say(tmp_path, shape, block, nested):
    tensors = made(shape, block, nested)
    weight = decoded(tensors, tmp_path)
    assert weight.shape == shape and weight.dtype == np.float32
    packed = tensors[NAME].ravel()
    for at in range(0, shape[0] * shape[1], 11):
        byte = int(packed[at // 2])
        code = byte >> 4 if at % 2 == 0 else byte & 15
        scale = tensors[NAME + ".absmax"][at // block]
        if nested:
            outer = tensors[NAME + ".nested_absmax"][at // block // nested]
            scale = tensors[NAME + ".nested_quant_map"][scale] * outer + np.float32(0.75)
        assert weight.ravel()[at] == tensors[NAME + ".quant_map"][code] * scale


def test_other_tensors_stay(tmp_path):
    tensors = {**made(), "norm.weight": np.ones(3, np.float32)}
    weights, rest = find_four_bit(stored(tensors, tmp_path))
    assert weights.keys() == {NAME} and rest.keys() == {"norm.weight"}


@pytest.mark.parametrize(
    "said, words",
    [
        ({"quant_type": "fp4"}, "stored as nf4"),
        ({"blocksize": 48}, "48"),
        ({"shape": [5, 8]}, "expected 20 numbers"),
        ({"shape": [5]}, "shape"),
        ({"shape": [5.0, 7]}, "shape"),
        ({"shape": [1 << 20, 1 << 20]}, "shape"),
        ({"dtype": "int4"}, "int4"),
        ({"nested_offset": None}, "around None"),
        ({"nested_blocksize": 7}, "blocks of 7"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(tmp_path, said, words):
    with pytest.raises(CheckpointError, match=words):
        decoded(made(nested=32, said=said), tmp_path)


@pytest.mark.parametrize("part", ["", ".absmax", ".quant_map"])
def test_a_missing_part_is_refused(tmp_path, part):
    tensors = made()
    del tensors[NAME + part]
    with pytest.raises(CheckpointError, match=f"{NAME}{part} is missing"):
        decoded(tensors, tmp_path)


@pytest.mark.parametrize("part", ["absmax", "quant_map"])
def test_numbers_that_are_none_are_refused(tmp_path, part):
    tensors = made()
    tensors[f"{NAME}.{part}"][0] = np.nan
    with pytest.raises(CheckpointError, match=f"{part}: expected finite"):
        decoded(tensors, tmp_path)


def test_a_state_that_is_no_little_json_is_refused(tmp_path):
    for content in (b"{" * 20, b"[1]", b" " * 5000):
        tensors = made()
        tensors[STATE_NAME] = np.frombuffer(content, np.uint8)
        with pytest.raises(CheckpointError):
            decoded(tensors, tmp_path)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("shape", [(40, 720), (33, 45), (64, 256)])
def test_it_is_what_bitsandbytes_decodes(tmp_path, kind, double, shape):
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    random = np.random.default_rng(1)
    weight = torch.from_numpy(random.standard_normal(shape).astype(np.float32))
    packed, state = functional.quantize_4bit(
        weight, blocksize=64, compress_statistics=double, quant_type=kind
    )
    tensors = {f"{NAME}.{k}": v.numpy() for k, v in state.as_dict(packed=True).items()}
    ours = decoded({NAME: packed.numpy(), **tensors}, tmp_path)
    # Its CPU kernel restarts blocks at each row, which is wrong for columns that are no multiple of
    # them: as rows of one block (and zeros at the end) it reads what it wrote.
    blocks = -(-weight.numel() // 64)
    room = torch.zeros(blocks * 32, 1, dtype=torch.uint8)
    room[: len(packed)] = packed
    state.shape = torch.Size((blocks, 64))
    theirs = functional.dequantize_4bit(room, state).ravel()[: weight.numel()].reshape(shape)
    assert np.array_equal(ours, theirs.numpy())
    error = np.linalg.norm(ours - weight.numpy()) / np.linalg.norm(weight.numpy())
    assert error < {"nf4": 0.1, "fp4": 0.13}[kind]


def test_from_a_checkpoint_to_actions(cli, tmp_path):
    pytest.importorskip("bitsandbytes")
    plain = tiny_checkpoint(tmp_path / "plain")
    result = cli("quantize", plain, tmp_path / "nf4", "--recipe", "nf4", "--json")
    assert result.code == 0, result.err
    assert result.json["weights"] > 30
    with pytest.raises(CheckpointError, match="convert it first"):
        read_checkpoint(tmp_path / "nf4")
    converted = cli("convert", tmp_path / "nf4", tmp_path / "bundle")
    assert converted.code == 0, converted.err
    source, exact = open_source(tmp_path / "bundle"), open_source(plain)
    note = source.bundle.provenance["four_bit"]
    assert note["weights"] == result.json["weights"] and note["double"]
    assert source.bundle.provenance["source"] == str(tmp_path / "nf4")
    entries = SafetensorsFile(tmp_path / "nf4" / "model.safetensors").entries
    weights, _ = find_four_bit(entries)
    for name, entry in source.tensors.items():
        theirs = lerobot_name(name)
        assert entry.dtype == exact.tensors[name].dtype
        got = as_float32(read_tensor(entry), entry.dtype)
        if theirs in weights:
            want = weights[theirs].weight()
            assert np.abs(got - want).max() <= 2.0**-8 * np.abs(want).max()
        else:
            wanted = exact.tensors[name]
            assert np.array_equal(got, as_float32(read_tensor(wanted), wanted.dtype))
    both = (plain, tmp_path / "bundle")
    chunks = [load(path).predict(IMAGES, STATE, TASK, seed=1).actions for path in both]
    assert 0 < np.abs(chunks[0] - chunks[1]).max() < 0.3 * np.ptp(chunks[0])
    refused(cli("quantize", plain, tmp_path / "nf4", "--recipe", "nf4"), "exists")
    refused(cli("quantize", tmp_path / "bundle", tmp_path / "c", "--recipe", "fp4"), "a bundle")


def test_only_what_bitsandbytes_knows_is_written(tmp_path):
    from smolvla_edge.compress.four_bit_writer import write_four_bit

    source = open_source(tiny_checkpoint(tmp_path / "plain"))
    with pytest.raises(QuantizationError, match="nf4, fp4"):
        write_four_bit(source, tmp_path / "x", "int4")
    with pytest.raises(QuantizationError, match="a Hub id"):
        nowhere = replace(source, provenance={"source": str(tmp_path / "none")})
        write_four_bit(nowhere, tmp_path / "x")
