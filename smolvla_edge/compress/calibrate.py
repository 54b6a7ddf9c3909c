"""What goes into each layer while a policy predicts: what solvers weigh their errors by.

The policy runs as it does on a robot, every denoise step of every observation with its own noise,
in the PyTorch reference (extra torch).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.backends import open_backend
from smolvla_edge.codes import stacked_with
from smolvla_edge.compress import calibration_state as state
from smolvla_edge.compress.observations import Observations
from smolvla_edge.errors import NonFiniteError, QuantizationError
from smolvla_edge.healed import least_plan
from smolvla_edge.policy import Policy
from smolvla_edge.source import Source

ROWS = 256  # of a layer's input, drawn from each call: neighbouring patches say nearly the same
KEPT_ROWS = 128  # of all calls, to try roundings on
_CANDIDATES = 4  # rows of a call that may be kept
Progress = Callable[[int, int], None]


@dataclass
class LayerInputs:
    """Of one weight [out, in]: largest float32 [in], max |x| over rows x of its inputs; sample
    float32 [n, in], some rows; hessian float64 [in, in], the mean of x x^T (None when it was not
    asked for)."""

    largest: NDArray[np.float32]
    sample: NDArray[np.float32]
    hessian: NDArray[np.float64] | None


class Tally:
    """Sums over the rows that go into one linear layer."""

    def __init__(self, torch: Any, width: int, hessian: bool, random: Any) -> None:
        self.torch, self.random = torch, random
        self.sum = torch.zeros(width, width) if hessian else None
        self.largest = torch.zeros(width)
        self.rows = 0
        self.kept: list[Any] = []
        self.candidates = 0
        self.broken = False

    def see(self, module: Any, inputs: tuple[Any, ...]) -> None:
        x = inputs[0].detach().float().flatten(0, -2)
        self.broken |= not bool(self.torch.isfinite(x).all())
        self.largest = self.torch.maximum(self.largest, x.abs().amax(0))
        self._keep(x)
        if self.sum is not None:
            if len(x) > ROWS:
                x = x[self.torch.randperm(len(x), generator=self.random)[:ROWS]]
            self.sum.addmm_(x.T, x)
            self.rows += len(x)

    def state(self) -> dict[str, Any]:
        """Tensors that `restore` takes."""
        counts = self.torch.tensor([self.rows, self.candidates])
        kept = self.torch.stack(self.kept) if self.kept else self.largest.new_zeros((0, 1))
        found = {"counts": counts, "largest": self.largest, "kept": kept}
        return found if self.sum is None else {**found, "sum": self.sum}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.rows, self.candidates = state["counts"].tolist()
        self.largest, self.kept = state["largest"], list(state["kept"])
        self.sum = state.get("sum")

    def _keep(self, x: Any) -> None:
        """Of all candidate rows so far each is as likely to be kept (reservoir sampling)."""
        for row in self.torch.randint(len(x), (_CANDIDATES,), generator=self.random).tolist():
            self.candidates += 1
            if len(self.kept) < KEPT_ROWS:
                self.kept.append(x[row].clone())
                continue
            place = int(self.torch.randint(self.candidates, (1,), generator=self.random))
            if place < KEPT_ROWS:
                self.kept[place] = x[row].clone()


def layer_inputs(
    source: Source,
    observations: Observations,
    weights: Collection[str],
    hessians: Collection[str],
    *,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
    keep: Path | None = None,
) -> dict[str, LayerInputs]:
    """The inputs of `weights` (canonical names) over all observations; observation i draws its
    noise from seed + i. Hessians are kept for the weights of `hessians`. keep: a file in which an
    interrupted calibration goes on. Layers that healed weights do without have no inputs.

    Raises MissingExtraError without torch; QuantizationError for NaN or infinity in a layer's
    input; InputError for an observation that does not fit the policy.
    """
    backend = open_backend(
        source.model, source.tensors, source.contract, backend="torch", device="cpu",
        threads=threads,
    )  # fmt: skip
    import torch

    policy = Policy(source, backend, least_plan(source))
    model: Any = backend.model  # type: ignore[attr-defined]
    random = torch.Generator().manual_seed(seed)
    cross = source.model.cross_expert_layers()
    tallies: dict[str, Tally] = {}  # weights that are computed together read the same rows
    modules = {}
    for name in weights:
        key = stacked_with(name, cross)
        wanted = any(stacked_with(other, cross) == key for other in hessians)
        if key in tallies:
            continue
        module = model.get_submodule(name.removesuffix(".weight"))
        tallies[key] = Tally(torch, module.weight.shape[1], wanted, random)
        modules[key] = module
    begun, what = 0, ""
    if keep is not None:
        what = state.identity(source, observations, weights, hessians, seed)
        begun = state.restore(keep, what, tallies, random)
    hooks = [m.register_forward_pre_hook(tallies[key].see) for key, m in modules.items()]
    try:
        for number, seen in enumerate(observations):
            if number < begun:
                continue
            if keep is not None and number > begun and number % state.EVERY == 0:
                state.save(keep, what, tallies, random, number)
            if progress is not None:
                progress(number, len(observations))
            fault: NonFiniteError | None = None
            try:
                policy.predict(seen.images, seen.state, seen.task, seed=seed + number)
            except NonFiniteError as error:  # the layer says more than the actions do
                fault = error
            for key, tally in tallies.items():
                if tally.broken:
                    raise QuantizationError(
                        f"{key}: observation {number} puts NaN or infinity into this layer"
                    ) from fault
            if fault is not None:
                raise fault
    finally:
        for hook in hooks:
            hook.remove()
    if keep is not None:
        state.save(keep, what, tallies, random, len(observations))
    if progress is not None:
        progress(len(observations), len(observations))
    found = {name: tallies[stacked_with(name, cross)] for name in weights}
    return {name: _finished(tally) for name, tally in found.items() if tally.kept}


def _finished(tally: Tally) -> LayerInputs:
    hessian = None
    if tally.sum is not None:
        hessian = tally.sum.double().numpy() / max(1, tally.rows)
    sample = tally.torch.stack(tally.kept).numpy()
    return LayerInputs(tally.largest.numpy(), sample, hessian)


def smoothed(inputs: LayerInputs, factors: NDArray[np.float32]) -> LayerInputs:
    """The inputs divided by `factors` [in], as smoothing does."""
    hessian = inputs.hessian
    if hessian is not None:
        hessian = hessian / np.outer(factors, factors)
    return LayerInputs(inputs.largest / factors, inputs.sample / factors, hessian)
