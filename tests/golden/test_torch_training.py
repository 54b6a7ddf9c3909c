"""The reference model learns: its loss and gradients are those of LeRobot's training code."""

from __future__ import annotations

import golden_support as support
import pytest
from needs import needs

from smolvla_edge.names import expected_tensors

with needs("torch"):
    import torch
    import torch_runner

    from smolvla_edge.model import SmolVLA, load_model

# (loss, norm of the gradient of all parameters) of LeRobot 0.4.4's VLAFlowMatching.forward in
# float32, on the inputs of the case, its golden actions as the target, its noise, time 0.625.
LEROBOT = {
    "base": (0.64573932, 35.754608),
    "special_tokens_masked": (0.59831017, 46.10199),
    "batch2_longest": (0.64402121, 26.461535),
    "self_attn": (0.52953464, 25.757048),
    "all_cross": (0.38335511, 15.521451),
    "expert2_every4": (0.45854658, 17.942265),
}


def training_batch(case, model):
    observation = support.observation(case)
    rest = {
        key: torch.from_numpy(getattr(observation, key))
        for key in ("camera_mask", "tokens", "token_mask", "state", "noise")
    }
    noise = rest.pop("noise")
    batch = {
        "pixels": torch.stack(torch_runner.pixels_of(observation, model.config.resize)),
        "actions": torch.from_numpy(support.golden(case)["out.actions"].copy()),
        **rest,
    }
    return batch, noise


@pytest.mark.parametrize("case", LEROBOT)
def test_loss_and_gradient(case, checkpoint):
    opened = checkpoint(case)
    model = load_model(opened.model, opened.tensors)
    batch, noise = training_batch(case, model)
    loss = model.loss(batch, noise, torch.full((len(noise),), 0.625))
    loss.backward()
    gradients = [parameter.grad.norm() for parameter in model.parameters()]
    want_loss, want_norm = LEROBOT[case]
    assert loss.item() == pytest.approx(want_loss, rel=1e-5)
    assert torch.stack(gradients).norm().item() == pytest.approx(want_norm, rel=1e-5)


def test_steps_past_the_end_do_not_count(checkpoint):
    opened = checkpoint("base")
    model = load_model(opened.model, opened.tensors)
    batch, noise = training_batch("base", model)
    time = torch.full((1,), 0.5)
    batch["action_is_pad"] = torch.zeros(1, opened.model.chunk_size, dtype=torch.bool)
    with torch.no_grad():
        plain = model.loss(batch, noise, time)
        batch["action_is_pad"][:, 5:] = True
        shortened = model.loss(batch, noise, time)
        batch["actions"][:, 5:] = 100.0
        # Later actions are invisible to the first five, so neither do their values.
        assert model.loss(batch, noise, time) == shortened < plain


def test_learns_the_expert_only(checkpoint):
    """A few steps of Adam with the vision-language model frozen reduce the loss."""
    torch.manual_seed(0)
    opened = checkpoint("one_camera")
    model = load_model(opened.model, opened.tensors)
    model.freeze_vlm()
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert trained
    assert not any(name.startswith(("vision", "connector", "text")) for name in trained)
    batch, noise = training_batch("one_camera", model)
    time = model.sample_time(1)
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model.loss(batch, noise, time)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_times_favour_the_noisy_end():
    """Beta(1.5, 1) has mean 0.6; 10000 samples know it to 0.0026 (one standard deviation)."""
    torch.manual_seed(0)
    times = SmolVLA.sample_time(10000)
    assert times.min() > 0.001 and times.max() <= 1.0
    assert abs(times.mean().item() - (0.6 * 0.999 + 0.001)) < 4 * 0.0026


@pytest.mark.parametrize("case", ["base", "self_attn", "expert2_every4"])
def test_parameters_are_the_canonical_tensors(case, checkpoint):
    opened = checkpoint(case)
    shapes = expected_tensors(opened.model)
    live = load_model(opened.model, opened.tensors).state_dict()
    assert {name: tuple(value.shape) for name, value in live.items()} == {
        name: spec.shape for name, spec in shapes.items() if not spec.dead
    }
    # The language model's head is the one tensor that LeRobot's own inference does not touch.
    every = load_model(opened.model, opened.tensors | opened.dead).state_dict()
    assert shapes.keys() - every.keys() == {"text.head.weight"}
