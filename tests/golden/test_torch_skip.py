"""Layers left out or reused in the torch reference, against loops written out by hand."""

from __future__ import annotations

import golden_support as support
import numpy as np
import pytest
from needs import needs

from smolvla_edge.plan import Plan, Skip

with needs("torch"):
    import torch
    import torch.nn.functional as F
    import torch_runner

    from smolvla_edge.backends.torch import TorchBackend
    from smolvla_edge.model.flow import time_embedding
    from smolvla_edge.model.layers import rope
    from smolvla_edge.model.vision import pixel_shuffle

STEPS = 4


class Case:
    """A golden case: its model, its inputs, and what a plan makes of them."""

    def __init__(self, case, opened):
        self.backend = TorchBackend(opened.model, opened.tensors, opened.contract)
        self.model = self.backend.model
        observation = support.observation(case)
        pixels = torch.cat(torch_runner.pixels_of(observation, opened.model.resize)).numpy()
        rest = ("camera_mask", "tokens", "token_mask", "state", "noise")
        self.inputs = (pixels, *(getattr(observation, name)[0] for name in rest))

    def trace(self, skip):
        return self.backend.trace(*self.inputs, plan=Plan(steps=STEPS, skip=skip))

    def actions(self, skip):
        return self.trace(skip)["out.actions_padded"]

    @torch.no_grad()
    def by_hand(self, expert):
        """The flow, `expert(step, x, run)` being the layers; run(i, x) computes the i-th."""
        model, config = self.model, self.model.config
        pixels, camera_mask, tokens, token_mask, state, noise = map(torch.from_numpy, self.inputs)
        images = [model.encode_image(image) for image in pixels.split(1)]
        prompt = (x[None] for x in (camera_mask, tokens, token_mask, state))
        cache = model.prefill(images, *prompt)
        rows = len(noise)
        seen = cache.valid[:, None].expand(1, rows, -1)
        mask = torch.cat((seen, torch.ones(1, rows, rows, dtype=torch.bool).tril()), 2)
        positions = cache.valid.sum(1, keepdim=True) + torch.arange(rows)

        def run(i, x):
            keys = cache.layers[model.expert.reads[i]]
            return model.expert.layers[i](x, *keys, positions, mask)

        x = noise[None]
        for step in range(STEPS):
            time = torch.full((1,), 1 - step / STEPS)
            action = model.action_in(x)
            moment = time_embedding(time, config.expert_width, config.min_period, config.max_period)
            moment = moment.float()[:, None].expand_as(action)
            hidden = model.time_out(F.silu(model.time_in(torch.cat((action, moment), 2))))
            features = model.expert.norm(expert(step, hidden, run))
            x = x - model.action_out(features) / STEPS
        return x.numpy()


@pytest.fixture(scope="module")
def case(checkpoint):
    made = {}

    def get(name):
        if name not in made:
            made[name] = Case(name, checkpoint(name))
        return made[name]

    return get


@pytest.fixture
def base(case):
    return case("base")


def test_nothing_left_out_is_the_reference_to_the_bit(base):
    want = support.expected("base")
    usual = base.trace(Skip())
    support.compare_all(usual, {name: want[name] for name in want.keys() & usual.keys()})
    for skip in (Skip(reuse=((),) * STEPS), Skip(vlm=(3,))):  # the last has only keys and values
        got = base.trace(skip)
        assert got.keys() == usual.keys()
        assert all((got[name] == usual[name]).all() for name in usual)


class TestVision:
    def test_all(self, base):
        """What is left is the embedding and the norm."""
        got = base.trace(Skip(vision=(0, 1)))
        vision = base.model.vision
        with torch.no_grad():
            for i in (0, 1):
                patches = torch.from_numpy(got[f"mid.vision_embed.{i}"])
                tokens = base.model.connector(pixel_shuffle(vision.norm(patches), 2)).numpy()
                assert (got[f"out.connector.{i}"] == tokens).all()

    def test_one(self, base):
        got, usual = base.trace(Skip(vision=(0,))), base.trace(Skip())
        assert (got["mid.vision_layer0.1"] == usual["mid.vision_embed.1"]).all()
        with torch.no_grad():
            after = base.model.vision.layers[1](torch.from_numpy(usual["mid.vision_embed.1"]))
        assert (got["mid.vision_layer1.1"] == after.numpy()).all()
        assert np.abs(got["out.actions"] - usual["out.actions"]).max() > 1e-4

    def test_predict_does_too(self, base):
        frame = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        rest = np.array([5, 9]), np.zeros(base.model.config.state_dim, np.float32), base.inputs[-1]
        results = [
            base.backend.predict([frame, frame], *rest, Plan(steps=STEPS, skip=skip)).normalized
            for skip in (Skip(), Skip(vision=(0,)), Skip(vlm=(1,)), Skip(expert=(2,)))
        ]
        assert len({result.tobytes() for result in results}) == 4


