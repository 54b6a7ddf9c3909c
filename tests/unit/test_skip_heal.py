"""Neighbours that stand in for skipped layers: who learns what, what comes of it, what refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from cli_helpers import refused
from needs import needs
from policy_helpers import IMAGES, STATE, TASK, tiny_checkpoint
from skip_helpers import idle_checkpoint

with needs("torch"):
    import torch

    from smolvla_edge.compress.learn import Practice, Sample, learn
    from smolvla_edge.compress.lesson_samples import Classroom

from smolvla_edge.bundle import read_bundle
from smolvla_edge.compress.evidence import ActionError, Subject
from smolvla_edge.compress.gaps import Lesson, lessons
from smolvla_edge.compress.heal import heal
from smolvla_edge.compress.observations import find_apart, find_observations
from smolvla_edge.compress.quantize import quantize
from smolvla_edge.compress.recipe import RECIPES
from smolvla_edge.compress.skip import rank_layers
from smolvla_edge.config import ModelConfig
from smolvla_edge.errors import DatasetError, NonFiniteError, PlanError, QuantizationError
from smolvla_edge.plan import Plan, Skip
from smolvla_edge.policy import load
from smolvla_edge.safetensors_file import read_tensor
from smolvla_edge.source import open_source

STEPS = 4  # the tiny policy's


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_source(tiny_checkpoint(tmp_path_factory.mktemp("heal") / "checkpoint"))


@pytest.fixture(scope="module")
def seen(source):
    return find_observations(source, "synthetic", 12).split(4)


@pytest.fixture(scope="module")
def healed(source, seen, tmp_path_factory):
    folder = tmp_path_factory.mktemp("healed") / "bundle"
    plan = Plan(steps=STEPS, skip=Skip(vision=(1,)))
    return heal(source, folder, plan, *seen, steps=60, rate=2e-3, threads=1)


class TestWhoLearns:
    @pytest.fixture
    def model(self, source):
        raw = source.model.to_dict()
        return ModelConfig.from_dict(
            {**raw, "vision_layers": 6, "text_layers": 6, "expert_layers": 6}
        )

    @pytest.mark.parametrize(
        ("skip", "expected"),
        [
            (Skip(vision=(5,)), [("vision", 4, 5, False)]),
            (Skip(vision=(2, 3, 5)), [("vision", 1, 3, False), ("vision", 4, 5, False)]),
            (Skip(vision=(0,)), [("vision", 1, 1, False)]),
            (Skip(expert=(0, 2)), [("expert", 1, 2, False)]),
            (Skip(vlm=(2,)), [("vlm", 3, 3, False)]),
            (Skip(vlm=(1, 2)), [("vlm", 2, 2, True), ("vlm", 3, 3, False)]),
            (Skip(vlm=(4,)), [("vlm", 5, 5, True)]),
            (Skip(vlm=(0, 5)), [("vlm", 1, 1, False)]),
            (
                Skip(vision=(1,), vlm=(0,), expert=(1,)),
                [("vision", 0, 1, False), ("vlm", 1, 1, False), ("expert", 0, 1, False)],
            ),
        ],
    )
    def test_the_neighbour_of_each_gap(self, model, skip, expected):
        assert lessons(model, skip) == [Lesson(*item) for item in expected]

    @pytest.mark.parametrize("skip", [Skip(), Skip(vlm=(5,)), Skip(reuse=((), (1,)))])
    def test_nothing_to_heal_is_refused(self, model, skip):
        with pytest.raises(PlanError, match="nothing to heal"):
            lessons(model, skip)

    def test_a_part_without_layers_is_refused(self, model):
        with pytest.raises(PlanError, match=r"skip\.expert: expected a layer that is left"):
            lessons(model, Skip(expert=tuple(range(6))))


class TestLearning:
    def samples(self, rows=None):
        random = torch.Generator().manual_seed(1)
        matrix = torch.randn(3, 3, generator=random)
        inputs = [torch.randn(1, n, 3, generator=random) for n in (4, 5, 4, 6, 5, 4)]
        return [Sample((x,), (x @ matrix,), None if rows is None else rows(x)) for x in inputs]

    def layer(self):
        torch.manual_seed(0)
        return torch.nn.Linear(3, 3)

    def test_a_layer_learns_what_it_is_given(self):
        layer = self.layer()
        before, after = learn(layer, self.samples(), lambda y: (y,), Practice(300, 4, 0.05))
        assert before > 0.5 and after < 1e-4
        again = self.layer()
        learn(again, self.samples(), lambda y: (y,), Practice(300, 4, 0.05))
        assert torch.equal(layer.weight, again.weight)
        other = self.layer()
        learn(other, self.samples(), lambda y: (y,), Practice(300, 4, 0.05, seed=1))
        assert not torch.equal(layer.weight, other.weight)

    def test_the_loss_is_one_for_the_mean_and_counts_only_rows_that_count(self):
        samples = self.samples(lambda x: torch.arange(x.shape[1])[None] == 0)
        wanted = torch.cat([s.targets[0][s.rows] for s in samples])
        layer = torch.nn.Linear(3, 3)
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.copy_(wanted.mean(0))
        before, _ = learn(layer, samples, lambda y: (y,), Practice(1, 6, 1e-9))
        assert before == pytest.approx(1, rel=1e-5)

    def test_a_loss_that_is_no_number_is_refused(self):
        with pytest.raises(NonFiniteError, match="lower rate"):
            learn(self.layer(), self.samples(), lambda y: (y * float("inf"),), Practice(2, 2, 0.1))

    @pytest.mark.parametrize(
        ("part", "layer"), [("vision", 1), ("vlm", 1), ("vlm", 2), ("expert", 0), ("expert", 2)]
    )
    def test_without_a_layer_that_does_nothing_there_is_nothing_to_learn(
        self, tmp_path, part, layer
    ):
        """So every call meets its own target: each camera's, each step's, each observation's."""
        source = open_source(idle_checkpoint(tmp_path / "checkpoint", [(part, layer)]))
        plan = Plan(steps=STEPS, skip=Skip(**{part: (layer,)}))
        (lesson,) = lessons(source.model, plan.skip)
        seen = find_observations(source, "synthetic", 2)
        room = Classroom(source, seen, [lesson], plan)
        samples = room.samples(lesson)
        assert len(samples) == 2 * {"vision": 2, "vlm": 1, "expert": STEPS}[part]
        for sample in samples:
            with torch.no_grad():
                given = room.layer(lesson)(*sample.inputs)
            given = (given,) if part != "vlm" else (given[0], *given[1])
            found = [x for x in given if x is not None]
            for value, wanted in zip(found, sample.targets, strict=True):
                assert torch.allclose(value, wanted, atol=1e-5)


