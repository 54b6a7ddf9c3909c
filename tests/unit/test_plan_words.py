"""Plans in words: what is read is what was meant, and can be written again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smolvla_edge.errors import PlanError
from smolvla_edge.plan import Cache, Plan, Skip
from smolvla_edge.plan_words import is_words, read_plan, write_words
from smolvla_edge.presets import resolve_plan

PLANS = {
    "steps=4": Plan(steps=4),
    "steps=4,solver=ab2,horizon=8": Plan(steps=4, solver="ab2", horizon=8),
    "schedule=1+0.6+0.3+0": Plan(steps=3, schedule=(1, 0.6, 0.3, 0)),
    "warm_start=0.5,stop=0.01": Plan(steps=10, warm_start=0.5, stop=0.01),
    "adaptive=0.99+0.9": Plan(adaptive=(0.99, 0.9)),
    "late_state=true": Plan(late_state=True),
    "exit=8": Plan(exit=8),
    "skip.vlm=14+15, skip.vision=3": Plan(skip=Skip(vlm=(14, 15), vision=(3,))),
    "steps=4,skip.reuse=/3+5//3": Plan(steps=4, skip=Skip(reuse=((), (3, 5), (), (3,)))),
    "cache.threshold=0.02": Plan(cache=Cache(0.02, 10, 8)),
    "cache.threshold=0.02,cache.attended=16": Plan(cache=Cache(0.02, 10, 8, attended=16)),
    "cache.threshold=0.02,cache.padding=keep": Plan(cache=Cache(0.02, 10, 8, padding=True)),
    "cache.threshold=0,cache.max_age=3,cache.dilate=0,cache.check=2,cache.cameras=top+side": Plan(
        cache=Cache(0, 10, 3, ("top", "side"), dilate=0, check=2)
    ),
}


@pytest.mark.parametrize("words, plan", PLANS.items(), ids=PLANS)
def test_read_and_written(words: str, plan: Plan) -> None:
    assert is_words(words) and read_plan(words, 10) == plan
    assert read_plan(write_words(plan, 10), 10) == plan
    assert resolve_plan(words, 10, {}) == plan


def test_the_exact_plan_has_no_words() -> None:
    assert write_words(Plan.exact(7), 7) == "exact"
    assert read_plan(write_words(Plan.exact(10), 7), 7) == Plan(steps=10)


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    plan = PLANS["steps=4,skip.reuse=/3+5//3"]
    file.write_text(json.dumps(plan.to_json()))
    assert resolve_plan(str(file), 10, {}) == plan
    file.write_text(json.dumps({"steps": 0}))
    with pytest.raises(PlanError, match=r"plan\.json.*steps"):
        read_plan(str(file), 10)
    with pytest.raises(PlanError, match=r"nowhere\.json"):
        read_plan(str(tmp_path / "nowhere.json"), 10)


@pytest.mark.parametrize(
    "words, said",
    {
        "speed=2": "expected exact, a preset, a .json file, or words like steps=",
        "steps=two": "steps: expected a number, got 'two'",
        "steps": "steps: expected a number, got ''",
        "steps=4,": "got ''",
        "late_state=yes": "expected true or false",
        "skip.vlm=a": "skip.vlm: expected a number",
        "cache.max_age=3": "threshold",
        "cache.threshold=0,cache.padding=yes": "expected keep or compute, got 'yes'",
        "cache=3": "got 'cache=3'",
        "steps=4,skip.reuse=3/3/3/3": "reuse",
        "schedule=1+0.5": "falling from 1 to 0",
    }.items(),
)
def test_refused(words: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        read_plan(words, 10)
