"""Playing many episodes: repeatable, resumable, paired, and able to fail."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from eval_helpers import arm_policy, need_simulator

from smolvla_edge.errors import InputError, PlanError, SimulatorError
from smolvla_edge.eval.episode import EpisodeResult
from smolvla_edge.eval.runner import Setting, evaluate, fingerprint
from smolvla_edge.eval.sides import Side
from smolvla_edge.eval.summary import compare, summarize
from smolvla_edge.eval.tasks import TASKS

SETTING = Setting(64, 64, step_limit=24)
JOBS = [("push", 0), ("push", 1), ("drawer-open", 0)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return str(arm_policy(tmp_path_factory.mktemp("policy") / "p"))


def outcome(results):
    """Everything but the times."""
    return [replace(result, latency_ms=()) for result in results]


def test_the_same_jobs_give_the_same_episodes_on_one_process_and_on_two(policy):
    need_simulator()
    side = Side(policy, n_action_steps=4)
    alone = evaluate(side, JOBS, SETTING)
    assert outcome(alone) == outcome(evaluate(side, JOBS, SETTING, workers=2))
    assert outcome(alone[1:]) == outcome(evaluate(side, JOBS[1:], SETTING))  # not of its order
    assert [(r.task, r.seed) for r in alone] == JOBS
    assert all(r.chunks == 6 == len(r.latency_ms) for r in alone)
    # Untrained weights solve nothing: the benchmark can fail.
    assert not any(r.success for r in alone)


def test_each_side_setting_reaches_the_policy(policy):
    need_simulator()
    played = {
        words: outcome(evaluate(Side(policy, words, 4), JOBS[:1], SETTING))[0].inner_jump
        for words in ("exact", "steps=4", "steps=1", "horizon=4")
    }
    assert played["exact"] == played["steps=4"] == played["horizon=4"]  # tiny takes 4 steps
    assert played["steps=1"] != played["exact"]
    for change in ({"blank": True}, {"instruction": "open the window"}, {"n_action_steps": 8}):
        other = evaluate(Side(policy, **{"n_action_steps": 4, **change}), JOBS[:1], SETTING)
        assert outcome(other)[0].inner_jump != played["exact"]


def test_what_a_plan_came_to_is_kept_with_the_episode(policy, tmp_path):
    need_simulator()
    file = tmp_path / "episodes.jsonl"
    plan = "steps=3,cache.threshold=10,cache.keyframe_every=3,cache.dilate=0,cache.check=0"
    (found,) = evaluate(Side(policy, plan, 4), JOBS[:1], SETTING, file=file)
    assert found.evaluations == (3,) * 6
    assert found.dirty == (1.0, 0.0, 0.0) * 2  # nothing moves so far; each third is a keyframe
    assert evaluate(Side(policy, plan, 4), JOBS[:1], SETTING, file=file) == [found]
    summary = summarize([found])
    assert (summary["evaluations"], summary["dirty"]) == (3.0, pytest.approx(1 / 3, abs=1e-4))
    (plain,) = evaluate(Side(policy, "exact", 4), JOBS[:1], SETTING)
    assert plain.dirty == () and summarize([plain])["dirty"] is None
    old = {k: v for k, v in plain.to_json().items() if k not in ("dirty", "evaluations")}
    assert summarize([EpisodeResult.from_json(old)])["evaluations"] is None


def test_a_warm_start_is_handed_what_was_not_executed(policy):
    need_simulator()
    inner = [
        outcome(evaluate(Side(policy, words, 4), JOBS[:1], SETTING))[0].inner_jump
        for words in ("steps=2", "steps=2,warm_start=0.5", "horizon=4,steps=2,warm_start=0.5",
                      "horizon=4,steps=2")
    ]  # fmt: skip
    assert inner[0] != inner[1]
    assert inner[2] == inner[3] == inner[0]  # where all is executed nothing is left to start from


def test_an_interrupted_evaluation_goes_on(policy, tmp_path, monkeypatch):
    need_simulator()
    file, side = tmp_path / "a" / "episodes.jsonl", Side(policy)
    whole = evaluate(side, JOBS, SETTING, file=file)
    lines = file.read_text().splitlines()
    assert len(lines) == 1 + len(JOBS)
    file.write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])  # killed while it wrote
    ran = []
    from smolvla_edge.eval import runner

    real = runner.Worker.run
    monkeypatch.setattr(runner.Worker, "run", lambda self, job: ran.append(job) or real(self, job))
    assert outcome(evaluate(side, JOBS, SETTING, file=file)) == outcome(whole)
    assert ran == JOBS[2:]
    assert len(file.read_text().splitlines()) == 1 + len(JOBS)


@pytest.mark.parametrize(
    "change", [{"plan": "steps=1"}, {"n_action_steps": 2}, {"blank": True}, {"setting": None}]
)
def test_results_of_something_else_are_not_continued(policy, tmp_path, change):
    need_simulator()
    file = tmp_path / "episodes.jsonl"
    evaluate(Side(policy), JOBS[:1], SETTING, file=file)
    setting = replace(SETTING, step_limit=25) if "setting" in change else SETTING
    change.pop("setting", None)
    with pytest.raises(SimulatorError, match="holds the results of something else"):
        evaluate(replace(Side(policy), **change), JOBS[:1], setting, file=file)


def test_other_tasks_under_the_same_names_are_something_else(policy, tmp_path, monkeypatch):
    need_simulator()
    file = tmp_path / "episodes.jsonl"
    evaluate(Side(policy), JOBS[:1], SETTING, file=file)
    monkeypatch.setitem(TASKS, "hammer", replace(TASKS["hammer"], region={0: (0.0, 0.1)}))
    with pytest.raises(SimulatorError, match="something else"):
        evaluate(Side(policy), JOBS[:1], SETTING, file=file)


def test_a_policy_is_known_by_all_its_files(tmp_path):
    folder = arm_policy(tmp_path / "p")
    before = fingerprint(str(folder))
    tokenizer = next(folder.rglob("tokenizer.json"))
    tokenizer.write_text(tokenizer.read_text() + " ")
    assert fingerprint(str(folder)) != before
    with pytest.raises(SimulatorError, match="expected a folder"):
        fingerprint("somebody/policy")


def test_another_policy_of_the_same_name_is_something_else(tmp_path):
    need_simulator()
    folder = arm_policy(tmp_path / "p")
    file = tmp_path / "episodes.jsonl"
    evaluate(Side(str(folder)), JOBS[:1], SETTING, file=file)
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(SimulatorError, match="something else"):
        evaluate(Side(str(folder)), JOBS[:1], SETTING, file=file)


@pytest.mark.parametrize("line", ["{", '{"task": "push"}', "[]"])
def test_damaged_results_are_refused(policy, tmp_path, line):
    need_simulator()
    file = tmp_path / "episodes.jsonl"
    evaluate(Side(policy), JOBS[:1], SETTING, file=file)
    with file.open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(SimulatorError, match=r"damaged|record of an episode"):
        evaluate(Side(policy), JOBS[:1], SETTING, file=file)


@pytest.mark.parametrize(
    "side, complaint",
    [
        ({"plan": "fast"}, "plan must be a Plan or one of: exact"),
        ({"plan": "speed=2"}, "expected exact, a preset, a .json file, or words like steps="),
        ({"plan": "steps=two"}, "steps: expected a number, got 'two'"),
        ({"plan": "late_state=yes"}, "expected true or false"),
        ({"n_action_steps": 9}, r"n_action_steps: expected 1 to 8 \(the chunk\), got 9"),
        ({"plan": "horizon=4", "n_action_steps": 5}, "expected 1 to 4"),
    ],
)
def test_impossible_sides_are_refused(policy, side, complaint):
    with pytest.raises(PlanError, match=complaint):
        Side(policy, **side).open()


def episode(task: str, seed: int, success: bool, steps: int = 50) -> EpisodeResult:
    return EpisodeResult(task, seed, success, steps, 2, 0.2, 0.1, (10.0, 20.0))


def test_a_summary_weighs_tasks_the_same():
    results = [episode("push", s, True) for s in range(8)] + [episode("hammer", 0, False)]
    found = summarize(results)
    assert found["all"]["rate"] == 0.5 and found["all"]["n"] == 9
    assert found["tasks"]["push"] | {"low": 0} == {
        "n": 8, "successes": 8, "rate": 1.0, "low": 0, "high": 1.0, "mean_steps": 50.0
    }  # fmt: skip
    assert found["tasks"]["hammer"]["mean_steps"] is None
    assert found["latency_ms"]["p50"] == 15.0
    assert found["actions_per_second"] == pytest.approx(9 * 50 / (9 * 0.03), rel=1e-3)
    json.dumps(found)


def test_a_comparison_pairs_by_task_and_seed():
    first = [episode("push", s, s < 5) for s in range(10)]
    second = [episode("push", s, s < 8) for s in range(10)]
    found = compare(first, second)
    assert (found["both"], found["only_second"], found["only_first"]) == (5, 3, 0)
    assert found["difference"] == pytest.approx(0.3)
    assert np.isfinite(found["resolvable"])
    for other in (second[::-1], [replace(r, seed=r.seed + 10) for r in second], second[:9]):
        with pytest.raises(InputError, match="the same tasks and seeds"):
            compare(first, other)


def test_a_jump_that_there_is_not_counts_for_nothing():
    results = [replace(episode("push", s, True), inner_jump=None) for s in range(2)]
    found = summarize([*results, episode("push", 2, True)])
    assert (found["seam_jump"], found["inner_jump"]) == (0.2, 0.1)
    assert summarize(results)["inner_jump"] is None
