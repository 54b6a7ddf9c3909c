"""The strict reader refuses every malformed file with a typed error; the writer is standard."""

from __future__ import annotations

import hashlib
import json
import os

import numpy as np
import pytest
import safetensors.numpy

from smolvla_edge.errors import BundleError, CheckpointError
from smolvla_edge.safetensors_file import (
    MAX_HEADER_BYTES,
    SafetensorsFile,
    SafetensorsWriter,
    TensorLayout,
    as_float32,
)


def raw_file(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    size = len(header) if length is None else length
    return size.to_bytes(8, "little") + header + data


def encode(header: object, data: bytes = b"") -> bytes:
    return raw_file(json.dumps(header).encode(), data)


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


@pytest.fixture
def small(tmp_path):
    """A valid file of every kind of tensor that matters: scalars, empties, three widths."""
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array(7, dtype=np.int64),
        "c": np.empty((0, 4), np.float16),
        "d": np.arange(3, dtype=np.uint8),
    }
    path = tmp_path / "small.safetensors"
    safetensors.numpy.save_file(arrays, path, {"format": "pt"})
    return path, arrays


def test_reads_what_the_reference_library_writes(small):
    path, arrays = small
    file = SafetensorsFile(path)
    assert file.metadata == {"format": "pt"}
    assert set(file.entries) == set(arrays)
    for name, values in arrays.items():
        read = file.read(name)
        assert read.dtype == values.dtype and read.shape == values.shape
        assert np.array_equal(read, values)
        assert b"".join(file.iter_chunks(name, 5)) == values.tobytes()
        assert all(len(chunk) <= 5 for chunk in file.iter_chunks(name, 5))


def test_writes_the_same_bytes_as_the_reference_library(small, tmp_path):
    path, arrays = small
    names = {"float32": "F32", "int64": "I64", "float16": "F16", "uint8": "U8"}
    layouts = [TensorLayout(n, names[str(a.dtype)], a.shape) for n, a in arrays.items()]
    with SafetensorsWriter(tmp_path / "ours", layouts, {"format": "pt"}) as writer:
        for layout in writer.order:
            data = arrays[layout.name].tobytes()
            writer.write(layout.name, [data[:3], data[3:]])
    written = (tmp_path / "ours").read_bytes()
    assert written == path.read_bytes()
    assert writer.file_bytes == len(written)
    assert writer.sha256 == hashlib.sha256(written).hexdigest()


