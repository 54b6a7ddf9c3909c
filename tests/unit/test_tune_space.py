"""Which plans a search may try, what they compute, and which of them are worth measuring."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import benchmark_helpers  # noqa: F401  (puts the repository on the path)
import pytest
from needs import needs

with needs("pyarrow", "PIL"):
    from tune_helpers import space, trial

from benchmarks.flops import exact_flops
from smolvla_edge.config import build_model_config, parse_policy_config
from smolvla_edge.errors import InputError, PlanError
from smolvla_edge.plan import Cache, Plan, Skip
from smolvla_edge.synthetic import _SIZES
from smolvla_edge.synthetic_files import lerobot_config
from smolvla_edge.tune.front import Budget, choose, measured_front, nearest, non_dominated, thinned
from smolvla_edge.tune.space import KNOBS, Space, find_knobs
from smolvla_edge.tune.tuning import candidates_of
from smolvla_edge.tune.work import Work, call_work


def model_of(size):
    vlm, settings = _SIZES[size]
    config = lerobot_config(["observation.images.camera1"], 6, 6, settings)
    return build_model_config(parse_policy_config(config, "test"), vlm)


FULL = model_of("full")
EXACT = Plan.exact(FULL.num_steps)


def work(plan=EXACT, parts=(1.0,), words=12, evaluations=None):
    patches = [(1024, part) for part in parts]
    evaluations = plan.steps if evaluations is None else evaluations
    return call_work(FULL, plan, patches=patches, words=words, evaluations=evaluations)


class TestWork:
    def test_an_exit_is_a_shorter_model_with_one_layers_queries_more(self):
        early = work(replace(EXACT, exit=8))
        shorter = replace(FULL, text_layers=8, expert_layers=8)
        alike = call_work(shorter, EXACT, patches=[(1024, 1.0)], words=12, evaluations=EXACT.steps)
        rows = 64 + 12 + 1
        queries = rows * FULL.text_width * FULL.heads * FULL.head_dim
        assert early == replace(alike, prefix=alike.prefix + queries)

    @pytest.mark.parametrize("cameras", [1, 3])
    def test_of_the_exact_plan_it_is_half_the_flops_of_the_benchmarks(self, cameras):
        counted, flops = work(parts=[1.0] * cameras), exact_flops(FULL, cameras, 12)
        assert 2 * counted.vision == flops["vision"]
        assert 2 * counted.prefix == flops["prefix"]
        assert 2 * counted.flow == flops["flow"]

    def test_half_the_rows_of_a_frame_are_half_of_vision(self):
        """Attention too: a computed row looks at all others, kept or not."""
        assert work(parts=[0.5]).vision == work().vision / 2
        assert work(parts=[0.0]) == replace(work(), vision=0.0)

    def test_evaluations_count_as_they_took_place(self):
        plan = replace(EXACT, stop=0.1)
        assert work(plan, evaluations=4).flow == pytest.approx(work().flow * 4 / EXACT.steps)

    def test_layers_left_out(self):
        layer = 1024 * 768 * (4 * 768 + 2 * 3072) + 2 * 1024 * 1024 * 768
        assert work().vision - work(replace(EXACT, skip=Skip(vision=(3, 5)))).vision == 2 * layer
        rows = 64 + 12 + 1  # of the prefix
        mlp, attention = 3 * rows * 960 * 2560, 2 * rows * rows * 960
        rest = mlp + attention + rows * 960 * 960  # queries, keys and values stay
        assert work().prefix - work(replace(EXACT, skip=Skip(vlm=(2,)))).prefix == rest
        dead = FULL.last_used_text_layer
        assert work(replace(EXACT, skip=Skip(vlm=(dead,)))) == work()
        odd = work(replace(EXACT, skip=Skip(expert=(1,))))  # cross-attention: once a call too
        assert work().prefix - odd.prefix == 2 * rows * 320 * 320
        step = 50 * 720 * (2 * 960 + 3 * 2048) + 2 * 50 * rows * 960
        assert work().flow - odd.flow == 10 * step

    def test_reused_layers_cost_nothing_in_their_steps(self):
        plan = Plan(steps=2, skip=Skip(reuse=((), (0, 1))))
        without = Plan(steps=1, skip=Skip(expert=(0, 1)))
        assert work(plan).flow == work(Plan(steps=1)).flow + work(without).flow

    def test_a_shorter_horizon(self):
        assert 6 < work().flow / work(replace(EXACT, horizon=7)).flow < 8
        assert work(replace(EXACT, horizon=7)).vision == work().vision

    def test_sums(self):
        assert (Work(1, 2, 3) + Work(10, 20, 30)).total == 66


class Told:
    """A trial that draws what it is told, and the lower end of everything else."""

    def __init__(self, **values):
        self.values, self.asked = values, []

    def suggest_int(self, name, low, high):
        self.asked.append(name)
        return self.values.get(name, low)

    def suggest_float(self, name, low, high, *, log):
        assert log
        self.asked.append(name)
        return self.values.get(name, low)

    def suggest_categorical(self, name, choices):
        self.asked.append(name)
        return self.values.get(name, choices[0])


class TestSpace:
    def test_the_numbers_as_a_plan(self):
        drawn = Told(steps=4, solver="ab2", stops=True, stop=0.012345, caches=True,
                     threshold=0.0123456, keyframe_every=6, max_age=20, vision=2,
                     expert=1)  # fmt: skip
        plan = space().plan(space().draw(drawn))
        assert plan == Plan(
            steps=4, solver="ab2", stop=0.0123, horizon=2,
            cache=Cache(0.0123, keyframe_every=6, max_age=6, dilate=0),
            skip=Skip(vision=(1, 3), expert=(0,)),
        )  # fmt: skip

    def test_every_number_is_always_drawn(self):
        """Samplers learn from what all trials have."""
        off, on = Told(), Told(caches=True, stops=True, steps=5)
        space().draw(off), space().draw(on)
        assert off.asked == on.asked and len(off.asked) == 12

    def test_what_means_nothing_is_no_second_plan(self):
        one = space().plan({"steps": 1, "solver": "ab2", "stops": True, "stop": 0.1})
        assert one == Plan(steps=1, horizon=2)

    def test_the_first_plans(self):
        first = [space().plan(params) for params in space().first()]
        assert first[0] == Plan(steps=10, horizon=2) and first[0].is_exact(10)
        assert len(set(map(repr, first))) == len(first)
        steps = {plan.steps for plan in first if plan.cache is None and plan.skip == Skip()}
        assert steps == {10, 4, 2, 1}
        assert {plan.cache.threshold for plan in first if plan.cache} == {0.01, 0.02}
        assert any(plan.cache and plan.steps == 4 and plan.solver == "ab2" for plan in first)
        assert any(plan.skip == Skip(vision=(3,)) for plan in first)
        keys = set(space().draw(Told()))
        assert all(set(params) == keys for params in space().first())

    def test_narrowed(self):
        ranking = {"vision": (5, 4, 3, 2), "vlm": (0, 1), "expert": (1, 0, 2)}
        every = Space.of(FULL, 7, ranking)
        assert every.knobs == KNOBS and every.steps == (1, 10)
        assert dict(every.order) == {"vision": (5, 4), "vlm": (0,), "expert": (1,)}
        few = Space.of(FULL, 7, {}, ["cache", "steps"])
        assert set(few.draw(Told())) == {
            "steps", "caches", "threshold", "keyframe_every", "max_age", "dilate",
        }  # fmt: skip
        assert all(plan.solver == "euler" for plan in map(few.plan, few.first()))
        assert [knob for knob, _ in few.describe()] == ["horizon", "steps", "cache"]
        assert find_knobs(["skip"]) == ("skip.vision", "skip.vlm", "skip.expert")
        with pytest.raises(PlanError, match=r"--only: expected some of steps, .* got speed"):
            find_knobs(["speed", "steps"])
        with pytest.raises(PlanError, match="got nothing"):
            find_knobs([])

    def test_json(self):
        assert json.loads(json.dumps(space().to_json()))["order"]["vlm"] == [2, 0]


def finalist(median, error, p90=None):
    return SimpleNamespace(
        latency=SimpleNamespace(median_ms=median, p90_ms=median if p90 is None else p90),
        held_out=SimpleNamespace(rms_of_range=error),
    )


class TestFront:
    def test_non_dominated(self):
        points = [(3, 1), (1, 3), (2, 2), (2, 3), (3, 0.5), (1, 3)]
        assert non_dominated(points) == [1, 2, 4]
        assert non_dominated([]) == []

    def test_thinned_keeps_the_ends_and_both_sides_of_the_bound(self):
        points = [(float(10 + i), 0.5 * 0.8**i) for i in range(40)]
        kept = thinned(points, 6, around=points[20][1])
        assert len(kept) == 6 and {0, 19, 20, 39} <= set(kept)
        assert max(b - a for a, b in pairwise(kept)) <= 14
        assert thinned(points[:5], 6) == [0, 1, 2, 3, 4]
        assert len(thinned(points, 2, around=points[20][1])) == 2

    def test_an_error_of_zero_has_a_place(self):
        assert thinned([(1.0, 0.1), (2.0, 0.01), (3.0, 0.0)], 2) == [0, 2]

    @pytest.mark.parametrize(
        ("words", "budget"),
        [
            (["action_error=1%"], Budget(0.01, None)),
            (["latency=200ms"], Budget(None, 200)),
            (["latency = 0.5 ms", "action_error=2.5 %"], Budget(0.025, 0.5)),
        ],
    )
    def test_budgets(self, words, budget):
        assert Budget.parse(words) == budget

    @pytest.mark.parametrize(
        "words",
        [["latency=200"], ["latency=200s"], ["speed=2"], ["action_error=0%"], ["latency=-1ms"],
         ["action_error=nan%"], ["latency=1ms", "latency=2ms"], ["action_error"], [""]],
    )  # fmt: skip
    def test_budgets_that_mean_nothing(self, words):
        with pytest.raises(InputError, match="--budget: expected action_error=1%"):
            Budget.parse(words)

    def test_the_fastest_within_an_error(self):
        found = [finalist(10, 0), finalist(5, 0.009), finalist(5.05, 0.004), finalist(1, 0.02)]
        assert choose(found, Budget(action_error=0.01)) == choose(found[:3], Budget(0.01))
        assert choose(found, Budget(action_error=0.01)).number == 2  # as fast, and closer
        assert choose(found, Budget(action_error=0.03)).number == 3

    def test_the_least_error_within_a_time_of_nine_calls_in_ten(self):
        found = [finalist(10, 0), finalist(5, 0.01, p90=9), finalist(4, 0.02, p90=6)]
        assert choose(found, Budget(latency_ms=9)).number == 1
        assert choose(found, Budget(latency_ms=8)).number == 2
        assert choose(found, Budget(0.02, 9)).number == 1

    def test_nothing_fits(self):
        found = [finalist(10, 0), finalist(5, 0.01)]
        none = choose(found, Budget(latency_ms=4))
        assert not none.fits and none.number == 1
        assert choose(found, Budget(0.001, 9)).number == 0  # 1.1 times too slow, the other 10 off

    def test_neighbours_are_of_the_front(self):
        found = [finalist(10, 0), finalist(5, 0.01), finalist(6, 0.02), finalist(4, 0.05),
                 finalist(1, 0.5)]  # fmt: skip
        assert measured_front(found) == [4, 3, 1, 0]
        assert nearest(found, 1, 2) == [3, 0]
        assert nearest(found, 4, 2) == [3, 1]

    def test_the_finalists_of_two_bundles(self):
        trials = [[trial(i, 0.1 / (i + 1), float(i + 1)) for i in range(9)] for _ in range(2)]
        sources = [SimpleNamespace(model=FULL)] * 2
        found = candidates_of(trials, sources, Budget(0.02))
        assert len(found) == 2 + 2 * 7
        assert [one.plan for one in found[:2]] == [EXACT, EXACT]
        assert [one.source for one in found] == [0, 1] + [0] * 7 + [1] * 7
        assert all(one.error is not None for one in found[2:])