class TestLanguage:
    def test_keys_and_values_are_made(self, base):
        """Of what came in; and the next layer reads the same."""
        got, usual = base.trace(Skip(vlm=(1,))), base.trace(Skip())
        x = torch.from_numpy(usual["mid.prefix_layer0"])
        assert (got["mid.prefix_layer1"] == usual["mid.prefix_layer0"]).all()
        positions = torch.from_numpy(usual["mid.prefix_position_ids"])
        mask = torch.from_numpy(usual["mid.prefix_att_2d_masks"])
        layers, theta = base.model.text.layers, base.model.config.rope_theta
        with torch.no_grad():
            normed = layers[1].norm1(x)
            key = rope(layers[1].attn.heads("k", normed), positions, theta).transpose(1, 2)
            value = layers[1].attn.heads("v", normed).transpose(1, 2)
            after = layers[2](x, positions, mask)[0]
        assert (got["out.kv.1.key"] == key.numpy()).all()
        assert (got["out.kv.1.value"] == value.numpy()).all()
        assert (got["mid.prefix_layer2"] == after.numpy()).all()
        assert np.abs(got["out.actions"] - usual["out.actions"]).max() > 1e-5

    def test_all(self, base):
        """Every layer's keys and values are of the embeddings."""
        got = base.trace(Skip(vlm=(0, 1, 2, 3)))
        assert (got["mid.prefix_layer2"] == got["out.prefix_embs"]).all()


class TestExpert:
    @pytest.mark.parametrize("name", ["base", "expert2_every4", "every_1"])
    def test_the_hand_written_loop_is_the_flow(self, case, name):
        """Otherwise the tests below would compare with something else."""
        this = case(name)

        def all_layers(step, x, run):
            for i in range(len(this.model.expert.layers)):
                x = run(i, x)
            return x

        support.compare("actions", this.by_hand(all_layers), this.actions(Skip()), 1e-6)

    @pytest.mark.parametrize("name, skipped", [("base", (1, 2)), ("expert2_every4", (1,))])
    def test_skipped(self, case, name, skipped):
        """Indices are the expert's own, also where it has fewer layers than the language model."""
        this = case(name)

        def others(step, x, run):
            for i in range(len(this.model.expert.layers)):
                x = x if i in skipped else run(i, x)
            return x

        got = this.actions(Skip(expert=skipped))
        support.compare("actions", got, this.by_hand(others), 1e-6)
        assert np.abs(got - this.actions(Skip())).max() > 1e-4

    @pytest.mark.parametrize(
        "skip",
        [
            # Layer 2 rests twice and adds what it did in evaluation 0; layer 1 what it last did.
            Skip(reuse=((), (1, 2), (2,), (1,))),
            Skip(expert=(1,), reuse=((), (3,), (), (0, 3))),
        ],
    )
    def test_reused(self, base, skip):
        added = {}

        def layers(step, x, run):
            for i in range(4):
                if i in skip.reuse[step]:
                    x = x + added[i]
                elif i not in skip.expert:
                    after = run(i, x)
                    added[i], x = after - x, after
            return x

        got = base.actions(skip)
        support.compare("actions", got, base.by_hand(layers), 1e-6)
        assert np.abs(got - base.actions(Skip(expert=skip.expert))).max() > 1e-5

    def test_nothing_is_reused_from_the_call_before(self, base):
        skip = Skip(reuse=((), (1, 2), (2,), (1,)))
        first = base.actions(skip)
        other = list(base.inputs)
        other[-1] = -other[-1]
        base.backend.sample_actions(*other, plan=Plan(steps=STEPS, skip=skip))
        assert (base.actions(skip) == first).all()
