"""Attempts to crash or mislead `_core` from Python: each is a typed refusal and leaves no state.

The package checks most of this before the core is called; the core must not rely on that.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from core_helpers import CHUNK, DIMS, F32, STATE, arguments, make, plan_of, tensors_of

from smolvla_edge import _core, synthetic
from smolvla_edge.errors import (
    BackendError,
    CheckpointError,
    InputError,
    NonFiniteError,
    SmolVLAEdgeError,
)
from smolvla_edge.source import open_source


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("refusals") / "checkpoint"
    synthetic.make_checkpoint(path, "tiny")
    return path


@pytest.fixture(scope="module")
def source(folder):
    return open_source(folder)


@pytest.fixture(scope="module")
def engine(source):
    return make(source, threads=2)


def rtc(**changes):
    usual = {
        "prev": np.zeros((CHUNK, DIMS), F32),
        "inference_delay": 0,
        "execution_horizon": CHUNK,
        "max_guidance_weight": 10.0,
        "schedule": "LINEAR",
    }
    return {"rtc": {**usual, **changes}}


def misaligned(shape: tuple[int, ...]) -> np.ndarray:
    size = 4 * int(np.prod(shape))
    return np.zeros(size + 1, np.uint8)[1:].view(F32).reshape(shape)


WRONG = {
    "negative horizon": {"rows": -1},
    "smallest horizon": {"rows": -(2**31)},
    "largest horizon": {"rows": 2**31 - 1},
    "no rows": {"rows": 0},
    "no steps": {"steps": 0},
    "too many steps": {"steps": 1001},
    "no noise": {"noise": np.zeros((0, DIMS), F32)},
    "float64 noise": {"noise": np.ones((CHUNK, DIMS))},
    "strided noise": {"noise": np.ones((CHUNK, 2 * DIMS), F32)[:, ::2]},
    "misaligned noise": {"noise": misaligned((CHUNK, DIMS))},
    "big-endian noise": {"noise": np.ones((CHUNK, DIMS), ">f4")},
    "65 cameras": {"frames": [np.zeros((8, 8, 3), np.uint8)] * 65},
    "empty frame": {"frames": [np.zeros((0, 0, 3), np.uint8)]},
    "grey frame": {"frames": [np.zeros((48, 64, 1), np.uint8)]},
    "long frame": {"frames": [np.zeros((16385, 1, 3), np.uint8)]},
    "misaligned frame": {"frames": [misaligned((48, 64, 3))]},
    "frame of another kind": {"frames": ["frame"]},
    "token past the vocabulary": {"tokens": np.array([272])},
    "huge token": {"tokens": np.array([2**40])},
    "negative token": {"tokens": np.array([-1])},
    "too many tokens": {"tokens": np.zeros(10**6, np.int64)},
    "int32 tokens": {"tokens": np.zeros(3, np.int32)},
    "short state": {"state": np.zeros(3, F32)},
    "rtc of another kind": {"rtc": 5},
    "empty rtc": {"rtc": {}},
    "long previous chunk": rtc(prev=np.zeros((CHUNK + 1, DIMS), F32)),
    "wide previous chunk": rtc(prev=np.zeros((CHUNK, DIMS + 1), F32)),
    "negative delay": rtc(inference_delay=-1),
    "delay of another kind": rtc(inference_delay="a"),
    "unknown schedule": rtc(schedule="COSINE"),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_predict_refuses(engine, change):
    before = engine.predict(**arguments())["actions"].tobytes()
    with pytest.raises(InputError):
        engine.predict(**arguments(**change))
    assert engine.predict(**arguments())["actions"].tobytes() == before


@pytest.mark.parametrize("field", ["state", "noise", "prev"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_input_gives_no_action(engine, field, value):
    shape = {"state": 6}.get(field, (CHUNK, DIMS))
    bad = {field: np.full(shape, value, F32)}
    with pytest.raises(NonFiniteError, match="expected finite actions"):
        engine.predict(**arguments(**(rtc(**bad) if field == "prev" else bad)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "name",
    [
        "vision.layers.0.attn.q.weight",
        "vision.layers.1.attn.k.bias",
        "text.layers.0.attn.q.weight",
        "expert.layers.0.attn.q.weight",
        "expert.layers.1.attn.k.weight",
        "expert.layers.1.mlp.gate.weight",
    ],
)
@pytest.mark.parametrize("isa", ["scalar", ""])
def test_a_broken_weight_cannot_hide_in_the_softmax(source, tmp_path, name, value, isa):
    """Scores that are all NaN would become uniform attention if exp() clamped them."""
    entries = {entry[0]: entry for entry in tensors_of(source)}
    _, dtype, shape, _, _, size = entries[name]
    item = np.array([value], F32).tobytes()[-2 if dtype == "BF16" else 0 :]
    (tmp_path / "weight").write_bytes(item * (size // len(item)))
    entries[name] = (name, dtype, shape, str(tmp_path / "weight"), 0, size)
    broken = make(source, tensors=list(entries.values()), isa=isa)
    with pytest.raises(NonFiniteError):
        broken.predict(**arguments())


def test_seams_refuse(source):
    engine = make(source)
    noise, state, yes = np.ones((CHUNK, DIMS), F32), np.zeros(STATE, F32), np.ones(1, np.bool_)
    one = np.array([1])
    image = np.zeros((1, 3, 64, 64), F32)
    image_tokens = np.zeros((1, 4, 96), F32)
    exact = plan_of()
    refused = [
        lambda: engine.denoise(noise, plan_of()),  # nothing prefilled
        lambda: engine.denoise(noise, plan_of(-5)),
        lambda: engine.encode_images(np.zeros((2**32 + 2, 3, 64, 0), F32), exact),
        # 65537 x 65537 patches: 1 x 2^32 + 131073, which no int holds
        lambda: engine.encode_images(np.zeros((0, 3, 65537 * 16, 65537 * 16), F32), exact),
        lambda: engine.prefill(
            np.zeros((2, 10**5, 96), F32), yes.repeat(2), one, yes, state, exact
        ),
        lambda: engine.prefill(np.zeros((0, 2**33, 96), F32), yes[:0], one, yes, state, exact),
        lambda: engine.prefill(np.zeros((65, 1, 96), F32), yes.repeat(65), one, yes, state, exact),
        lambda: engine.prefill(image_tokens, yes, one, yes.repeat(2), state, exact),
        lambda: engine.sample_actions(image, yes, one, yes, state, noise, plan_of(-1)),
        lambda: engine.sample_actions(image[..., :16], yes, one, yes, state, noise, plan_of()),
        lambda: engine.trace(image, yes, one, yes, state, noise, plan_of(-CHUNK)),
    ]
    for call in refused:
        with pytest.raises(InputError):
            call()
    # A refused prefill leaves no half-built prefix to denoise against.
    engine.prefill(image_tokens, yes, one, yes, state, exact)
    engine.denoise(noise, plan_of())
    with pytest.raises(InputError):
        engine.prefill(image_tokens, yes, np.zeros(60, np.int64), yes.repeat(60), state, exact)
    with pytest.raises(InputError, match="prefill"):
        engine.denoise(noise, plan_of())


def test_numpy_booleans_may_hold_any_byte(engine):
    state, one = np.zeros(STATE, F32), np.array([1])
    image_tokens = np.ones((1, 4, 96), F32)
    odd = np.frombuffer(b"\x02", np.bool_)
    assert engine.prefill(image_tokens, odd, one, odd, state, plan_of()) == 4 + 1 + 1


CONFIG_LIES = [
    {"add_image_special_tokens": True, "fake_token_id": 2**30, "global_token_id": 0},
    {"add_image_special_tokens": True, "fake_token_id": 0, "global_token_id": -1},
    {"patch_size": 0},
    {"patch_size": 128},
    {"state_dim": -1},
    {"action_dim": -1},
    {"resize": [64, 0]},
    {"resize": [64]},
    {"resize": "ab"},
    {"resize": [2**40, 1]},
    {"heads": 12},
    {"kv_heads": 4},
    {"head_dim": 15},
    {"heads": 10**9},
    {"max_cameras": 65},
    {"vocab": 10**7},
    {"expert_layers": 0},
    {"expert_layers": 2},
    {"scale_factor": 3},
    {"rope_theta": float("nan")},
    {"min_period": 0.0},
    {"vision_eps": float("inf")},
    {"vision_eps": "x"},
    {"num_steps": 1001},
    {"max_action_dim": 7},
    {"adapt_to_pi_aloha": True},
]


@pytest.mark.parametrize("lie", CONFIG_LIES, ids=str)
def test_a_lying_configuration_is_refused(source, lie):
    with pytest.raises(CheckpointError):
        make(source, **lie)


@pytest.mark.parametrize(
    "state",
    [
        5,
        {},
        {"mode": 3},
        {"mode": "MEAN_STD"},
        {"mode": "MEAN_STD", "a": np.zeros(3, F32), "b": np.zeros(3, F32)},
    ],
    ids=str,
)
def test_wrong_statistics_are_refused(source, state):
    with pytest.raises(SmolVLAEdgeError, match="statistics of state"):
        make(source, stats={"state": state})


def test_a_long_path_is_not_cut_inside_a_character(source):
    name, dtype, shape, _, _, size = tensors_of(source)[0]
    path = "/tmp/" + "/".join(["é" * 120] * 6)
    with pytest.raises(CheckpointError, match="é: No such file"):
        make(source, tensors=[(name, dtype, shape, path, 0, size)])


def test_free_functions_refuse():
    for call in (
        lambda: _core.letterbox(None, 64, 64),
        lambda: _core.letterbox(np.zeros((4, 4, 3), np.uint8), 0, 64),
        lambda: _core.peak(10**6),
        lambda: _core.peak(-1),
        lambda: _core.peak(1, "", float("nan")),
        lambda: _core.peak(1, "", float("inf")),
    ):
        with pytest.raises(InputError):
            call()
    with pytest.raises(BackendError):
        _core.peak(1, "avx1024")
    assert _core.peak(3, "", 1.0) > 0


def test_single_operations_refuse(tmp_path):
    path = tmp_path / "w.bin"
    path.write_bytes(bytes(4096))
    ops = _core.CpuOps(1)
    kv, linear = ops.make_kv(2, 8, 32), ops.load_linear(str(path), "F32", 4, 8)
    rows, q = np.zeros((3, 16), F32), np.zeros((3, 32), F32)
    one = np.ones(3, np.int32)
    read_only = np.zeros((3, 4), F32)
    read_only.flags.writeable = False
    narrow = ops.make_activation(np.zeros((3, 30), F32))
    odd_kv, odd_q = ops.make_kv(2, 7, 32), ops.make_activation(np.zeros((3, 28), F32))
    for call in (
        lambda: _core.CpuOps(10**6),
        lambda: _core.CpuOps(0),
        lambda: ops.load_linear(str(path), "F32", 4, 0),
        lambda: ops.load_linear(str(path), "F32", -4, -8),
        lambda: ops.load_linear(str(path), "F32", 5, 8, True),
        lambda: ops.make_kv(2, -8, 32),
        lambda: ops.make_kv(2, 8, 0),
        lambda: ops.store_kv(kv, rows, rows, 30),
        lambda: ops.store_kv(kv, rows, rows, -1),
        lambda: ops.store_kv(kv, q, q, 0),
        lambda: ops.attention(kv, q, one * 33, q.copy(), 4, 2),
        lambda: ops.attention(kv, q, one * 0, q.copy(), 4, 2),
        lambda: ops.attention(kv, q, one, q.copy(), 0, 0),
        lambda: ops.attention(kv, q, one, q.copy(), 4, 1),
        lambda: ops.attention(kv, narrow, one, q.copy(), 4, 2),
        lambda: ops.attention(kv, q, one, narrow, 4, 2),
        lambda: ops.attention(odd_kv, odd_q, one, odd_q, 4, 2),
        lambda: ops.linear(linear, np.zeros((3, 8), F32), read_only),
        lambda: ops.linear(linear, np.zeros((3, 8), F32), np.zeros((3, 4), F32), activation="relu"),
    ):
        with pytest.raises(InputError):
            call()
    with pytest.raises(IndexError):
        ops.linear(7, np.zeros((3, 8), F32), np.zeros((3, 4), F32))
