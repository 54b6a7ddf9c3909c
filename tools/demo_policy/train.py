"""Trains the demo policy from scratch on the project's own reference model.

    python -m tools.demo_policy.train DATA WORK --steps 20000 --minutes 90

Flow matching with LeRobot's loss and time distribution (Beta(1.5, 1)); several noises an image,
because encoding the image is most of the work; an auxiliary loss that makes the image tokens tell
where things are, dropped afterwards; an exponential moving average of the weights, which is what is
saved. The model computes in the dtypes of a released SmolVLA (bfloat16 but for the heads); what
learns are float32 copies of its weights.

WORK/state holds everything a later run needs to go on, WORK/plateau the same from before the
learning rate falls, from where a longer run can go on; WORK/policy is the policy so far, a LeRobot
checkpoint folder. Batches and noises follow from --seed and the step alone.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smolvla_edge.cli import output
from smolvla_edge.model import SmolVLA
from smolvla_edge.model.layers import split_heads
from smolvla_edge.model.prefix import Cache
from smolvla_edge.model.vision import Read, VisionAttention, as_computed
from smolvla_edge.policy_config import ACTION, STATE
from smolvla_edge.tokenizer import TaskTokenizer
from tools.demo_policy import batches, state_files
from tools.demo_policy.auxiliary import Auxiliary
from tools.demo_policy.batches import Demonstrations
from tools.demo_policy.policy_files import (
    model_config,
    released_dtypes,
    statistics,
    write_checkpoint,
)

WARM_UP = 500
DECAY = 0.3  # the last part of all steps, in which the learning rate falls to 0
EMA = 0.999
PAD_WEIGHT = 0.1  # of the action dimensions that only pad; LeRobot's loss weighs them in full


@dataclass
class Learner:
    """Everything that changes while training, on one device."""

    model: SmolVLA  # computes, in bfloat16 and float32
    auxiliary: Auxiliary
    weights: dict[str, Tensor]  # float32: the model's, then the readout's ("auxiliary.")
    average: dict[str, Tensor]  # float32, of the model's weights
    optimizer: torch.optim.Optimizer
    step: int = 0

    def computing(self) -> list[Tensor]:
        """The parameters that compute, in the order of `weights`."""
        return [*self.model.parameters(), *self.auxiliary.parameters()]

    def spread(self) -> None:
        """Round the weights into the parameters that compute."""
        with torch.no_grad():
            torch._foreach_copy_(self.computing(), list(self.weights.values()))

    def gather(self) -> None:
        """Move the gradients to the weights."""
        for weight, parameter in zip(self.weights.values(), self.computing(), strict=True):
            weight.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None


class Conditions:
    """Normalised states and actions and the tokens of each phrase, on the device."""

    def __init__(self, data: Demonstrations, stats: dict[str, np.ndarray], tokens: Tensor,
                 mask: Tensor, device: str) -> None:  # fmt: skip
        def pair(name: str) -> tuple[Tensor, Tensor]:
            mean, std = (torch.from_numpy(stats[f"{name}.{k}"]) for k in ("mean", "std"))
            return mean.to(device), std.to(device) + 1e-8

        self.state, self.action = pair(STATE), pair(ACTION)
        self.tokens, self.mask, self.device = tokens.to(device), mask.to(device), device


def loss_of(
    learner: Learner,
    batch: dict[str, Tensor],
    given: Conditions,
    draws: int,
    random: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """(flow loss, auxiliary loss) of a batch, `draws` noises and times an image."""
    model = learner.model
    config = model.config
    mean, std = given.action
    actions = F.pad((batch["actions"] - mean) / std, (0, config.max_action_dim - len(mean)))
    mean, std = given.state
    state = F.pad((batch["state"] - mean) / std, (0, config.max_state_dim - len(mean)))
    words = batch["words"]
    image = model.encode_image(batch["pixels"])
    seen = torch.ones(len(words), 1, dtype=torch.bool, device=given.device)
    cache = model.prefill([image], seen, given.tokens[words], given.mask[words], state)

    def repeated(x: Tensor) -> Tensor:
        return x.repeat_interleave(draws, 0)

    cache = Cache([(repeated(k), repeated(v)) for k, v in cache.layers], repeated(cache.valid))
    actions = repeated(actions)
    noise = torch.randn(actions.shape, generator=random).to(given.device)
    # Beta(1.5, 1) by its inverse, stretched as LeRobot does.
    moment = torch.rand(len(actions), generator=random) ** (1 / 1.5) * 0.999 + 0.001
    moment = moment.to(given.device)
    x = moment[:, None, None] * noise + (1 - moment[:, None, None]) * actions
    error = (model.velocity(x, moment, cache).float() - (noise - actions)) ** 2
    error = error * repeated(~batch["is_pad"])[..., None]
    used = len(given.action[0])
    flow = error[..., :used].mean() + PAD_WEIGHT * error[..., used:].mean()
    return flow, learner.auxiliary(image, batch["environment"], batch["task"])


def rate(step: int, steps: int, peak: float) -> float:
    """The learning rate: a short rise, a plateau, and a straight fall over the last part."""
    falling = (steps - step) / (DECAY * steps)
    return peak * min(1.0, (step + 1) / WARM_UP, max(0.0, falling))


def begin(data: Demonstrations, options: argparse.Namespace) -> Learner:
    """Random weights of --seed, or what an earlier run left in WORK/state."""
    torch.manual_seed(options.seed)
    model = SmolVLA(model_config())
    initialise(model)
    auxiliary = Auxiliary(model.config, data)
    model.to(options.device)
    auxiliary.to(options.device)
    average = {name: x.detach().clone() for name, x in model.named_parameters()}
    weights = {
        **{name: x.clone() for name, x in average.items()},
        **{f"auxiliary.{name}": x.detach().clone() for name, x in auxiliary.named_parameters()},
    }
    optimizer = torch.optim.AdamW(
        [x.requires_grad_() for x in weights.values()],
        lr=options.lr,
        betas=(0.9, 0.95),
        weight_decay=1e-3,
    )
    if options.device == "cpu":
        for layer in model.vision.layers:
            layer.attn.__class__ = CpuVisionAttention
    dtypes = released_dtypes()
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(dtypes[name])
    learner = Learner(model, auxiliary, weights, average, optimizer)
    state_files.restore(options.work / "state", learner, options.device)
    learner.spread()
    return learner


class CpuVisionAttention(VisionAttention):
    """The same attention in three products: torch's fused one takes five times as long backwards
    on a CPU in bfloat16."""

    def forward(self, x: Tensor, read: Read = as_computed) -> Tensor:
        q, k, v = (
            split_heads(m(x), self.head_dim).transpose(1, 2) for m in (self.q, self.k, self.v)
        )
        k, v = read(k, v)
        weights = (q * self.head_dim**-0.5 @ k.transpose(2, 3)).softmax(-1)
        return self.o((weights @ v).transpose(1, 2).flatten(2))


def initialise(model: SmolVLA) -> None:
    """Normal weights of the usual 1 / sqrt(inputs); the branches of deep sums start smaller."""
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        inputs = parameter[0].numel()
        std = 0.02 if "embed" in name or "position" in name else inputs**-0.5
        if name.endswith(("attn.o.weight", "mlp.down.weight")):
            std *= (2 * 6) ** -0.5
        nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std)


def train_step(
    learner: Learner, data: Demonstrations, given: Conditions, o: Any
) -> tuple[float, float]:
    random = torch.Generator().manual_seed((o.seed << 32) + learner.step)
    _, batch = batches.draw(data, o.batch, random)
    batch = {name: value.to(given.device) for name, value in batch.items()}
    flow, auxiliary = loss_of(learner, batch, given, o.draws, random)
    for group in learner.optimizer.param_groups:
        group["lr"] = rate(learner.step, o.steps, o.lr)
    (flow + 0.5 * auxiliary).backward()
    learner.gather()
    nn.utils.clip_grad_norm_(list(learner.weights.values()), 1.0)
    learner.optimizer.step()
    learner.spread()
    learner.step += 1
    # Young averages forget faster, or the random beginning would stay in them for long.
    keep = min(EMA, (1 + learner.step) / (10 + learner.step))
    now = [learner.weights[name].detach() for name in learner.average]
    torch._foreach_lerp_(list(learner.average.values()), now, 1 - keep)
    return flow.item(), auxiliary.item()


def encode(data: Demonstrations, folder: Path) -> tuple[Tensor, Tensor]:
    """Tokens [phrases, longest] int64 and which of them are valid."""
    from smolvla_edge.checkpoint import read_checkpoint

    contract = read_checkpoint(folder)
    tokenizer = TaskTokenizer(
        contract.tokenizer_file, contract.contract.tokenizer, contract.model.vocab
    )
    ids = [tokenizer.encode(task).ids for task in data.phrases]
    width = max(map(len, ids))
    mask = torch.tensor([[i < len(row) for i in range(width)] for row in ids])
    padded = torch.tensor(np.stack([np.pad(row, (0, width - len(row))) for row in ids]))
    return padded, mask


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo_policy.train", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("data", type=Path, help="the demonstrations (generate.py)")
    parser.add_argument("work", type=Path, help="where the state and the policy are kept")
    parser.add_argument("--steps", type=int, default=20_000, help="in all, earlier runs included")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop (and keep) after")
    parser.add_argument("--save-minutes", type=float, default=10.0)
    parser.add_argument("--batch", type=int, default=64, help="images a step")
    parser.add_argument("--draws", type=int, default=2, help="noises and times an image")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    if state_files.step_of(options.work / "state") >= options.steps:
        print(f"{options.work}: its {options.steps} steps are done")
        return
    with output.progress("reading the demonstrations", unit_bytes=False) as report:
        data = batches.load(options.data, options.work, report)
    stats = statistics(data)
    learner = begin(data, options)
    policy = options.work / "policy"
    write_checkpoint(policy, learner.average, stats)
    given = Conditions(data, stats, *encode(data, policy), options.device)
    count = sum(x.numel() for x in learner.model.parameters())
    print(
        f"{len(data.state)} frames, {count / 1e6:.2f} M parameters, from step {learner.step}",
        flush=True,
    )
    started = saved = time.perf_counter()
    first, sums = learner.step, np.zeros(3)
    with (options.work / "log.jsonl").open("a") as log:
        while learner.step < options.steps:
            sums += (*train_step(learner, data, given, options), 1)
            now = time.perf_counter()
            if learner.step % 100 == 0:
                speed = (learner.step - first) * options.batch / (now - started)
                flow, auxiliary = (round(float(x), 5) for x in sums[:2] / sums[2])
                line = {"step": learner.step, "flow": flow, "auxiliary": auxiliary,
                        "images_per_second": round(speed, 1),
                        "minutes": round((now - started) / 60, 1)}  # fmt: skip
                print(json.dumps(line), file=log, flush=True)
                print(line, flush=True)
                sums[:] = 0
            if learner.step == math.ceil((1 - DECAY) * options.steps):
                state_files.keep(options.work / "plateau", learner)
            over = (now - started) / 60 > options.minutes
            if over or now - saved > 60 * options.save_minutes or learner.step == options.steps:
                state_files.keep(options.work / "state", learner)
                write_checkpoint(policy, learner.average, stats)
                saved = time.perf_counter()
            if over:
                break


if __name__ == "__main__":
    main()
