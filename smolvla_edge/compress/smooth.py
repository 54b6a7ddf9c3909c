"""Smoothing: large inputs of a layer made smaller, its weights larger, with the same product.

SmoothQuant (Xiao et al. 2022, https://arxiv.org/abs/2211.10438): input c of a layer is divided by
s_c and column c of its weights multiplied by it, with s_c = max|x_c|^a / max|w_c|^(1 - a). A row of
inputs has one scale, so one channel of 50 times the others' size leaves them a few codes; smoothing
shares the trouble between rows and weights. The division costs nothing: it goes into the norm or
the matrix that makes the input. Where none does (vision's down projection reads a GELU), the
factors are stored with the layer and multiplied in the epilogue that makes the GELU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.codes import CodeFormat, round_rows, round_to_nearest
from smolvla_edge.compress.calibrate import LayerInputs
from smolvla_edge.config import ModelConfig

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)  # a, tried in this order; 0 shares nothing
_LEAST = 1e-5  # of the largest factor: no channel is blown up without bound

Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Spot:
    """A place to smooth: `readers` [*, in] share one input, which `makers` make: vectors [in], or
    matrices and biases of which row c makes input c. Without makers the one reader keeps the
    factors as its input scale."""

    readers: tuple[str, ...]
    makers: tuple[str, ...]


def spots(model: ModelConfig) -> Iterator[Spot]:
    """Every place of the model that can be smoothed, in order of its layers."""
    for layer in range(model.vision_layers):
        at = f"vision.layers.{layer}."
        norm = ("norm1.weight", "norm1.bias")
        yield _spot(at, ("attn.q.weight", "attn.k.weight", "attn.v.weight"), norm)
        yield _spot(at, ("attn.o.weight",), ("attn.v.weight", "attn.v.bias"))
        yield _spot(at, ("mlp.up.weight",), ("norm2.weight", "norm2.bias"))
        yield _spot(at, ("mlp.down.weight",), ())
    for part, layers in (("text", model.text_layers), ("expert", model.expert_layers)):
        cross = model.cross_expert_layers() if part == "expert" else ()
        for layer in range(layers):
            at = f"{part}.layers.{layer}."
            readers = ("attn.q.weight", "attn.k.weight", "attn.v.weight")
            yield _spot(at, readers[:1] if layer in cross else readers, ("norm1.weight",))
            yield _spot(at, ("mlp.gate.weight", "mlp.up.weight"), ("norm2.weight",))
            yield _spot(at, ("mlp.down.weight",), ("mlp.up.weight",))


def _spot(at: str, readers: tuple[str, ...], makers: tuple[str, ...]) -> Spot:
    return Spot(tuple(at + name for name in readers), tuple(at + name for name in makers))


def best_factors(
    inputs: LayerInputs, weights: list[NDArray[np.float32]], form: CodeFormat
) -> NDArray[np.float32] | None:
    """Of the strengths tried, the factors under which rounded rows times rounded weights come
    nearest to the sample's products; None when no smoothing is best."""
    exact = [inputs.sample @ weight.T for weight in weights]
    best, found = np.inf, None
    for strength in STRENGTHS:
        s = factors(inputs, weights, strength) if strength else np.ones_like(inputs.largest)
        codes, scales = round_rows(inputs.sample / s)
        rows = codes * scales[:, None]
        error = 0.0
        for weight, product in zip(weights, exact, strict=True):
            rounded = round_to_nearest(weight * s, form).weight()
            error += float(((rows @ rounded.T - product) ** 2).sum())
        if error < best:
            best, found = error, s if strength else None
    return found


def factors(
    inputs: LayerInputs, weights: list[NDArray[np.float32]], strength: float
) -> NDArray[np.float32]:
    """s [in] for weights [*, in] that read these inputs; their geometric mean is 1."""
    columns = np.max([np.abs(weight).max(axis=0) for weight in weights], axis=0)
    seen = (inputs.largest > 0) & (columns > 0)
    raw = np.ones(len(columns))
    raw[seen] = inputs.largest[seen] ** strength / columns[seen] ** (1 - strength)
    if seen.any():
        raw[seen] /= np.exp(np.log(raw[seen]).mean())
    return np.maximum(raw, _LEAST * raw.max()).astype(np.float32)


def apply(spot: Spot, s: NDArray[np.float32], tensors: Mapping[str, NDArray[np.float32]]) -> Arrays:
    """The tensors of a spot after smoothing by s [in]; the layers' outputs stay the same if its
    inputs are divided by s, by its makers or by an input scale."""
    changed: Arrays = {name: tensors[name] * s for name in spot.readers}
    for name in spot.makers:
        value = changed.get(name, tensors[name])  # vision's v is a reader of norm1 and a maker
        changed[name] = value / (s if value.ndim == 1 else s[:, None])
    return changed