MALFORMED = {
    "empty file": b"",
    "seven bytes": b"\x02\0\0\0\0\0\0",
    "header longer than the file": raw_file(b"{}", length=3),
    "header length near 2^64": raw_file(b"{}", length=2**64 - 1),
    "header over the cap": raw_file(b"{}", length=MAX_HEADER_BYTES + 1),
    "no header": raw_file(b""),
    "leading space": raw_file(b" {}"),
    "not UTF-8": raw_file(b'{"\xff": 1}'),
    "not JSON": raw_file(b"{]"),
    "text after the object": raw_file(b"{}{}"),
    "a list": raw_file(b"[]"),
    "deep nesting": raw_file(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "duplicate tensor": raw_file(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"x",
    ),
    "duplicate field": raw_file(
        b'{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"
    ),
    "number of 5000 digits": raw_file(
        b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,1]}}', b"x"
    ),
    "metadata no object": encode({"__metadata__": []}),
    "metadata no strings": encode({"__metadata__": {"a": 1}}),
    "empty name": encode({"": entry()}, bytes(8)),
    "control character in name": encode({"a\n": entry()}, bytes(8)),
    "lone surrogate in name": encode({"\ud800": entry()}, bytes(8)),
    "name too long": encode({"a" * 513: entry()}, bytes(8)),
    "entry no object": encode({"a": 1}),
    "entry without dtype": encode({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "entry with more": encode({"a": entry(extra=1)}, bytes(8)),
    "unknown dtype": encode({"a": entry(dtype="F4")}, bytes(8)),
    "dtype no string": encode({"a": entry(dtype=["F32"])}, bytes(8)),
    "negative size": encode({"a": entry(shape=(-2,))}, bytes(8)),
    "float size": encode({"a": entry(shape=(2.0,))}, bytes(8)),
    "boolean size": encode({"a": entry("F32", (True, 2))}, bytes(8)),
    "string size": encode({"a": entry(shape=("2",))}, bytes(8)),
    "shape no list": encode({"a": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}}, bytes(8)),
    "rank 9": encode({"a": entry("U8", (1,) * 9, (0, 1))}, bytes(1)),
    "size overflowing 64 bits": encode({"a": entry("F32", (2**62, 4), (0, 0))}),
    "product wrapping to the right size": encode({"a": entry("U8", (2**32, 2**32), (0, 0))}),
    "huge tensor in a small file": encode({"a": entry("F32", (2**40,), (0, 2**42))}, bytes(8)),
    "one offset": encode({"a": entry(offsets=(0,))}, bytes(8)),
    "three offsets": encode({"a": entry(offsets=(0, 8, 8))}, bytes(8)),
    "offsets reversed": encode({"a": entry(offsets=(8, 0))}, bytes(8)),
    "negative offset": encode({"a": entry(offsets=(-8, 0))}, bytes(8)),
    "offsets of another size": encode({"a": entry(offsets=(0, 4))}, bytes(4)),
    "data past the end": encode({"a": entry()}, bytes(7)),
    "trailing byte": encode({"a": entry()}, bytes(9)),
    "trailing data without tensors": encode({}, bytes(1)),
    "gap at the start": encode({"a": entry(offsets=(1, 9))}, bytes(9)),
    "gap between": encode({"a": entry(), "b": entry(offsets=(9, 17))}, bytes(17)),
    "overlap": encode({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
    "same place twice": encode({"a": entry(), "b": entry()}, bytes(8)),
    "empty tensor inside another": encode(
        {"a": entry(), "b": entry(shape=(0,), offsets=(4, 4))}, bytes(8)
    ),
    "too many tensors": encode({str(i): entry("U8", (0,), (0, 0)) for i in range(65537)}),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_files_are_refused(kind, tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(MALFORMED[kind])
    with pytest.raises(CheckpointError, match=r"bad\.safetensors"):
        SafetensorsFile(path)


def test_a_gigantic_header_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
    os.truncate(path, MAX_HEADER_BYTES + 100)
    with pytest.raises(CheckpointError, match=f"more than {MAX_HEADER_BYTES}"):
        SafetensorsFile(path)


def test_errors_are_of_the_kind_asked_for(tmp_path):
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(BundleError):
        SafetensorsFile(tmp_path / "x", BundleError)
    with pytest.raises(BundleError, match="cannot open"):
        SafetensorsFile(tmp_path / "absent", BundleError)
    with pytest.raises(BundleError, match="cannot open"):
        SafetensorsFile(tmp_path, BundleError)


def test_truncation_at_every_byte_is_refused(small, tmp_path):
    whole = small[0].read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            SafetensorsFile(path)


def test_every_bit_flip_before_the_data_is_refused_or_harmless(small, tmp_path):
    """A flip may rename a tensor or turn a dtype into one of the same width, never mislead."""
    whole = bytearray(small[0].read_bytes())
    header_end = 8 + int.from_bytes(whole[:8], "little")
    path = tmp_path / "flipped.safetensors"
    accepted = 0
    for bit in range(8 * header_end):
        whole[bit // 8] ^= 1 << bit % 8
        path.write_bytes(whole)
        try:
            file = SafetensorsFile(path)
        except CheckpointError:
            pass
        else:
            accepted += 1
            assert sum(e.nbytes for e in file.entries.values()) == len(whole) - header_end
            for name in file.entries:
                file.read(name)
        whole[bit // 8] ^= 1 << bit % 8
    assert accepted < 8 * header_end / 4


def test_a_file_that_shrinks_after_opening_is_an_error_and_no_crash(small):
    path, _ = small
    file = SafetensorsFile(path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="ended inside d"):
        file.read("d")
    with pytest.raises(CheckpointError, match="ended inside d"):
        list(file.iter_chunks("d"))
    with pytest.raises(CheckpointError, match="no tensor named 'z'"):
        file.read("z")


def test_widening_is_exact():
    values = np.array([1.0, -2.5, 1e-40, 3e38], np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    expected = (bits.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(as_float32(bits, "BF16"), expected)
    assert as_float32(values, "F32") is values
    assert np.array_equal(as_float32(np.float16([0.1]), "F16"), np.float32(np.float16([0.1])))


LAYOUTS = [TensorLayout("a", "F32", (2,)), TensorLayout("b", "U8", (3,))]


@pytest.mark.parametrize(
    "writes",
    [
        pytest.param([("b", bytes(3))], id="wrong order"),
        pytest.param([("a", bytes(7))], id="too short"),
        pytest.param([("a", bytes(9))], id="too long"),
        pytest.param([("a", bytes(8))], id="one missing"),
        pytest.param([("a", bytes(8)), ("b", bytes(3)), ("c", b"")], id="one too many"),
    ],
)
def test_a_wrong_write_leaves_no_file(writes, tmp_path):
    with (
        pytest.raises(ValueError, match="out"),
        SafetensorsWriter(tmp_path / "out", LAYOUTS) as writer,
    ):
        for name, data in writes:
            writer.write(name, [data])
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path):
    (tmp_path / "out").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), SafetensorsWriter(tmp_path / "out", LAYOUTS):
        raise KeyboardInterrupt
    assert (tmp_path / "out").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_two_tensors_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'a'"):
        SafetensorsWriter(tmp_path / "out", [LAYOUTS[0], LAYOUTS[0]])


def test_non_contiguous_arrays_are_written_row_major(tmp_path):
    values = np.arange(6, dtype=np.float32).reshape(2, 3).T
    with SafetensorsWriter(tmp_path / "out", [TensorLayout("a", "F32", (3, 2))]) as writer:
        writer.write("a", values)
    assert np.array_equal(SafetensorsFile(tmp_path / "out").read("a"), values)