class TestHealing:
    def test_the_error_on_held_out_observations_falls(self, source, seen, healed):
        assert healed.error_after < 0.95 * healed.error_before
        assert healed.learnt[0].loss_after < 0.7 * healed.learnt[0].loss_before
        exact = Subject(source, threads=1).chunks(seen[1], 8)[:, :3]
        got = load(healed.bundle.path, plan="healed", threads=1)
        chunks = [
            got.predict(o.images, o.state, o.task, seed=8 + i).actions[:3]
            for i, o in enumerate(seen[1])
        ]
        found = ActionError.between(np.stack(chunks), exact).rms_of_range
        assert found == healed.error_after

    @pytest.mark.parametrize("skip", [Skip(vlm=(1, 2)), Skip(expert=(1,))])
    def test_in_every_part(self, source, seen, skip, tmp_path):
        plan = Plan(steps=STEPS, skip=skip)
        made = heal(source, tmp_path / "b", plan, *seen, steps=60, rate=2e-3, threads=1)
        assert made.error_after < 0.9 * made.error_before
        assert all(item.loss_after < item.loss_before for item in made.learnt)

    def test_the_bundle_says_what_was_done_and_changes_one_layer(self, source, healed):
        note = read_bundle(healed.bundle.path).provenance["healed"]
        assert note["plan"] == healed.plan.to_json() and note["calibration"]["count"] == 8
        assert note["action_error_after"] == healed.error_after
        assert note["learnt"][0] == {
            "part": "vision", "layer": 0, "until": 1, "keys_only": False,
            "loss_before": healed.learnt[0].loss_before, "loss_after": healed.learnt[0].loss_after,
        }  # fmt: skip
        for name, entry in healed.bundle.tensors.items():
            if name.startswith("vision.layers.0."):
                assert entry.dtype == "F32"
            else:
                assert np.array_equal(read_tensor(entry), read_tensor(source.tensors[name]))
        presets = open_source(healed.bundle.path).presets
        assert list(map(str, presets.values())) == ["healed (unmeasured)"]
        assert presets["healed"].plan == healed.plan

    def test_bfloat16_stays_bfloat16(self, tmp_path, cli, source, seen):
        words = (source.provenance["source"], tmp_path / "b", "--dtype", "bfloat16")
        assert cli("convert", *words).code == 0
        half = open_source(tmp_path / "b")
        plan = Plan(steps=STEPS, skip=Skip(vision=(1,)))
        made = heal(half, tmp_path / "h", plan, *seen, steps=60, rate=2e-3, threads=1)
        assert made.bundle.compute == "bfloat16" and made.error_after < 0.95 * made.error_before
        dtypes = {name: entry.dtype for name, entry in half.tensors.items()}
        assert {name: entry.dtype for name, entry in made.bundle.tensors.items()} == dtypes


