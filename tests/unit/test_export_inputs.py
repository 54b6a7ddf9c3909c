"""What an exported policy takes: any number of cameras, any length of a prompt, and no more."""

from __future__ import annotations

import numpy as np
import pytest
from needs import needs

import smolvla_edge
from smolvla_edge.errors import InputError, PlanError, PromptTooLongError
from smolvla_edge.noise import normal
from smolvla_edge.plan import Plan
from smolvla_edge.synthetic import make_checkpoint

with needs("torch", "onnx", "onnxscript", "onnxruntime"):
    import onnxruntime

    from smolvla_edge.export.exporter import export_onnx
    from smolvla_edge.source import open_source

CAMERAS = tuple(f"observation.images.camera{i}" for i in range(1, 5))
SIZES = [(48, 64), (64, 48), (64, 64), (33, 97)]  # height, width
BOUND = 1e-5  # of the largest action; two float32 implementations of 1 to 3 thousand roundings


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "special-tokens"])
def folders(request, tmp_path_factory):
    """(checkpoint, its export): four cameras, and one that is always blank."""
    base = tmp_path_factory.mktemp("four")
    overrides = {"empty_cameras": 1, "add_image_special_tokens": request.param}
    make_checkpoint(base / "checkpoint", "tiny", cameras=CAMERAS, overrides=overrides)
    export_onnx(open_source(base / "checkpoint"), base / "onnx")
    return base / "checkpoint", base / "onnx"


@pytest.fixture(scope="module")
def policies(folders):
    """(native, exported)."""
    return load(folders[0]), load(folders[1])


def load(path, plan="exact"):
    return smolvla_edge.load(path, threads=1, plan=plan, allow_missing_cameras=True)


def observation(policy, cameras, words="do"):
    random = np.random.default_rng(len(cameras))
    frames = {
        CAMERAS[i]: random.integers(0, 256, (*SIZES[i], 3), np.uint8) for i in sorted(cameras)
    }
    state = random.standard_normal(policy.contract.state_dim, np.float32)
    return frames, state, words


def assert_same(policies, cameras, words="do", plan=None):
    native, exported = policies
    given = observation(native, cameras, words)
    want = native.predict(*given, seed=3).actions
    got = exported.predict(*given, seed=3).actions
    assert np.abs(got - want).max() <= BOUND * np.abs(want).max()
    return got


@pytest.mark.parametrize(
    "cameras", [{0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}, {1}, {3}, {0, 3}, {1, 2, 3}]
)
def test_cameras(policies, cameras):
    """Those that are there are seen and no others, whichever they are."""
    assert_same(policies, cameras)


def test_another_camera_gives_other_actions(policies):
    one = assert_same(policies, {0})
    both = assert_same(policies, {0, 1})
    assert np.abs(one - both).max() > 1e-3


def test_prompts_of_every_length(policies, folders):
    tokenizer = policies[0]._encode
    limit = policies[0].contract.tokenizer.max_length
    seen = set()
    for count in (1, 2, limit - 1):
        words = "a" * count
        seen.add(len(tokenizer(words).ids))
        assert_same(policies, {0, 1}, words)
    assert max(seen) == limit
    with pytest.raises(PromptTooLongError, match=f"at most {limit} tokens"):
        policies[1].predict(*observation(policies[1], {0}, "a" * 2 * limit))


def test_policy_graph_masks_cameras(folders, policies):
    """One graph for all: a camera that is not there is masked, in any place."""
    session = onnxruntime.InferenceSession(str(folders[1] / "policy.onnx"))
    native = policies[0]
    some = [{0, 1, 2, 3}, {0, 1}, {2}, {0, 3}]
    if native.model.add_image_special_tokens:
        some = some[:1]  # special tokens of a masked camera stay, as with LeRobot's padding mask
    for cameras in some:
        frames, state, words = observation(native, cameras)
        noise = normal(3, native.model.chunk_size, native.model.max_action_dim)
        blank = np.zeros((2, 2, 3), np.uint8)
        feeds = {name: frames.get(name, blank) for name in CAMERAS}
        feeds |= {
            "camera_mask": np.array([name in frames for name in CAMERAS]),
            "tokens": native._encode(words).ids,
            "state": state,
            "noise": noise,
        }
        (got,) = session.run(["actions"], feeds)
        want = native.predict(frames, state, words, noise=noise).actions
        assert np.abs(got - want).max() <= BOUND * np.abs(want).max(), cameras


PLANS = [
    Plan(steps=1),
    Plan(steps=7),
    Plan(steps=3, solver="ab2"),
    Plan(steps=2, schedule=(1.0, 0.3, 0.0)),
    Plan(steps=4, horizon=3),
]


@pytest.mark.parametrize("plan", PLANS, ids=["1", "7", "ab2", "schedule", "horizon"])
def test_plans_at_run_time(folders, policies, plan):
    """Steps, solver, schedule and horizon are inputs of the graph: one export serves them all."""
    assert_same((load(folders[0], plan), load(folders[1], plan)), {0, 1})


def test_rejected(folders, policies):
    exported = policies[1]
    frames, state, words = observation(exported, {0})
    with pytest.raises(InputError, match="unknown camera"):
        exported.predict({"observation.images.nose": frames[CAMERAS[0]]}, state, words)
    with pytest.raises(InputError, match="got nan at index 2"):
        exported.predict(frames, np.where(np.arange(len(state)) == 2, np.nan, state), words)
    with pytest.raises(InputError, match=r"expected \d+ values"):
        exported.predict(frames, state[:-1], words)
    with pytest.raises(InputError, match="channels come first"):
        exported.predict({CAMERAS[0]: frames[CAMERAS[0]].transpose(2, 0, 1)}, state, words)
    with pytest.raises(PlanError, match="skip"):
        smolvla_edge.load(folders[1], plan=Plan(steps=4, skip={"vlm": (2,)}))
    with pytest.raises(PlanError, match="cache"):
        smolvla_edge.load(
            folders[1], plan="cache.threshold=0.02,cache.keyframe_every=20,cache.max_age=16"
        )


def test_layers_left_out(folders, tmp_path):
    """A plan that skips layers is exported as asked."""
    plan = Plan(steps=4, skip={"vision": (1,), "vlm": (2,), "expert": (3,)})
    export_onnx(open_source(folders[0]), tmp_path / "onnx", plan)
    assert_same((load(folders[0], plan), load(tmp_path / "onnx", "exported")), {0, 1})
