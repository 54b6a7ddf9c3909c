"""How much each layer matters, against layers that are known to do nothing."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
from skip_helpers import PREFIX, idle_checkpoint

from smolvla_edge.compress.evidence import ActionError, Subject
from smolvla_edge.compress.observations import find_observations
from smolvla_edge.compress.skip import Influence, LayerInfluence, base_plan, rank_layers, skippable
from smolvla_edge.errors import PlanError
from smolvla_edge.plan import PARTS, Cache, Plan, Skip
from smolvla_edge.policy import load
from smolvla_edge.source import open_source

IDLE = (("vision", 1), ("vlm", 2), ("expert", 1))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_source(idle_checkpoint(tmp_path_factory.mktemp("skip") / "checkpoint", IDLE))


@pytest.fixture(scope="module")
def seen(source):
    return find_observations(source, "synthetic", 3)


@pytest.fixture(scope="module")
def influence(source, seen):
    return rank_layers(source, seen, seed=5, threads=1)


class TestInfluence:
    @pytest.mark.parametrize("part", PARTS)
    def test_a_layer_that_does_nothing_comes_first(self, influence, part):
        idle = dict(IDLE)[part]
        assert influence.order(part)[0] == idle
        for item in influence.parts[part]:
            if item.layer == idle:
                assert item.action_error == 0
                assert item.block_influence == pytest.approx(0, abs=1e-12)
            else:
                assert item.action_error > 1e-4 and item.block_influence > 1e-6

    def test_the_last_language_layer_is_left_out_with_a_reason(self, source, influence):
        last = source.model.last_used_text_layer
        assert [item.layer for item in influence.parts["vlm"]] == list(range(last))
        assert [(item.part, item.layer) for item in influence.left_out] == [("vlm", last)]
        assert "keys and values" in influence.left_out[0].why

    def test_the_error_is_of_the_executed_rows_without_the_layer(self, source, seen, influence):
        without = Plan(steps=source.model.num_steps, skip=Skip(vision=(0,)))
        chunks = [Subject(source, plan=plan, threads=1).chunks(seen, 5) for plan in (None, without)]
        exact, got = (found[:, : source.contract.n_action_steps] for found in chunks)
        expected = ActionError.between(got, exact).rms_of_range
        assert influence.parts["vision"][0].action_error == expected

    @pytest.mark.parametrize("part", PARTS)
    def test_block_influence_is_that_of_the_torch_models_states(
        self, source, seen, influence, part
    ):
        torch = pytest.importorskip("torch")
        path, layers = source.provenance["source"], len(skippable(source.model, part))
        policy = load(path, backend="torch", plan=base_plan(source))
        calls = [[] for _ in range(layers)]

        def note(module, inputs, output, layer):
            after = output[0] if isinstance(output, tuple) else output
            alike = torch.nn.functional.cosine_similarity(inputs[0], after, dim=-1)
            calls[layer].append(1 - float(alike.mean()))

        for layer in range(layers):
            module = policy.engine.model.get_submodule(f"{PREFIX[part]}{layer}")
            module.register_forward_hook(partial(note, layer=layer))
        for number, observation in enumerate(seen):
            policy.predict(observation.images, observation.state, observation.task, seed=5 + number)
        every = policy.model.num_steps if part == "expert" else 1  # the first evaluation is traced
        expected = [np.mean(found[::every]) for found in calls]
        found = [item.block_influence for item in influence.parts[part]]
        assert found == pytest.approx(expected, abs=2e-6)

    def test_equals_are_told_apart_by_block_influence(self):
        layers = ((0, 0.3, 0.2), (1, 0.1, 0.2), (2, 0.9, 0.1), (3, 0.1, 0.2))
        items = tuple(LayerInfluence("vision", layer, b, error) for layer, b, error in layers)
        assert Influence({"vision": items}).order("vision") == (2, 1, 3, 0)

    def test_it_is_json_with_what_it_rests_on(self, influence, seen):
        told = json.loads(json.dumps(influence.to_json()))
        assert told["observations"] == seen.evidence() and told["seed"] == 5
        assert told["plan"]["horizon"] == 3
        assert told["parts"]["vlm"][2] == {
            "layer": 2, "action_error": 0, "block_influence": pytest.approx(0, abs=1e-12),
        }  # fmt: skip


class TestSubjectUnderAPlan:
    def test_frames_that_follow_no_others_reuse_nothing(self, source, seen):
        cache = Cache(threshold=10.0, keyframe_every=100, max_age=100)  # all frames look alike
        plan = Plan(steps=source.model.num_steps, cache=cache)
        subject = Subject(source, plan=plan, threads=1)
        assert np.array_equal(subject.chunks(seen, 0), Subject(source, threads=1).chunks(seen, 0))

    def test_another_plan_on_the_same_engine(self, source, seen):
        exact = Subject(source, threads=1)
        plan = Plan(steps=2, skip={"expert": (0,)})
        under = exact.under(plan)
        fresh = Subject(source, plan=plan, threads=1)
        assert under.policy.engine is exact.policy.engine
        assert np.array_equal(under.chunks(seen, 0), fresh.chunks(seen, 0))
        assert exact.policy.plan.steps == 4

    def test_a_trace_is_of_the_plan(self, source, seen):
        observation = next(iter(seen))
        trace = Subject(source, plan=base_plan(source), threads=1).trace(observation, 0)
        assert trace["mid.step0.expert_layer0"].shape[-2] == 3
        plan = Plan(steps=4, skip={"vision": (1,)})
        assert "mid.vision_layer1.0" not in Subject(source, plan=plan, threads=1).trace(
            observation, 0
        )

    def test_a_plan_that_does_not_fit_is_refused(self, source):
        with pytest.raises(PlanError, match="layer 9 of"):
            Subject(source, plan=Plan(steps=4, skip={"vision": (9,)}), threads=1)