class TestOnlyItsPlan:
    def test_plans_that_compute_the_layer_are_refused(self, healed):
        for plan in ("exact", "steps=2", "skip.vlm=0"):
            with pytest.raises(PlanError, match=r"without vision 1: expected .* skip\.vision=1"):
                load(healed.bundle.path, plan=plan, threads=1)
        with pytest.raises(PlanError, match="got healed ones"):
            rank_layers(open_source(healed.bundle.path), None)
        more = load(healed.bundle.path, plan="steps=2,skip.vision=1,skip.expert=0", threads=1)
        assert more.predict(IMAGES, STATE, TASK, seed=0).actions.shape == (8, 6)

    def test_what_is_quantised_of_it_keeps_to_it(self, healed, seen, tmp_path):
        source = open_source(healed.bundle.path)
        made = quantize(source, tmp_path / "b", RECIPES["int8"], seen[0], threads=1)
        with pytest.raises(PlanError, match="healed to do without vision 1"):
            load(made.path, threads=1)
        policy = load(made.path, plan="skip.vision=1", threads=1)
        close = load(healed.bundle.path, plan="healed", threads=1)
        got, wanted = (p.predict(IMAGES, STATE, TASK, seed=0).actions for p in (policy, close))
        assert np.abs(got - wanted).max() < 0.1 * np.ptp(wanted)

    def test_codes_healed_weights_and_other_plans_are_refused(self, source, healed, seen, tmp_path):
        plan = Plan(steps=STEPS, skip=Skip(vision=(1,)))
        codes = open_source(quantize(source, tmp_path / "q", RECIPES["int8"]).path)
        with pytest.raises(QuantizationError, match="heal first"):
            heal(codes, tmp_path / "b", plan, *seen)
        again = open_source(healed.bundle.path)
        with pytest.raises(QuantizationError, match="made from"):
            heal(again, tmp_path / "b", Plan(steps=STEPS, skip=Skip(vision=(0, 1))), *seen)
        for other in (Plan(steps=STEPS, horizon=4, skip=plan.skip),
                      Plan(steps=2, skip={"reuse": ((), (1,))})):  # fmt: skip
            with pytest.raises(PlanError, match=r"skip\.vision, skip\.vlm, skip\.expert and steps"):
                heal(source, tmp_path / "b", other, *seen)
        assert not (tmp_path / "b").exists()


