"""What a checkpoint declares to this package alone, under "smolvla_edge" in its config.json."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from policy_helpers import IMAGES, STATE, TASK

import smolvla_edge as se
from smolvla_edge.bundle import read_bundle
from smolvla_edge.bundle_writer import write_bundle
from smolvla_edge.checkpoint import read_checkpoint
from smolvla_edge.config import ModelConfig
from smolvla_edge.errors import CheckpointError, PlanError
from smolvla_edge.plan import Plan, Skip
from smolvla_edge.plan_fit import check_fit
from smolvla_edge.source import open_source
from smolvla_edge.synthetic import make_checkpoint

ONE_STEP = {"flow": {"kind": "one_step"}}


def checkpoint(folder: Path, declared: Any = None, **config: Any) -> Path:
    """A tiny one, with one step unless something else is said."""
    made = make_checkpoint(folder / "c", "tiny", overrides={"num_steps": 1, **config})
    path = made / "config.json"
    own = {} if declared is None else {"smolvla_edge": declared}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    return made


class TestRead:
    @pytest.mark.parametrize(
        "declared", [None, {}, {"flow": {}}, {"flow": {"kind": "flow_matching"}}]
    )
    def test_nothing_is_flow_matching(self, tmp_path: Path, declared: Any) -> None:
        model = open_source(checkpoint(tmp_path, declared)).model
        assert (model.flow_kind, model.exits) == ("flow_matching", ())
        assert not {"flow_kind", "exits"} & model.to_dict().keys()

    def test_one_step_and_exits(self, tmp_path: Path) -> None:
        model = open_source(checkpoint(tmp_path, {**ONE_STEP, "exits": [1, 3]})).model
        assert (model.flow_kind, model.exits) == ("one_step", (1, 3))
        assert ModelConfig.from_dict(json.loads(json.dumps(model.to_dict()))) == model

    @pytest.mark.parametrize(
        "declared, said",
        [
            (
                {"flow": {"kind": "mean_flow"}},
                "kind: expected one of flow_matching, one_step.*mean",
            ),
            ({"flow": {"kind": 1}}, "kind"),
            ({"flow": "one_step"}, "flow: expected an object"),
            ({"flow": {"kind": "one_step", "teacher": 1}}, "smolvla_edge: flow.*teacher"),
            ({"blend": 1}, "smolvla_edge.*got blend"),
            (["flow"], "smolvla_edge: expected an object"),
            ({"exits": 2}, "exits: expected a list"),
            ({"exits": ["2"]}, "exits"),
            ({"exits": [0]}, "exits"),
            ({"exits": [2, 2]}, "exits: expected rising numbers of layers from 1 to 3"),
            ({"exits": [2, 4]}, r"exits.*got \[2, 4\]"),
        ],
    )
    def test_refused(self, tmp_path: Path, declared: Any, said: str) -> None:
        with pytest.raises(CheckpointError, match=said):
            read_checkpoint(checkpoint(tmp_path, declared))

    def test_one_step_is_one(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"num_steps: expected 1.*one_step.*got 4"):
            read_checkpoint(checkpoint(tmp_path, ONE_STEP, num_steps=4))

    def test_the_bundle_keeps_it(self, tmp_path: Path) -> None:
        source = read_checkpoint(checkpoint(tmp_path, {**ONE_STEP, "exits": [2]}))
        write_bundle(source, tmp_path / "b", allow_no_tokenizer=True)
        assert read_bundle(tmp_path / "b").model == source.model

    @pytest.mark.parametrize("change", [{"flow_kind": "other"}, {"exits": [9]}, {"exits": "2"}])
    def test_a_tampered_bundle(self, tmp_path: Path, change: dict[str, Any]) -> None:
        model = open_source(checkpoint(tmp_path, ONE_STEP)).model
        with pytest.raises(CheckpointError, match=r"flow|exits"):
            ModelConfig.from_dict(model.to_dict() | change)


class TestOneStep:
    @pytest.mark.parametrize(
        "plan, named",
        [
            (Plan(steps=2), "steps=2"),
            (Plan(steps=1, solver="ab2"), "solver=ab2"),
            (Plan(steps=1, schedule=(1, 0)), "schedule"),
            (Plan(steps=1, adaptive=(0.9, 0.8)), "adaptive"),
            (Plan(steps=1, stop=0.1), "stop"),
            (Plan(steps=1, warm_start=0.5), "warm_start"),
            (Plan(steps=1, skip=Skip(reuse=((),))), "skip.reuse"),
        ],
    )
    def test_nothing_to_integrate(self, tmp_path: Path, plan: Plan, named: str) -> None:
        source = open_source(checkpoint(tmp_path, ONE_STEP))
        with pytest.raises(PlanError, match=f"one_step.*Expected steps=1.*{named}; remove"):
            check_fit(plan, source.model, source.contract)
        check_fit(plan, replace(source.model, flow_kind="flow_matching"), source.contract)

    def test_what_leaves_other_work_out(self, tmp_path: Path) -> None:
        source = open_source(checkpoint(tmp_path, ONE_STEP))
        plan = Plan(steps=1, horizon=2, skip=Skip(vlm=(1,), expert=(2,)), cache=se.Cache(0.1, 5, 5))
        check_fit(plan, source.model, source.contract)

    def test_it_runs_as_before(self, tmp_path: Path) -> None:
        """The step is Euler's either way: what is declared refuses, and changes no number."""
        chunks = []
        for name, declared in (("plain", None), ("declared", ONE_STEP)):
            (tmp_path / name).mkdir()
            policy = se.load(checkpoint(tmp_path / name, declared), backend="native", device="cpu")
            chunks.append(policy.predict(IMAGES, STATE, TASK, seed=3))
            if declared:
                with pytest.raises(PlanError, match="one_step"):
                    se.load(tmp_path / name / "c", backend="native", device="cpu", plan="steps=2")
        np.testing.assert_array_equal(chunks[0].actions, chunks[1].actions)


class TestExits:
    def test_only_declared_ones(self, tmp_path: Path) -> None:
        path = checkpoint(tmp_path, {"exits": [1, 3]}, num_steps=2)
        for plan, said in (("exit=2", "it declares 1, 3"), ("exit=4", "expected an exit")):
            with pytest.raises(PlanError, match=said):
                se.load(path, plan=plan)
        actions = [
            se.load(path, plan=plan).predict(IMAGES, STATE, TASK, seed=0).actions
            for plan in ("exit=1", "exit=3", "exact")
        ]
        assert np.abs(actions[0] - actions[1]).max() > 1e-3
        assert np.abs(actions[1] - actions[2]).max() > 1e-3

    def test_nothing_behind_it_is_computed(self, tmp_path: Path) -> None:
        path = checkpoint(tmp_path, {"exits": [1, 3]}, num_steps=2)
        policy = se.load(path, plan="exit=3")
        policy.engine.start_recording(10_000)
        policy.predict(IMAGES, STATE, TASK, seed=0)
        ran = str(policy.engine.take_records()["ops"])
        for part in ("text", "expert"):
            assert f"{part}.layers.2." in ran and f"{part}.layers.3." not in ran

    def test_none_declared(self, tmp_path: Path) -> None:
        with pytest.raises(PlanError, match="it declares none"):
            se.load(checkpoint(tmp_path), plan="exit=2")
