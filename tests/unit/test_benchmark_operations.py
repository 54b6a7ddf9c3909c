"""The list of operations against the counted flops, and against what an engine really does."""

from __future__ import annotations

from collections import Counter

import benchmark_helpers  # noqa: F401  (puts the repository on the path)
import numpy as np
import pytest
from test_benchmark_flops import model_of

from benchmarks.flops import exact_flops, image_tokens
from benchmarks.operations import BF16, INT4, INT8, PRECISIONS, operations
from smolvla_edge import load
from smolvla_edge.synthetic import make_checkpoint

ROWS = ("rope", "store_kv", "layer_norm", "rms_norm", "patchify", "pixel_shuffle", "copy",
        "flow_update", "letterbox")  # fmt: skip


@pytest.mark.parametrize("size, cameras, words", [("full", 1, 48), ("full", 3, 12),
                                                  ("libero", 2, 12), ("tiny", 2, 5)])  # fmt: skip
@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=lambda p: p.name)
def test_the_products_are_those_that_flops_counts(size, cameras, words, precision):
    model = model_of(size)
    want = exact_flops(model, cameras, words)
    listed = operations(model, cameras, words, precision)
    for stage in ("vision", "prefix", "flow"):
        assert sum(o.calls * o.flops for o in listed if o.stage == stage) == want[stage]
    assert sum(o.calls * o.flops for o in listed) == want["total"]


def test_weights_by_hand():
    assert BF16.nbytes(720, 2048) == 2 * 720 * 2048
    assert INT8.nbytes(720, 2048) == 720 * (2048 + 4)
    assert INT4.nbytes(720, 2048) == 720 * (1024 + 2 * 32)
    assert INT4.nbytes(1600, 720) == 1600 * (360 + 2 * 12)  # the last group is shorter


def test_the_expert_reads_its_weights_in_every_step():
    """97 M weights of the expert's layers, ten times: 1.93 GB in bfloat16."""
    by_hand = 8 * 720 * (1600 + 960) + 16 * 720 * (960 + 4096 + 2048)
    listed = operations(model_of("full"), 1, 12, PRECISIONS["bfloat16"])
    layers = [o for o in listed if o.stage == "flow" and o.kind == "linear" and o.bits == 16]
    assert sum(o.calls * o.weight_bytes for o in layers) == 10 * 2 * by_hand


def test_integers_add_the_rounding_of_rows():
    model = model_of("full")
    names = {
        name: {o.name for o in operations(model, 1, 12, p) if o.kind == "quantize_rows"}
        for name, p in PRECISIONS.items()
    }
    assert names["bfloat16"] == set() and names["balanced"] == {"rows for out", "rows for down"}
    stages = {o.stage for o in operations(model, 1, 12, PRECISIONS["balanced"])
              if o.kind == "quantize_rows"}  # fmt: skip
    assert stages == {"vision", "prefix"}  # the expert's 4-bit weights take bfloat16 rows


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """(model, records of one call) of a tiny float32 policy with two cameras and five words."""
    cameras = ["observation.images.a", "observation.images.b"]
    path = make_checkpoint(tmp_path_factory.mktemp("ops") / "tiny", "tiny", cameras=cameras,
                           dtypes="F32")  # fmt: skip
    policy = load(path, device="cpu", threads=1, allow_unnormalized=True)
    model = policy.model
    frames = [np.zeros((48, 64, 3), np.uint8)] * 2
    noise = np.ones((model.chunk_size, model.max_action_dim), np.float32)
    given = (frames, np.arange(1, 6), np.zeros(6, np.float32), noise)
    policy.engine.predict(*given)  # the first call also gathers positions
    policy.engine.start_recording(1 << 14)
    policy.engine.predict(*given)
    return model, policy.engine.take_records()["ops"]


def test_an_engine_does_these_operations_and_no_others(recorded):
    model, records = recorded
    listed = operations(model, 2, 5, PRECISIONS["float32"])
    want = Counter()
    for o in listed:
        want[o.kind] += o.calls
    del want["advance"]  # which is no operation on rows, and is not recorded
    assert Counter(r["kind"] for r in records) == want


def test_an_engine_does_them_at_these_sizes(recorded):
    """Rows, columns and work of every kind, as the engine itself notes them."""
    model, records = recorded
    listed = operations(model, 2, 5, PRECISIONS["float32"])
    state = 2 * model.max_state_dim * model.text_width  # which flops.py leaves out
    for kind in ("linear", "attention"):
        done = sum(r["flops"] for r in records if r["kind"] == kind)
        counted = sum(o.calls * o.flops for o in listed if o.kind == kind)
        if kind == "attention":
            # The prefix's state token is the last key and only its own row sees it.
            rows = 2 * image_tokens(model) + 5 + 1
            unseen = 4 * (rows - 1) * model.heads * model.head_dim * model.last_used_text_layer
            assert done == counted - unseen
        else:
            assert done == counted + state
    for kind in ROWS:
        have = sum(r["rows"] for r in records if r["kind"] == kind)
        if kind == "letterbox":  # recorded as rows and columns of a picture
            have = sum(r["rows"] * r["out"] for r in records if r["kind"] == kind)
        assert have == sum(o.calls * o.rows for o in listed if o.kind == kind), kind


def test_bytes_of_linear_layers_are_those_that_the_engine_notes(recorded):
    """In float32 both count each operand once, so they agree to the byte."""
    model, records = recorded
    listed = operations(model, 2, 5, PRECISIONS["float32"])
    done = sum(r["bytes"] for r in records if r["kind"] == "linear")
    state = 4 * model.max_state_dim  # its one row of input, which the list leaves out
    assert done == sum(o.calls * o.nbytes for o in listed if o.kind == "linear") + state


def test_kernels_by_hand():
    """The counts of tests/cuda/test_cuda_launches.cpp, which counts what runs, at full size."""
    model = model_of("full")
    for precision, rounding in (("bfloat16", 0), ("balanced", 2)):
        listed = operations(model, 2, 12, PRECISIONS[precision])
        kernels = {s: sum(o.kernels for o in listed if o.stage == s)
                   for s in ("preprocess", "vision", "prefix", "flow")}  # fmt: skip
        assert kernels == {
            "preprocess": 2,
            "vision": 2 * (5 + 12 * (8 + rounding)),
            "prefix": 2 + 1 + 15 * (8 + rounding) + 3 + 8 * 1 + 8 * 3,
            "flow": 10 * (6 + 16 * 8),
        }