class TestHeldOutEpisodes:
    def test_every_fourth_episode_is_held_out(self, source, tmp_path):
        pytest.importorskip("pyarrow")
        pytest.importorskip("PIL")
        from smolvla_edge.dataset import DatasetWriter
        from smolvla_edge.dataset.layout import Feature

        cameras = source.contract.robot_cameras()
        features = {
            **{c: Feature("image", (32, 32, 3)) for c in cameras},
            "observation.state": Feature("float32", (6,)),
            "action": Feature("float32", (6,)),
        }
        with DatasetWriter(tmp_path / "set", 10, features) as writer:
            for episode in range(9):
                frames = np.full((3, 32, 32, 3), episode, np.uint8)
                writer.add(
                    {**dict.fromkeys(cameras, frames), "observation.state": np.zeros((3, 6)),
                     "action": np.zeros((3, 6))}, TASK)  # fmt: skip
        learn_from, held_out = find_apart(source, str(tmp_path / "set"), 21, 6)
        shades = [{int(o.images[cameras[0]][0, 0, 0]) for o in x} for x in (learn_from, held_out)]
        assert shades == [{0, 1, 2, 4, 5, 6, 8}, {3, 7}]
        with pytest.raises(QuantizationError, match="7 frames or more in 2 of its 9 episodes"):
            find_apart(source, str(tmp_path / "set"), 4, 7)
        info = tmp_path / "set" / "meta" / "info.json"
        info.write_text(json.dumps({**json.loads(info.read_text()), "total_frames": 28}))
        with pytest.raises(DatasetError, match="promises 28 frames, its episodes have 27"):
            find_observations(source, str(tmp_path / "set"), 2)


class TestCommand:
    def test_a_bundle_its_numbers_and_its_plan(self, cli, source, tmp_path):
        path = source.provenance["source"]
        words = ("--data", "synthetic", "--observations", "3", "--held-out", "2", "--steps", "2")
        plan = ("--plan", "skip.vision=1,skip.vlm=1+2")
        shown = cli("heal", path, tmp_path / "b", *plan, *words, "--threads", "1")
        assert shown.code == 0, shown.err
        for word in ("vision.layers.0", "the output of layer 1", "text.layers.2",
                     "its own keys and values", "action error, healed"):  # fmt: skip
            assert word in shown.out
        assert "skip.vision=1,skip.vlm=1+2" in cli("inspect", tmp_path / "b").out
        refused(cli("heal", path, tmp_path / "b", *plan, *words), "--force")
        refused(cli("heal", path, tmp_path / "c", "--plan", "steps=2", *words), "nothing to heal")
        found = cli("heal", path, tmp_path / "b", *plan, *words, "--force", "--json")
        assert found.json["healed"]["practice"]["steps"] == 2
        assert found.json["digest"] == read_bundle(tmp_path / "b").digest


def test_the_whole_study_in_one_command(source, tmp_path):
    pytest.importorskip("matplotlib")
    skipping = pytest.importorskip("benchmarks.skipping")
    words = [source.provenance["source"], str(tmp_path), "--data", "synthetic", "--threads", "1",
             "--observations", "1", "--greedy", "1", "--calibration", "2", "--held-out", "1",
             "--steps", "1"]  # fmt: skip
    assert skipping.main(words) == 0
    found = json.loads((tmp_path / "skipping.json").read_text())
    assert found["curves"].keys() == {"all", "vision", "cells"} and len(found["healed"]) == 1
    assert read_bundle(tmp_path / "healed-1").digest == found["healed"][0]["bundle"]
    text = (tmp_path / "skipping.md").read_text()
    assert found["healed"][0]["words"] in text and "| nothing | 0.00% | 100.0% | 0 |" in text
