"""The flow's rows of numbers against the torch reference; Aloha's joints in numpy against torch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from needs import needs

from smolvla_edge import aloha, flow_rows
from smolvla_edge.plan import Plan
from smolvla_edge.rtc import SCHEDULES, Guidance

with needs("torch"):
    import torch

    from smolvla_edge.model import aloha as torch_aloha
    from smolvla_edge.model import flow, solver

TINY = 3e-7  # two or three roundings of float32, of numbers up to 1
RNG = np.random.default_rng(0)


def guidance(schedule: str, prev: int, delay: int, horizon: int) -> Guidance:
    left_over = RNG.standard_normal((prev, 3)).astype(np.float32)
    return Guidance(left_over, delay, horizon, schedule, 10.0)


@pytest.mark.parametrize("start", [1.0, 0.7])
@pytest.mark.parametrize(
    "plan",
    [Plan(steps=10), Plan(steps=3), Plan(steps=3, schedule=(1, 0.8, 0.1, 0))],
    ids=["ten", "three", "schedule"],
)
def test_times(plan: Plan, start: float) -> None:
    """The very float32 that the reference computes with."""
    rows = flow_rows.schedule_rows(plan, start)
    want = np.array(solver.plan_steps(plan, start), np.float32)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows[:, :2], want)
    np.testing.assert_array_equal(rows[:, 2:], [[1, 0, 0]] * plan.steps)


@pytest.mark.parametrize("schedule", [None, (1, 0.9, 0.4, 0.1, 0)])
def test_adams_bashforth(schedule: tuple[float, ...] | None) -> None:
    plan = Plan(steps=4, solver="ab2", schedule=schedule)
    rows = flow_rows.schedule_rows(plan)
    assert list(rows[0, 2:4]) == [1, 0]  # nothing before it
    steps = solver.plan_steps(plan, 1.0)
    one, other = torch.tensor(1.0), torch.tensor(0.0)
    for (_, last), (_, dt), row in zip(steps, steps[1:], rows[1:], strict=False):
        assert row[2] == solver.adams_bashforth(one, dt, other, last).numpy()
        assert row[3] == solver.adams_bashforth(other, dt, one, last).numpy()


@pytest.mark.parametrize("limit", [10.0, 0.5])
def test_gain(limit: float) -> None:
    for plan in (Plan(steps=10), Plan(steps=2, schedule=(1, 1e-3, 0))):
        rows = flow_rows.schedule_rows(plan, 1.0, limit)
        for time, row in zip(solver.plan_steps(plan, 1.0), rows, strict=True):
            assert row[4] == flow.pull_strength(time[0], limit).numpy()
    assert rows[0, 4] == np.float32(limit)  # infinite at time 1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_pull(schedule: str) -> None:
    for prev, delay, horizon in itertools.product((1, 5, 8), (0, 2, 8), (1, 4, 8)):
        asked = guidance(schedule, prev, delay, horizon)
        want = flow.pull_weights(asked, 8).numpy()
        got = flow_rows.pull_weights(asked, 8)
        assert got.dtype == np.float32 and np.abs(got - want).max() <= TINY
        for rows in (1, 6, 8):
            x = torch.zeros(1, rows, 4)
            target = flow.pull_target(asked, x, 8).numpy()
            np.testing.assert_array_equal(flow_rows.pull_target(asked, rows, 4), target)


@pytest.mark.parametrize("prev", [1, 4, 8])
def test_warm_start(prev: int) -> None:
    noise = RNG.standard_normal((6, 4)).astype(np.float32)
    rest = RNG.standard_normal((prev, 3)).astype(np.float32)
    want = solver.warm(torch.from_numpy(noise)[None], torch.from_numpy(rest), 0.3)[0].numpy()
    got = flow_rows.warm(noise, rest, 0.3)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, want)


def test_aloha() -> None:
    state = RNG.uniform(-1.5, 1.5, (50, 14)).astype(np.float32)
    given = state.copy()
    for name in ("state_from_aloha", "actions_to_aloha"):
        got = getattr(aloha, name)(state)
        want = getattr(torch_aloha, name)(torch.from_numpy(state)).numpy()
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=0, atol=4e-6)  # arcsin's slope near 1
        assert np.abs(got - state).max() > 0.5
    np.testing.assert_array_equal(state, given)
