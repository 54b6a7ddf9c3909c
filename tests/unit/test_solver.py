"""The flow under a plan, on velocities whose solution is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from needs import needs

from smolvla_edge.plan import Plan, Skip
from smolvla_edge.rtc import Guidance

with needs("torch"):
    import torch

    from smolvla_edge.model.flow import guide, integrate
    from smolvla_edge.model.solver import solve

CHUNK, ROWS, WIDTH, DIMS = 10, 6, 4, 3  # of DIMS actions in WIDTH padded dimensions
NOISE = torch.randn(1, ROWS, WIDTH, generator=torch.Generator().manual_seed(1))
LEFT_OVER = np.linspace(-1, 1, 4 * DIMS, dtype=np.float32).reshape(4, DIMS)
GUIDANCE = Guidance(LEFT_OVER, 2, 5, "EXP", 5.0)

Velocity = Callable[[Any, Any, int], Any]


def curved(x: Any, time: Any, step: int) -> Any:
    return x.cos() * (1 + time[:, None, None])


def run(
    plan: Plan, velocity: Velocity = curved, noise: Any = NOISE, guidance: Guidance | None = None
) -> tuple[Any, int, list[float]]:
    """-> what comes out, the number of evaluations, and their times."""
    recorded: dict[str, Any] = {}
    x, count = solve(velocity, noise, plan, CHUNK, DIMS, guidance, recorded.__setitem__)
    times = [recorded[f"mid.time.step{k}"].item() for k in range(count)]
    assert f"mid.time.step{count}" not in recorded
    assert torch.equal(recorded[f"out.x_t.after_step{count - 1}"], x)
    return x, count, times


def error(plan: Plan) -> float:
    """Of dx/dt = cos(3 t) x from 1 to 0, where x(0) = x(1) exp(-sin(3) / 3); in float64."""
    x = torch.ones(1, 1, DIMS, dtype=torch.float64)
    got, _, _ = run(plan, lambda x, time, step: (3 * time.double()).cos()[:, None, None] * x, x)
    return float((got - math.exp(-math.sin(3) / 3)).abs().max())


def bent(steps: int) -> tuple[float, ...]:
    """Times that fall ever more slowly."""
    return tuple((1 - k / steps) ** 1.5 for k in range(steps + 1))


class TestSteps:
    @pytest.mark.parametrize("guidance", [None, GUIDANCE])
    def test_plain_is_the_plain_flow(self, guidance: Guidance | None) -> None:
        """Also where the general loop computes it: a stop of 0 is never reached here."""
        want = integrate(curved, NOISE, 7, CHUNK, guidance)
        for plan in (Plan(steps=7), Plan(steps=7, stop=0.0)):
            got, count, _ = run(plan, guidance=guidance)
            assert torch.equal(got, want) and count == 7

    def test_a_schedule_of_equal_steps(self) -> None:
        """Times and lengths of steps are rounded once more or once less."""
        times = tuple(1 - k / 7 for k in range(7))
        got, count, _ = run(Plan(steps=7, schedule=(*times, 0.0)))
        torch.testing.assert_close(got, run(Plan(steps=7))[0], rtol=1e-6, atol=1e-6)
        assert count == 7

    def test_a_schedule(self) -> None:
        got, count, times = run(Plan(steps=3, schedule=(1.0, 0.75, 0.125, 0.0)))
        assert (count, times) == (3, [1.0, 0.75, 0.125])
        x = NOISE
        for time, dt in ((1.0, -0.25), (0.75, -0.625), (0.125, -0.125)):
            x = x + dt * curved(x, torch.tensor([time]), 0)
        assert torch.equal(got, x)

    @pytest.mark.parametrize("solver, order", [("euler", 1), ("ab2", 2)])
    @pytest.mark.parametrize("times", [None, bent])
    def test_order(self, solver: str, order: int, times: Any) -> None:
        """Twice the steps, half the error, or a quarter of it."""
        errors = [
            error(Plan(steps=n, solver=solver, schedule=times and times(n))) for n in (20, 40, 80)
        ]
        for coarse, fine in pairwise(errors):
            assert coarse / fine == pytest.approx(2**order, rel=0.12)

    def test_ab2_takes_the_velocity_after_guidance(self) -> None:
        times = (1.0, 0.6, 0.5, 0.0)
        plan = Plan(steps=3, solver="ab2", schedule=times)
        got, count, _ = run(plan, guidance=GUIDANCE)
        x, last, last_dt = NOISE, None, None
        for time, later in pairwise(times):
            v, dt = curved(x, torch.tensor([time]), 0), later - time
            v = guide(GUIDANCE, v, x, time, CHUNK)
            slope = v
            if last is not None:
                ratio = dt / last_dt
                slope = (1 + ratio / 2) * v - ratio / 2 * last
            x, last, last_dt = x + dt * slope, v, dt
        assert torch.equal(got, x) and count == 3
        assert not torch.equal(got, run(plan)[0])

    def test_ab2_begins_with_euler(self) -> None:
        one = run(Plan(steps=1, solver="ab2"))[0]
        assert torch.equal(one, run(Plan(steps=1))[0])


class TestWarmStart:
    def test_starts_between_noise_and_the_rest(self) -> None:
        """Of a chunk of 4 rows and 3 dimensions, of which 6 and 4 are wanted."""
        chunk = torch.zeros(ROWS, WIDTH)
        chunk[:4, :DIMS] = torch.from_numpy(LEFT_OVER)
        chunk[4:, :DIMS] = torch.from_numpy(LEFT_OVER[3])
        seen = []

        def velocity(x: Any, time: Any, step: int) -> Any:
            seen.append(x)
            return torch.zeros_like(x)

        got, count, times = run(Plan(steps=4, warm_start=0.25), velocity, guidance=GUIDANCE)
        assert torch.equal(seen[0][0], 0.25 * NOISE[0] + 0.75 * chunk)
        assert torch.equal(got, seen[0]) and count == 4
        assert times == [0.25, 0.1875, 0.125, 0.0625]

    def test_a_longer_rest_is_cut(self) -> None:
        long = np.arange(9 * DIMS, dtype=np.float32).reshape(9, DIMS)
        still = run(
            Plan(steps=1, warm_start=0.5),
            lambda x, time, step: torch.zeros_like(x),
            torch.zeros_like(NOISE),
            Guidance(long, 0, 5, "ONES", 5.0),
        )[0]
        assert torch.equal(still[0, :, :DIMS], 0.5 * torch.from_numpy(long[:ROWS]))

    def test_arrives(self) -> None:
        """A straight flow ends in its goal from any time, by steps of any length."""
        goal = torch.full_like(NOISE, 0.75)
        for plan in (
            Plan(steps=3, warm_start=0.5),
            Plan(steps=3, warm_start=0.7, schedule=(1.0, 0.9, 0.2, 0.0), solver="ab2"),
            Plan(warm_start=0.5, adaptive=(0.9, 0.5)),
        ):
            got, _, _ = run(
                plan, lambda x, time, step: (x - goal) / time[:, None, None], guidance=GUIDANCE
            )
            torch.testing.assert_close(got, goal, rtol=0, atol=1e-5)

    def test_of_a_schedule(self) -> None:
        plan = Plan(steps=2, warm_start=0.5, schedule=(1.0, 0.25, 0.0))
        assert run(plan, guidance=GUIDANCE)[2] == [0.5, 0.125]

    def test_without_a_rest_it_is_none(self) -> None:
        for others in ({}, {"solver": "ab2"}, {"adaptive": (0.9, 0.5)}):
            warm = run(Plan(steps=3, warm_start=0.5, **others))[0]
            assert torch.equal(warm, run(Plan(steps=3, **others))[0])


class TestStop:
    def test_a_straight_flow_is_known_after_two(self) -> None:
        goal = torch.full_like(NOISE, 0.75)
        got, count, times = run(
            Plan(steps=8, stop=1e-5), lambda x, time, step: (x - goal) / time[:, None, None]
        )
        assert (count, times) == (2, [1.0, 0.875])
        torch.testing.assert_close(got, goal, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("bound, count", [(0.49, 5), (0.5, 3), (1.0, 2)])
    def test_at_the_first_estimates_that_agree(self, bound: float, count: int) -> None:
        """Estimates x - t v of 0, 1, 1.5, 2.5 and 2.5, made to order."""
        estimates = [0.0, 1.0, 1.5, 2.5, 2.5, 9.0, 9.0, 9.0]

        def velocity(x: Any, time: Any, step: int) -> Any:
            return (x - estimates[step]) / time[:, None, None]

        noise = torch.zeros_like(NOISE)
        got, evaluations, _ = run(Plan(steps=8, stop=bound), velocity, noise)
        assert evaluations == count
        assert float(got.max()) == float(got.min()) == pytest.approx(estimates[count - 1])

    def test_padded_dimensions_do_not_keep_it_going(self) -> None:
        restless = torch.zeros_like(NOISE)
        restless[..., DIMS:] = 1.0

        def velocity(x: Any, time: Any, step: int) -> Any:
            return restless * step

        assert run(Plan(steps=8, stop=0.0), velocity)[1] == 2
        one = torch.zeros_like(NOISE)
        one[0, -1, DIMS - 1] = 1.0
        assert run(Plan(steps=8, stop=0.0), lambda x, time, step: one * step)[1] == 8

    def test_with_guidance(self) -> None:
        """The estimate is of the velocity after it."""
        x, estimates = NOISE, []
        for k in range(8):
            v = guide(GUIDANCE, curved(x, torch.tensor([1 - k / 8]), k), x, 1 - k / 8, CHUNK)
            estimates.append((x - (1 - k / 8) * v)[..., :DIMS])
            x = x - v / 8
        apart = [float((b - a).abs().max()) for a, b in pairwise(estimates)]
        first = apart.index(min(apart[:5])) + 1
        got, count, _ = run(Plan(steps=8, stop=apart[first - 1]), guidance=GUIDANCE)
        assert 2 < count == first + 1 and torch.equal(got[..., :DIMS], estimates[first])


def turning(angle: float) -> Velocity:
    """A velocity that turns by `angle` from time 1 to 1/2, in the first two dimensions."""

    def velocity(x: Any, time: Any, step: int) -> Any:
        now = 2 * angle * (1 - time[:, None, None])
        return torch.cat((now.cos(), now.sin(), 0 * now, 0 * now), 2).expand_as(x)

    return velocity


class TestAdaptive:
    @pytest.mark.parametrize(
        "degrees, steps, count",
        [(10, 10, 2), (40, 10, 4), (70, 10, 6), (70, 7, 5), (70, 1, 2), (170, 4, 3)],
    )
    def test_every_branch(self, degrees: float, steps: int, count: int) -> None:
        """Cosines above 0.9, above 0.5, and below."""
        velocity = turning(math.radians(degrees))
        got, evaluations, times = run(Plan(steps=steps, adaptive=(0.9, 0.5)), velocity)
        rest = count - 1
        want = [1.0, *(0.5 * (1 - k / rest) for k in range(rest))]
        assert evaluations == count and times == pytest.approx(want)
        x = NOISE - 0.5 * velocity(NOISE, torch.ones(1), 0)
        for time in want[1:]:
            x = x - 0.5 / rest * velocity(x, torch.tensor([time]), 0)
        torch.testing.assert_close(got, x, rtol=0, atol=1e-6)

    def test_bounds_are_not_above_themselves(self) -> None:
        straight = turning(0.0)
        assert run(Plan(adaptive=(1.0, 0.5)), straight)[1] == 4
        assert run(Plan(adaptive=(1.0, 1.0)), straight)[1] == 6

    def test_without_a_direction_it_takes_all(self) -> None:
        assert run(Plan(adaptive=(-1.0, -1.0)), lambda x, time, step: 0 * x)[1] == 6

    def test_padded_dimensions_do_not_turn_it(self) -> None:
        def velocity(x: Any, time: Any, step: int) -> Any:
            v = torch.ones_like(x)
            v[..., DIMS:] = 100.0 * (-1) ** step
            return v

        assert run(Plan(adaptive=(0.9, 0.5)), velocity)[1] == 2

    def test_of_guided_velocities(self) -> None:
        """Velocities that turn round, and a pull that does not let them."""

        def velocity(x: Any, time: Any, step: int) -> Any:
            return torch.ones_like(x) * (-1) ** step

        one = guide(GUIDANCE, torch.ones_like(NOISE), NOISE, 1.0, CHUNK)
        x = NOISE - 0.5 * one
        other = guide(GUIDANCE, -torch.ones_like(NOISE), x, 0.5, CHUNK)
        a, b = one[..., :DIMS].flatten(), other[..., :DIMS].flatten()
        cosine = float(torch.nn.functional.cosine_similarity(a, b, dim=0))
        plan = Plan(adaptive=(cosine - 1e-3, -1.0))
        assert run(plan, velocity, guidance=GUIDANCE)[1] == 2
        assert run(plan, velocity)[1] == 6

    def test_from_a_warm_start(self) -> None:
        chunk = GUIDANCE.prev[[0, 1, 2, 3, 3, 3]]
        got = run(Plan(warm_start=0.5, adaptive=(0.9, 0.5)), turning(0.0), guidance=GUIDANCE)
        assert got[1:] == (2, [0.5, 0.25])
        want = 0.5 * NOISE[0, :, :DIMS] + 0.5 * torch.from_numpy(chunk)
        want[:, 0] -= 0.5  # the way along a velocity of 1
        torch.testing.assert_close(got[0][0, :, :DIMS], want)


def test_evaluations_are_numbered_for_the_layers_reused_in_them() -> None:
    steps: list[int] = []

    def velocity(x: Any, time: Any, step: int) -> Any:
        steps.append(step)
        return curved(x, time, step)

    run(Plan(steps=4, solver="ab2", skip=Skip(reuse=((), (1,), (), (1,)))), velocity)
    assert steps == [0, 1, 2, 3]
