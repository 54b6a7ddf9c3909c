"""Plans: bad values are refused, fields a backend does not implement are named, presets prove."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from smolvla_edge.errors import PlanError
from smolvla_edge.plan import Cache, Plan, Skip
from smolvla_edge.presets import Preset, built_in_presets, read_presets, resolve_plan

RICH = Plan(
    steps=4,
    solver="ab2",
    schedule=(1.0, 0.7, 0.4, 0.2, 0.0),
    horizon=10,
    skip=Skip(vlm=(14, 15), reuse=((), (3,), (), (3, 5))),
    cache=Cache(0.1, 5, 3, ("observation.images.top",)),
    warm_start=0.5,
    stop=0.01,
    late_state=True,
    exit=2,
)
ADAPTIVE = Plan(adaptive=(0.99, 0.9), warm_start=0.5)


class TestValues:
    @pytest.mark.parametrize(
        "field, value",
        [
            ("steps", 0),
            ("steps", -1),
            ("steps", 1001),
            ("steps", 10.0),
            ("steps", True),
            ("steps", None),
            ("solver", "heun"),
            ("solver", None),
            ("schedule", (1.0, 0.5, 0.0)),
            ("schedule", "fast"),
            ("horizon", 0),
            ("horizon", 2.0),
            ("skip", {"head": (1,)}),
            ("skip", {"vlm": (3, 3)}),
            ("skip", {"vlm": (3, 1)}),
            ("skip", {"vlm": (-1,)}),
            ("skip", {"vlm": 3}),
            ("skip", 3),
            ("cache", {"threshold": 0.1}),
            ("warm_start", 0.0),
            ("warm_start", 1.0),
            ("warm_start", float("nan")),
            ("late_state", 1),
            ("exit", 0),
            ("exit", "2"),
            ("stop", -0.1),
            ("stop", float("nan")),
            ("adaptive", (0.9,)),
            ("adaptive", (0.5, 0.9)),
            ("adaptive", (1.1, 0.9)),
            ("adaptive", (0.9, -1.1)),
            ("adaptive", 0.9),
            ("skip", {"reuse": [[], [2]]}),
            ("skip", {"reuse": [[2]] + [[]] * 9}),
            ("skip", {"reuse": [[], [3, 3]] + [[]] * 8}),
            ("skip", {"reuse": [[], 3] + [[]] * 8}),
            ("skip", {"expert": (3,), "reuse": [[], [3]] + [[]] * 8}),
            ("skip", {"vlm": (2**70,)}),
        ],
    )
    def test_refused(self, field: str, value: Any) -> None:
        with pytest.raises(PlanError, match=field):
            Plan(**{field: value})

    @pytest.mark.parametrize(
        "times", [(1.0, 0.5, 0.5, 0.0), (0.9, 0.5, 0.2, 0.0), (1, 0.5, 0.2, 0.1), (1, 0.2, 0.5, 0)]
    )
    def test_schedule_falls_from_one_to_zero(self, times: tuple[float, ...]) -> None:
        with pytest.raises(PlanError, match="falling from 1 to 0"):
            Plan(steps=3, schedule=times)

    @pytest.mark.parametrize(
        "values",
        [(-0.1, 1, 1), (float("inf"), 1, 1), (0.1, 0, 1), (0.1, 1, 0), (0.1, 1.5, 1), ("x", 1, 1)],
    )
    def test_cache(self, values: tuple[Any, ...]) -> None:
        with pytest.raises(PlanError, match="cache"):
            Cache(*values)
        with pytest.raises(PlanError, match=r"cache\.cameras"):
            Cache(0.1, 1, 1, (3,))  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "value", [{"dilate": -1}, {"dilate": 1.0}, {"check": -1}, {"padding": 1}, {"attended": -1}]
    )
    def test_cache_by_name(self, value: dict[str, Any]) -> None:
        with pytest.raises(PlanError, match=rf"cache\.{next(iter(value))}"):
            Cache(0.1, 1, 1, **value)

    @pytest.mark.parametrize(
        "field, value",
        [
            ("schedule", RICH.schedule),
            ("solver", "ab2"),
            ("stop", 0.1),
            ("skip", RICH.skip),
        ],
    )
    def test_adaptive_chooses_alone(self, field: str, value: Any) -> None:
        with pytest.raises(PlanError, match=f"remove .*{field}"):
            Plan(steps=4, adaptive=(0.9, 0.5), **{field: value})

    def test_hashable_and_frozen(self) -> None:
        assert len({RICH, dataclasses.replace(RICH), Plan()}) == 2
        with pytest.raises(dataclasses.FrozenInstanceError):
            RICH.steps = 3  # type: ignore[misc]

    def test_skip_as_a_mapping(self) -> None:
        assert Plan(skip={"vlm": [14, 15]}).skip == Skip(vlm=(14, 15))  # type: ignore[arg-type]


class TestExact:
    def test_exact(self) -> None:
        assert Plan.exact(7) == Plan(steps=7)
        assert Plan.exact(7).is_exact(7)
        assert not Plan.exact(7).is_exact(10)

    def test_a_shorter_horizon_stays_exact(self) -> None:
        assert Plan(steps=10, horizon=3).is_exact(10)

    def test_nothing_else_does(self) -> None:
        for name in ("solver", "cache", "warm_start", "stop", "late_state"):
            assert not dataclasses.replace(Plan(), **{name: getattr(RICH, name)}).is_exact(10)
        for skip in (Skip(vision=(1,)), Skip(expert=(1,)), Skip(reuse=((), (1,), *((),) * 8))):
            assert not Plan(skip=skip).is_exact(10)
        assert not Plan(adaptive=(0.9, 0.5)).is_exact(10)

    def test_rows(self) -> None:
        assert Plan().rows(50) == 50
        assert Plan(horizon=50).rows(50) == 50
        with pytest.raises(PlanError, match="at most the chunk's 50, got 51"):
            Plan(horizon=51).rows(50)


class TestRequire:
    def test_each_field_is_named(self) -> None:
        for field in dataclasses.fields(Plan):
            if field.name == "steps" or field.name == "schedule":
                continue
            rich = ADAPTIVE if field.name == "adaptive" else RICH
            plan = dataclasses.replace(Plan(steps=4), **{field.name: getattr(rich, field.name)})
            plan.require({field.name}, "native")
            with pytest.raises(PlanError, match=rf"native backend .* not {field.name}="):
                plan.require((), "native")

    def test_steps_are_always_implemented(self) -> None:
        Plan(steps=3).require((), "native")


class TestJson:
    @pytest.mark.parametrize("plan", [Plan(), RICH, ADAPTIVE, Plan(cache=Cache(0, 1, 1, dilate=0))])
    def test_round_trip(self, plan: Plan) -> None:
        assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan

    @pytest.mark.parametrize(
        "data",
        [
            None,
            [],
            "exact",
            {"stepz": 3},
            {"steps": "3"},
            {"cache": 3},
            {"cache": {"threshold": 0.1}},
            {"cache": {"threshold": 0.1, "keyframe_every": 1, "max_age": 1, "extra": 1}},
            {"skip": [1]},
            {"schedule": 3},
        ],
    )
    def test_refused(self, data: object) -> None:
        with pytest.raises(PlanError):
            Plan.from_json(data)


class TestPresets:
    DIGEST = "ab" * 32

    def write(self, folder: Path, **changes: Any) -> None:
        data = {
            "format": "smolvla-edge presets",
            "version": 1,
            "bundle": self.DIGEST,
            "presets": {
                "fast": {"plan": {"steps": 4}, "evidence": {"error": 0.01}},
                "wild": {"plan": {"steps": 1}, "evidence": None},
            },
        }
        (folder / "presets.json").write_text(json.dumps({**data, **changes}))

    def test_none(self, tmp_path: Path) -> None:
        assert read_presets(tmp_path, self.DIGEST) == {}

    def test_measured_and_unmeasured(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        presets = read_presets(tmp_path, self.DIGEST)
        assert [str(preset) for preset in presets.values()] == [
            "fast (measured)",
            "wild (unmeasured)",
        ]
        assert resolve_plan("fast", 10, presets) == Plan(steps=4)
        assert resolve_plan("exact", 7, presets) == Plan(steps=7)
        assert resolve_plan(RICH, 7, presets) is RICH
        for unknown in ("faster", None, 3):
            with pytest.raises(PlanError, match=r"exact, fast \(measured\), wild \(unmeasured\)"):
                resolve_plan(unknown, 10, presets)  # type: ignore[arg-type]

    def test_fast_comes_with_the_package(self) -> None:
        fast = built_in_presets()["fast"]
        assert fast.plan.steps == 2 and fast.plan.cache is not None
        assert resolve_plan("fast", 10, {}) == fast.plan
        # A checkpoint that was distilled to one step is not made slower.
        assert resolve_plan("fast", 1, {}) == replace(fast.plan, steps=1)
        mine = Preset("fast", Plan(steps=3), {"error": 0.1})
        assert resolve_plan("fast", 10, {"fast": mine}) == mine.plan
        with pytest.raises(PlanError, match=r"exact, fast \(measured on another policy\)"):
            resolve_plan("faster", 10, {})

    def test_the_evidence_of_fast(self) -> None:
        """What makes it a preset: so many pairs, and a loss of less than 2 points at worst."""
        evidence = built_in_presets()["fast"].evidence
        assert evidence is not None
        pairs = evidence["closed_loop"]["against_exact"]
        assert pairs["pairs"] >= 1550 and pairs["low"] > -0.02
        for run in evidence["latency"]:
            assert run["times_faster_than"]["exact"] > 1 and "benchmarks.stream" in run["command"]

    @pytest.mark.parametrize(
        "changes",
        [
            {"format": "x"},
            {"version": 2},
            {"bundle": "cd" * 32},
            {"presets": []},
            {"presets": {"exact": {"plan": {}}}},
            {"presets": {"a": {}}},
            {"presets": {"a": {"plan": {"steps": 0}}}},
            {"presets": {"a": {"plan": {}, "evidence": 3}}},
            {"extra": 1},
        ],
    )
    def test_refused(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        self.write(tmp_path, **changes)
        with pytest.raises(PlanError, match=r"presets\.json"):
            read_presets(tmp_path, self.DIGEST)
