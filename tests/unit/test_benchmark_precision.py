"""Errors of two runs, stage by stage, over several observations."""

from __future__ import annotations

import benchmark_helpers  # noqa: F401  (puts the repository on the path)
import numpy as np
import pytest

from benchmarks.harness import WorkerError
from benchmarks.precision import same_float32
from benchmarks.precision_stages import compare, errors_between, mean, merge, stage_of
from benchmarks.precision_tables import within


@pytest.mark.parametrize(
    "name, stage",
    [
        ("out.vision.0", "vision tower"),
        ("out.connector.11", "connector"),
        ("out.kv.15.key", "prefix keys"),
        ("out.kv.0.value", "prefix values"),
        ("out.v_t.step0", "velocity, step 1"),
        ("out.actions", "actions"),
        ("out.actions_padded", None),
        ("out.x_t.after_step1", None),
        ("mid.vision_layer0.0", None),
    ],
)
def test_stages_of_recorded_tensors(name, stage):
    assert stage_of(name) == stage


def test_errors_of_the_tensors_of_a_stage_are_joined():
    want = {"out.vision.0": np.array([1.0, 2.0]), "out.vision.1": np.array([-8.0, 0.0, 0.0])}
    got = {"out.vision.0": np.array([1.5, 2.0]), "out.vision.1": np.array([-8.0, 0.25, 0.0])}
    found = errors_between(got, want)
    assert found == {"vision tower": {"max": 0.5, "sum": 0.75, "count": 5.0, "largest": 8.0}}
    assert mean(found["vision tower"]) == 0.15


def test_only_what_both_recorded_is_compared():
    assert errors_between({"out.actions": np.ones(2)}, {"out.vision.0": np.ones(2)}) == {}


def test_other_shapes_and_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match=r"out.actions: expected shape \(2,\), got \(3,\)"):
        errors_between({"out.actions": np.ones(3)}, {"out.actions": np.ones(2)})
    with pytest.raises(ValueError, match="finite"):
        errors_between({"out.actions": np.array([np.nan])}, {"out.actions": np.ones(1)})


def test_runs_are_merged_by_largest_and_by_mean_of_all():
    one = {"actions": {"max": 0.5, "sum": 1.0, "count": 4.0, "largest": 3.0}}
    two = {"actions": {"max": 0.2, "sum": 2.0, "count": 4.0, "largest": 5.0}}
    merged = merge([one, two])
    assert merged == {"actions": {"max": 0.5, "sum": 3.0, "count": 8.0, "largest": 5.0}}
    assert one["actions"]["sum"] == 1.0  # the inputs stay as they are


def test_rows_come_in_the_order_of_the_computation_with_ratios():
    def errors(scale):
        entry = {"max": scale, "sum": scale, "count": 2.0, "largest": 4.0}
        stages = ("actions", "velocity, step 10", "velocity, step 2", "connector", "vision tower")
        return dict.fromkeys(stages, entry)

    rows = compare(errors(3.0), errors(2.0))
    assert [row["stage"] for row in rows] == [
        "vision tower", "connector", "velocity, step 2", "velocity, step 10", "actions",
    ]  # fmt: skip
    assert rows[0]["ratio_max"] == 1.5 and rows[0]["ratio_mean"] == 1.5
    assert within(rows[0], 1.5)
    assert not within(rows[0] | {"ratio_max": 1.51}, 1.5)
    assert not within(rows[0] | {"ratio_mean": 1.51}, 1.5)


def test_errors_of_different_models_are_not_compared():
    actions = np.linspace(-3, 3, 12).reshape(2, 6)
    assert same_float32(actions + 1e-6, actions) == pytest.approx(1e-6)
    with pytest.raises(WorkerError, match=r"differ by 1.0e-03 of 3.00"):
        same_float32(actions + 1e-3, actions)
    with pytest.raises(WorkerError, match="differ"):
        same_float32(actions * np.nan, actions)
