"""Exported graphs in ONNX Runtime against LeRobot's own numbers."""

from __future__ import annotations

import golden_support as support
import native_runner
import numpy as np
import pytest
from needs import needs

with needs("torch", "onnx", "onnxscript", "onnxruntime"):
    import onnx
    import onnx_runner
    import onnxruntime

    from smolvla_edge.backends.onnx import OnnxBackend
    from smolvla_edge.backends.onnx_session import OnnxOptions
    from smolvla_edge.export.forms import Form
    from smolvla_edge.onnx_folder import read_export

import smolvla_edge
from smolvla_edge.errors import InputError
from smolvla_edge.flow_rows import schedule_rows
from smolvla_edge.plan import Plan

# Cameras of different sizes without a resize: the graph takes all cameras at once, and refuses.
MIXED = "no_resize_mixed"


@pytest.fixture(scope="session")
def exported(folder, tmp_path_factory):
    """case -> its export folder. Graphs are traced once for all cases of a model."""
    base = tmp_path_factory.getbasetemp()
    # Workers of pytest-xdist have folders side by side.
    shared = (base.parent if base.name.startswith("popen-") else base) / "onnx-exports"
    made = {}

    def get(case, form=None):
        form = form or Form()
        if (case, form) not in made:
            own = tmp_path_factory.mktemp(f"{case}-onnx") / "onnx"
            made[case, form] = onnx_runner.export_case(case, folder(case), shared, own, form)
        return made[case, form]

    return get


def run(backend, observation, sample):
    guidance = observation.guidance
    rtc = {}
    if guidance is not None:
        rtc = {
            "inference_delay": guidance.inference_delay,
            "prev_chunk_left_over": guidance.prev,
            "execution_horizon": guidance.execution_horizon,
        }
    return backend.trace(
        native_runner.pixels_of(observation, backend.config.resize, sample),
        observation.camera_mask[sample],
        observation.tokens[sample],
        observation.token_mask[sample],
        observation.state[sample],
        observation.noise[sample],
        **rtc,
    )


@pytest.mark.parametrize("case", [case for case in support.MODEL_CASES if case != MIXED])
@pytest.mark.parametrize("custom_ops", [False, True], ids=["standard", "library"])
def test_small(case, custom_ops, exported):
    """Image tokens, keys and values, and the actions, sample by sample."""
    options = OnnxOptions(custom_ops=custom_ops)
    backend = OnnxBackend(read_export(exported(case)), threads=1, options=options)
    observation = support.observation(case)
    for sample in range(observation.batch):
        got = run(backend, observation, sample)
        want = native_runner.computed(
            support.expected(case), backend.config, observation.camera_mask, sample
        )
        present = int(np.flatnonzero(observation.camera_mask[sample])[0])
        assert {"out.actions_padded", f"out.connector.{present}"} <= got.keys()
        support.compare_all(got, {name: want[name] for name in got if name in want})


def test_cameras_of_different_sizes_are_refused(exported):
    backend = OnnxBackend(read_export(exported(MIXED)), threads=1)
    observation = support.observation(MIXED)
    frames = [np.ascontiguousarray(frame[0].transpose(1, 2, 0)) for frame in observation.frames]
    with pytest.raises(InputError, match="expected one size"):
        backend.predict(
            frames,
            observation.tokens[0][observation.token_mask[0]],
            observation.state[0, : backend.config.state_dim].copy(),
            observation.noise[0],
        )


# The graph `policy` takes frames of bytes.
BYTES = [case for case in support.PIPELINE_CASES if "in.image_u8.0" in support.golden(case)]


@pytest.mark.parametrize("case", BYTES)
def test_policy(case, exported):
    """One graph and nothing of ours around it but the tokenizer."""
    golden, entry = support.golden(case), support.ALL_CASES[case]
    folder = exported(case)
    manifest = read_export(folder).manifest
    session = onnxruntime.InferenceSession(str(folder / "policy.onnx"))
    frames = {name: support.frame(golden, i) for i, name in enumerate(entry["image_keys"])}
    feeds = frames | {
        "tokens": golden["in.lang_tokens"][0],
        "token_mask": golden["in.lang_mask"][0],
        "state": golden["in.raw_state"][0],
        "noise": golden["in.noise"][0],
    }
    actions, normalized = session.run(["actions", "normalized"], feeds)
    assert [port.name for port in manifest.graphs["policy"].outputs] == ["actions", "normalized"]
    support.compare("normalized", normalized, golden["out.actions"][0])
    support.compare("actions", actions, golden["out.actions_unnormalized"][0])


@pytest.mark.parametrize("case", support.PIPELINE_CASES)
def test_predict(case, exported):
    """Raw frames, a task and a raw state to robot units, LeRobot's."""
    golden, entry = support.golden(case), support.ALL_CASES[case]
    policy = smolvla_edge.load(exported(case))
    chunk = policy.predict(
        images={name: support.frame(golden, i) for i, name in enumerate(entry["image_keys"])},
        state=golden["in.raw_state"][0],
        task=entry["task"],
        noise=golden["in.noise"][0],
    )
    support.compare("normalized", chunk.normalized, golden["out.actions"][0])
    support.compare("actions", chunk.actions, golden["out.actions_unnormalized"][0])


def test_reference_evaluator(exported):
    """The standard's own executor gives LeRobot's actions too: nothing rests on one runtime."""
    from onnx.reference import ReferenceEvaluator

    folder, observation = exported("base"), support.observation("base")
    config = read_export(folder).manifest.model

    def run(name, feeds):
        evaluator = ReferenceEvaluator(onnx.load(folder / f"{name}.onnx"))
        return evaluator.run(None, feeds)

    pixels = native_runner.pixels_of(observation, config.resize)
    (image_tokens,) = run("vision", {"pixels": pixels})
    keys, values, valid = run(
        "prefix",
        {
            "image_tokens": image_tokens,
            "camera_mask": observation.camera_mask[0],
            "tokens": observation.tokens[0],
            "token_mask": observation.token_mask[0],
            "state": observation.state[0],
        },
    )
    (actions,) = run(
        "flow",
        {
            "noise": observation.noise[0],
            "keys": keys,
            "values": values,
            "valid": valid,
            # It knows no inputs with defaults.
            "schedule": schedule_rows(Plan.exact(config.num_steps)),
            "pull_target": np.zeros((1, config.max_action_dim), np.float32),
            "pull_weights": np.zeros(1, np.float32),
        },
    )
    support.compare("actions", actions, support.golden("base")["out.actions_padded"][0])
