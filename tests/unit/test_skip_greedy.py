"""The greedy lists of what to skip: against idle layers, and against measuring everything."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from cli_helpers import refused
from skip_helpers import idle_checkpoint

from smolvla_edge.compress.evidence import ActionError, Subject
from smolvla_edge.compress.greedy import Candidate, greedy, without
from smolvla_edge.compress.observations import find_observations
from smolvla_edge.compress.skip import base_plan
from smolvla_edge.errors import PlanError
from smolvla_edge.plan import PARTS, Plan, Skip
from smolvla_edge.source import open_source

IDLE = (("vision", 1), ("vlm", 2), ("expert", 1))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_source(idle_checkpoint(tmp_path_factory.mktemp("greedy") / "checkpoint", IDLE))


@pytest.fixture(scope="module")
def seen(source):
    return find_observations(source, "synthetic", 2)


@pytest.fixture(scope="module")
def curve(source, seen):
    return list(greedy(source, seen, count=5, threads=1))


class TestCurve:
    def test_idle_layers_go_first_and_cost_nothing(self, curve):
        assert curve[0].gone is None and curve[0].action_error == 0 and curve[0].measured == 0
        assert {(p.gone.part, p.gone.layer) for p in curve[1:4]} == set(IDLE)
        assert [p.action_error for p in curve[:4]] == [0, 0, 0, 0]
        assert 0 < curve[4].action_error < curve[5].action_error
        assert curve[1].measured == 2 + 3 + 4  # every layer but the last language layer, once

    def test_each_point_is_its_plans_own_error_and_work(self, source, seen, curve):
        plan = curve[5].plan
        subject = Subject(source, plan=plan, compute="float32", threads=1)
        exact = subject.under(base_plan(source)).chunks(seen, 0)
        found = ActionError.between(subject.chunks(seen, 0), exact).rms_of_range
        assert curve[5].action_error == found
        works = [point.multiply_adds for point in curve]
        assert works == sorted(set(works), reverse=True)

    def test_a_budget_of_error_is_kept(self, source, seen, curve):
        bound = (curve[4].action_error + curve[5].action_error) / 2
        assert list(greedy(source, seen, max_error=bound, threads=1)) == curve[:5]

    def test_every_candidate_is_measured_when_asked(self, source, seen, curve):
        full = list(greedy(source, seen, count=3, every=True, threads=1))
        assert [point.measured for point in full] == [0, 9, 8, 7]
        assert sum(p.measured for p in curve[:4]) < 24
        assert [p.action_error for p in full] == [0, 0, 0, 0]

    def test_it_is_json(self, curve):
        told = json.loads(json.dumps([point.to_json() for point in curve]))
        assert told[0]["part"] is None and told[5]["skip"] == curve[5].plan.skip.to_json()

    def test_a_part_alone_from_a_plan_of_ones_own(self, source, seen):
        plan = Plan(steps=2, skip=Skip(expert=(1,)))
        curve = list(greedy(source, seen, ("expert",), plan=plan, threads=1))
        assert [len(point.plan.skip.expert) for point in curve] == [1, 2, 3, 4]
        assert curve[0].plan == replace(plan, horizon=3) and curve[0].action_error > 0
        assert all(point.plan.skip.vision == () for point in curve)


class TestCells:
    def test_a_cell_joins_its_step(self):
        plan = without(Plan(steps=3), Candidate("cells", 2, 1))
        assert plan.skip.reuse == ((), (2,), ())
        assert without(plan, Candidate("cells", 0, 1)).skip.reuse == ((), (0, 2), ())
        gone = without(without(plan, Candidate("cells", 1, 2)), Candidate("expert", 2))
        assert gone.skip == Skip(expert=(2,), reuse=((), (), (1,)))
        assert without(plan, Candidate("expert", 2)).skip == Skip(expert=(2,))

    def test_the_idle_layers_cells_go_first_and_not_after_it(self, source, seen):
        steps = source.model.num_steps
        curve = list(greedy(source, seen, ("cells",), count=steps - 1, threads=1))
        assert {(p.gone.layer, p.gone.step) for p in curve[1:]} == {(1, 1), (1, 2), (1, 3)}
        assert all(point.action_error == 0 for point in curve)
        assert curve[1].measured == (steps - 1) * source.model.expert_layers
        assert curve[0].multiply_adds > curve[-1].multiply_adds
        both = list(greedy(source, seen, ("expert", "cells"), plan=Plan(steps=2), threads=1))
        assert both[1].gone in (Candidate("expert", 1), Candidate("cells", 1, 1))
        assert both[-1].plan.skip.expert == (0, 1, 2, 3)


@pytest.mark.parametrize("parts", [(), ("vision", "text")])
def test_unknown_parts_are_refused(source, seen, parts):
    with pytest.raises(PlanError, match=f"some of {', '.join(PARTS)}, cells"):
        list(greedy(source, seen, parts, threads=1))


def test_the_work_is_counted_by_the_engine(source, seen):
    subject, first, model = Subject(source, threads=1), next(iter(seen)), source.model
    short = subject.under(Plan(steps=model.num_steps, skip=Skip(vision=(0,))))
    saved = subject.multiply_adds(first, 0) - short.multiply_adds(first, 0)
    patches, width = (64 // model.patch_size) ** 2, model.vision_width
    layer = 4 * patches * width**2 + 2 * patches * width * model.vision_mlp + 2 * patches**2 * width
    assert saved == 2 * layer  # cameras


class TestCommand:
    def test_layers_the_curve_and_a_plan_to_paste(self, cli, source, tmp_path):
        path, words = source.provenance["source"], ("--data", "synthetic", "--observations", "2")
        shown = cli("influence", path, *words, "--greedy", "3", "--threads", "1")
        assert shown.code == 0, shown.err
        assert "--plan skip.vision=1,skip.vlm=2,skip.expert=1\n" in shown.out
        assert "vlm 3 is not measured" in shown.err and "synthetic noise" in shown.err
        more = ("--max-error", "0", "--parts", "expert,cells", "--plan", "steps=2,horizon=8")
        found = cli("influence", path, *words, *more, "--json")
        assert found.code == 0, found.err
        assert [point["layer"] for point in found.json["greedy"]] == [None]
        assert found.json["plan_words"] == "steps=2,horizon=8"
        assert len(found.json["parts"]["vision"]) == 2

    def test_it_is_drawn(self, cli, source, tmp_path):
        pytest.importorskip("matplotlib")
        path, words = source.provenance["source"], ("--data", "synthetic", "--observations", "1")
        plot = tmp_path / "layers.svg"
        found = cli("influence", path, *words, "--greedy", "1", "--plot", plot)
        assert found.code == 0, found.err
        assert "multiply-adds left" in plot.read_text() and "action expert" in plot.read_text()
        refused(cli("influence", path, *words, "--plot", tmp_path / "a.txt"), ".svg")
        refused(cli("influence", path, *words, "--greedy", "1", "--parts", "eyes"), "vision, vlm")
