"""bfloat16 bundles: what is stored in which dtype, and that it computes as it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from smolvla_edge.bundle import read_bundle
from smolvla_edge.bundle_writer import write_bundle
from smolvla_edge.checkpoint import read_checkpoint
from smolvla_edge.errors import BackendError, BundleError, CheckpointError
from smolvla_edge.policy import load
from smolvla_edge.precision import convert_chunks, stored_dtype, to_bfloat16
from smolvla_edge.safetensors_file import TensorEntry, as_float32, read_tensor
from smolvla_edge.synthetic import make_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("precision") / "checkpoint", "tiny")


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    path = checkpoint.parent / "bfloat16"
    write_bundle(read_checkpoint(checkpoint), path, dtype="bfloat16")
    return path


def nearest_bfloat16(value: float) -> float:
    """By definition: of the two bfloat16 around a value the nearer, or else the even one."""
    bits = int(np.float32(value).view(np.uint32)) >> 16
    around = [float(as_float32(np.array([b], np.uint16), "BF16")[0]) for b in (bits, bits + 1)]
    gaps = [abs(value - candidate) for candidate in around]
    if gaps[0] == gaps[1]:
        return around[bits % 2]
    return around[int(np.argmin(gaps))]


def test_rounding_is_to_the_nearest_even() -> None:
    random = np.random.default_rng(0).standard_normal(2000).astype(np.float32)
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8), 2**-126], np.float32)
    values = np.concatenate([random, ties])
    got = as_float32(to_bfloat16(values), "BF16")
    assert got.tolist() == [nearest_bfloat16(float(v)) for v in values]


def test_rounding_keeps_what_is_no_number() -> None:
    special = np.array([np.inf, -np.inf, 0.0, -0.0], np.float32)
    np.testing.assert_array_equal(as_float32(to_bfloat16(special), "BF16"), special)
    payloads = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(as_float32(to_bfloat16(payloads), "BF16")).all()


def test_a_value_too_large_for_bfloat16_is_refused() -> None:
    huge = np.array([1.0, np.finfo(np.float32).max], "<f4").tobytes()
    with pytest.raises(CheckpointError, match=r"text\.x.*--dtype keep"):
        list(convert_chunks([huge], "F32", "BF16", "text.x"))
    assert b"".join(convert_chunks([huge], "F32", "F32", "text.x")) == huge


def test_widening_is_exact() -> None:
    half = np.array([0.1, -65504, 6e-8], "<f2")
    wide = np.frombuffer(b"".join(convert_chunks([half.tobytes()], "F16", "F32", "x")), "<f4")
    np.testing.assert_array_equal(wide, half.astype(np.float32))


def test_what_stays_float32(bundle: Path, checkpoint: Path) -> None:
    tensors = read_bundle(bundle).tensors
    cross = read_checkpoint(checkpoint).model.cross_expert_layers()
    assert cross
    matrices = {n for n, e in tensors.items() if len(e.shape) > 1 and "position" not in n}
    kept = {n for n in matrices if tensors[n].dtype == "F32"}
    assert kept == {
        *(f"{head}.weight" for head in ("state_in", "action_in", "time_in", "time_out")),
        "action_out.weight",
        *(f"expert.layers.{i}.attn.{part}.weight" for i in cross for part in "kv"),
    }
    assert all(tensors[n].dtype == "BF16" for n in matrices - kept)


def test_values_are_those_of_the_checkpoint_rounded(bundle: Path, checkpoint: Path) -> None:
    ours, theirs = read_bundle(bundle).tensors, read_checkpoint(checkpoint).tensors
    for name in ("vision.layers.0.mlp.up.weight", "text.embed.weight", "time_in.weight"):
        wide = as_float32(read_tensor(theirs[name]), theirs[name].dtype)
        got = as_float32(read_tensor(ours[name]), ours[name].dtype)
        if ours[name].dtype == "BF16":
            wide = as_float32(to_bfloat16(wide), "BF16")
        np.testing.assert_array_equal(got, wide)


def test_keep_leaves_every_dtype() -> None:
    for dtype in ("F32", "BF16", "F16"):
        entry = TensorEntry("text.layers.0.attn.q.weight", dtype, (4, 4), Path("x"), 0, 64)
        assert stored_dtype(entry.name, entry, [], "keep") == dtype
        assert stored_dtype(entry.name, entry, [], "bfloat16") == "BF16"


def test_unknown_dtype(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="float8"):
        write_bundle(read_checkpoint(checkpoint), tmp_path / "b", dtype="float8")
    assert not (tmp_path / "b").exists()


def observation(policy):
    frames = {
        name: np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        for i, name in enumerate(policy.contract.robot_names())
    }
    return frames, np.zeros(policy.contract.state_dim, np.float32), "pick up the cube"


def test_the_bundle_computes_in_bfloat16_and_says_so(bundle: Path, checkpoint: Path) -> None:
    rounded, exact = load(bundle), load(checkpoint)
    a = rounded.predict(*observation(rounded), seed=1)
    b = exact.predict(*observation(exact), seed=1)
    assert a.provenance["compute"] == "bfloat16"
    assert b.provenance["compute"] == "float32"
    assert rounded.engine.info()["compute"] == "bfloat16"
    difference = np.abs(a.normalized - b.normalized).max() / np.abs(b.normalized).max()
    # It is another arithmetic, of 8 bits: not equal, and not far.
    assert 1e-6 < difference < 0.1


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_isa_and_thread_count_gives_the_same_bytes(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    from smolvla_edge import _core

    reference = load(bundle, threads=1)
    expected = reference.predict(*observation(reference), seed=1).actions
    for isa in {row["isa"] for row in _core.kernel_table() if row["supported"]}:
        monkeypatch.setenv("SMOLVLA_FORCE_ISA", isa)
        policy = load(bundle, threads=threads)
        np.testing.assert_array_equal(
            policy.predict(*observation(policy), seed=1).actions, expected, isa
        )
    monkeypatch.delenv("SMOLVLA_FORCE_ISA")
    monkeypatch.setenv("SMOLVLA_FORCE_KERNEL", "gemm_words=scalar")  # there are none: no pairs
    policy = load(bundle, threads=threads)
    assert not [k for k in policy.engine.info()["kernels"] if k.startswith("gemm_words")]
    np.testing.assert_array_equal(policy.predict(*observation(policy), seed=1).actions, expected)


def test_unknown_compute() -> None:
    from smolvla_edge import _core

    with pytest.raises(BackendError, match="float8"):
        _core.CpuOps(1, "", "float8")
    with pytest.raises(BackendError, match="no bfloat16 products"):
        _core.peak(1, "scalar", 1.0, "bfloat16")
