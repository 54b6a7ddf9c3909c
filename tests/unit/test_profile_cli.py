"""`smolvla-edge profile` on a tiny policy: what the engine records, and what comes of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from smolvla_edge.bundle_writer import write_bundle
from smolvla_edge.checkpoint import read_checkpoint
from smolvla_edge.cli.app import app
from smolvla_edge.errors import BackendError, InputError
from smolvla_edge.policy import load
from smolvla_edge.profile.measure import TASK, measure
from smolvla_edge.profile.records import build_call
from smolvla_edge.profile.summary import account


@pytest.fixture
def cli(capsys):
    def call(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            app(args=["profile", *map(str, arguments)], prog_name="smolvla-edge")
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def policy(pristine):
    return load(pristine, threads=2, allow_missing_cameras=True)


@pytest.fixture(scope="module")
def recorded(policy):
    """One call with two cameras."""
    return measure(policy, 2, 1, lambda *_: None)


class TestRecording:
    def test_stages_of_a_call(self, recorded, policy):
        steps = policy.model.num_steps
        assert [stage.name for stage in recorded.typical.stages] == [
            *("preprocess 0", "vision 0", "preprocess 1", "vision 1", "prefix"),
            *(f"step {i}" for i in range(steps)),
        ]

    def test_the_operations_of_a_camera(self, recorded, policy):
        vision = recorded.typical.stages[1]
        layer = ("layer_norm", "linear", "store_kv", "attention", "linear", "layer_norm")
        assert [op.kind for op in vision.ops] == [
            *("patchify", "linear"),
            *((*layer, "linear", "linear") * policy.model.vision_layers),
            *("layer_norm", "pixel_shuffle", "linear"),
        ]
        assert [op.name for op in vision.ops][:5] == [
            "vision.patch patchify",
            "vision.patch",
            "vision.layers.0 layer_norm",
            "vision.layers.0.attn.q+k+v",
            "vision.layers.0 store_kv",
        ]

    def test_every_operation_of_the_prefix_and_flow_has_its_layer(self, recorded):
        for stage in recorded.typical.stages[4:]:
            tower = "text" if stage.name == "prefix" else "expert"
            for op in stage.ops:
                if op.kind == "attention":
                    assert op.name.startswith(f"{tower}.layers."), op.name
        flow = recorded.typical.stages[-1]
        assert (
            flow.ops[0].name == "time_in after action_in"
            and flow.ops[-1].name == "flow flow_update"
        )

    def test_the_account_adds_up(self, recorded):
        a = account(recorded.typical)
        assert a.operations + a.between + a.engine + a.python == a.wall
        assert min(a.operations, a.between, a.engine, a.python) >= 0
        assert a.operations > 0 and a.python > 0

    def test_flops_are_those_of_the_model(self, recorded, policy):
        """Counted here from the configuration, without looking at any operation."""
        m = policy.model
        patches, tokens = m.position_side**2, m.tokens_per_image(*m.resize)
        joined = m.vision_width * m.scale_factor**2
        vision = (
            2 * patches * 3 * m.patch_size**2 * m.vision_width
            + m.vision_layers
            * (
                2 * patches * m.vision_width * (4 * m.vision_width + 2 * m.vision_mlp)
                + 4 * patches**2 * m.vision_width
            )
            + 2 * tokens * joined * m.text_width
        )
        rows = 2 * tokens + len(TASK) + 2  # a byte a token, the newline, the state
        q, kv = m.heads * m.head_dim, m.kv_heads * m.head_dim
        last = m.last_used_text_layer
        crossing = len(m.cross_expert_layers())
        seen = (rows - 1) * (rows - 1) + rows  # only the state row sees the state
        prefix = (
            2 * m.max_state_dim * m.text_width
            + 2 * rows * m.text_width * 2 * kv * (last + 1)
            + last * 2 * rows * m.text_width * (2 * q + 3 * m.text_mlp)
            + last * 4 * seen * q
            + crossing * 2 * rows * kv * 2 * kv
        )
        chunk, width = m.chunk_size, m.expert_width
        own = m.expert_layers - crossing
        causal = chunk * (chunk + 1) // 2
        step = (
            2 * chunk * width * (2 * m.max_action_dim + width)
            + m.expert_layers * 2 * chunk * width * (2 * q + 3 * m.expert_mlp)
            + own * 2 * chunk * width * 2 * kv
            + m.expert_layers * 4 * chunk * rows * q
            + own * 4 * causal * q
        )
        found = [sum(op.flops for op in s.ops) for s in recorded.typical.stages]
        assert found == [0, vision, 0, vision, prefix, *([step] * m.num_steps)]

    def test_recording_changes_no_action(self, policy):
        images = {name: np.zeros((48, 64, 3), np.uint8) for name in policy.contract.cameras}
        state = np.zeros(policy.contract.state_dim, np.float32)
        before = policy.predict(images, state, TASK, seed=3).actions
        policy.engine.start_recording(10_000)
        during = policy.predict(images, state, TASK, seed=3).actions
        raw = policy.engine.take_records()
        assert before.tobytes() == during.tobytes()
        assert len(raw["ops"]) > 100 and raw["overwritten"] == 0
        policy.predict(images, state, TASK, seed=3)
        assert policy.engine.take_records() == {"ops": [], "stages": [], "overwritten": 0}

    def test_a_recording_that_is_too_small_is_refused_later(self, policy):
        images = {name: np.zeros((48, 64, 3), np.uint8) for name in policy.contract.cameras}
        state = np.zeros(policy.contract.state_dim, np.float32)
        policy.engine.start_recording(20)
        policy.predict(images, state, TASK, seed=3)
        raw = policy.engine.take_records()
        assert len(raw["ops"]) + len(raw["stages"]) == 20
        with pytest.raises(BackendError, match="did not fit"):
            build_call(0, 1 << 62, raw)

    @pytest.mark.parametrize("capacity", [0, 1 << 40])
    def test_capacities(self, policy, capacity):
        with pytest.raises(InputError, match="capacity"):
            policy.engine.start_recording(capacity)

    def test_one_camera(self, policy):
        one = measure(policy, 1, 1, lambda *_: None)
        assert [stage.name for stage in one.typical.stages][:3] == [
            "preprocess 0",
            "vision 0",
            "prefix",
        ]
        assert len(one.provenance["cameras"]) == 1

    @pytest.mark.parametrize("cameras", [0, 3])
    def test_cameras_that_the_policy_does_not_have(self, policy, cameras):
        with pytest.raises(InputError, match="1 to 2"):
            measure(policy, cameras, 1, lambda *_: None)

    def test_the_median_call_is_taken_apart(self, policy):
        several = measure(policy, 1, 4, lambda *_: None)
        durations = sorted(call.duration for call in several.calls)
        assert len(durations) == len(several.plain_ns) == 4
        assert several.typical.duration == durations[1]
        assert several.ceiling.threads == 2
        assert all(rate > 0 for rate in several.ceiling.gflops.values())

    def test_bfloat16_operations_have_the_bfloat16_ceiling(self, pristine, tmp_path):
        bundle = tmp_path / "bundle"
        write_bundle(read_checkpoint(pristine), bundle, dtype="bfloat16")
        ops = measure(load(bundle, threads=1), 2, 1, lambda *_: None).typical.ops
        computes = {op.name: op.compute for op in ops}
        assert computes["vision.layers.0.attn.q+k+v"] == "bfloat16"
        assert computes["vision.layers.0 attention"] == "bfloat16"
        assert computes["time_in after action_in"] == computes["action_out"] == "float32"


class TestCommand:
    def test_a_page_and_tables(self, cli, pristine, tmp_path):
        page = tmp_path / "p.html"
        code, out, err = cli(pristine, "--calls", 2, "--out", page, "--threads", 1)
        assert code == 0, err
        for words in ("where the time went", "by stage", "vision.layers.*.attn.q+k+v", str(page)):
            assert words in out
        text = page.read_text()
        assert text.startswith("<!DOCTYPE html>") and "expert.layers.0.mlp.gate+up" in text
        assert page.stat().st_mode & 0o777 == 0o644
        assert list(tmp_path.iterdir()) == [page]

    def test_json(self, cli, pristine, tmp_path):
        page = tmp_path / "p.html"
        code, out, _ = cli(pristine, "--calls", 3, "--out", page, "--json", "--cameras", 1)
        data = json.loads(out)
        assert code == 0 and data["page"] == str(page)
        assert len(data["calls_ms"]) == len(data["plain_calls_ms"]) == 3
        account = data["account"]
        parts = [account[f"{name}_ms"] for name in ("operations", "between", "engine", "python")]
        assert sum(parts) == pytest.approx(account["wall_ms"], rel=1e-9)
        assert account["wall_ms"] == sorted(data["calls_ms"])[1]
        for table in ("kinds", "names"):
            total = sum(row["ms"] for row in data[table])
            assert total == pytest.approx(account["operations_ms"], rel=1e-9)
        stages = sum(row["ms"] for row in data["stages"])
        assert stages == pytest.approx(account["operations_ms"] + account["between_ms"], rel=1e-9)
        last = data["operations"][-1]
        assert last["kind"] == "flow_update" and last["start_ms"] + last["ms"] <= account["wall_ms"]

    @pytest.mark.parametrize(
        ("out", "words"), [("p.txt", ".html"), ("no/folder/p.html", "no folder")]
    )
    def test_a_target_that_cannot_be(self, cli, pristine, tmp_path, out, words):
        code, _, err = cli(pristine, "--out", tmp_path / out)
        assert code == 2 and words in err
        assert list(tmp_path.iterdir()) == []

    def test_too_many_cameras(self, cli, pristine, tmp_path):
        code, _, err = cli(pristine, "--out", tmp_path / "p.html", "--cameras", 9)
        assert code == 2 and "camera2" in err

    def test_help_teaches(self, cli):
        code, out, _ = cli("--help")
        assert code == 0
        for words in ("Example:", "smolvla-edge profile my_bundle", "ceiling", "Read next"):
            assert words in out
