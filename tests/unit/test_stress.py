"""Weights with outliers, as real checkpoints have them and uniform random ones do not.

`hidden`: 1 % of the channels that layers read are 50 times larger and the weights that read them 50
times smaller, so that the policy computes what it did: whatever gets worse is the rounding.
`large`: 1 % of the columns of every down projection are 50 times larger.

    python tests/unit/test_stress.py        prints the errors
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from policy_helpers import tiny_checkpoint

from smolvla_edge.checkpoint import read_checkpoint
from smolvla_edge.codes import round_to_nearest
from smolvla_edge.compress import smooth
from smolvla_edge.compress.evidence import ActionError, Subject
from smolvla_edge.compress.observations import find_observations
from smolvla_edge.compress.quantize import quantize
from smolvla_edge.compress.recipe import RECIPES
from smolvla_edge.names import lerobot_name
from smolvla_edge.safetensors_file import SafetensorsWriter, TensorLayout, as_float32, read_tensor
from smolvla_edge.source import open_source

pytest.importorskip("torch")
FACTOR, SHARE = 50, 0.01
# Times the error that the same formats have without outliers.
GATE = 2.0


def clean(folder):
    return tiny_checkpoint(folder)


def hidden(folder):
    tensors, model = floats(tiny_checkpoint(folder))
    random = np.random.default_rng(1)
    for spot in smooth.spots(model):
        if spot.makers and all(name in tensors for name in (*spot.readers, *spot.makers)):
            width = tensors[spot.readers[0]].shape[1]
            factors = np.ones(width, np.float32)
            factors[few(random, width)] /= FACTOR
            tensors.update(smooth.apply(spot, factors, tensors))
    return write(folder, tensors)


def large(folder):
    tensors, _ = floats(tiny_checkpoint(folder))
    random = np.random.default_rng(2)
    for name in tensors:
        if re.fullmatch(r"\w+\.layers\.\d+\.mlp\.down\.weight", name):
            tensors[name] = tensors[name].copy()
            tensors[name][:, few(random, tensors[name].shape[1])] *= FACTOR
    return write(folder, tensors)


def few(random, count):
    return random.choice(count, max(1, round(SHARE * count)), replace=False)


def floats(folder):
    checkpoint = read_checkpoint(folder)
    return {
        name: as_float32(read_tensor(entry), entry.dtype)
        for name, entry in checkpoint.tensors.items()
    }, checkpoint.model


def write(folder, tensors):
    named = {str(lerobot_name(name)): value for name, value in tensors.items()}
    layouts = [TensorLayout(name, "F32", value.shape) for name, value in named.items()]
    with SafetensorsWriter(folder / "model.safetensors", layouts, {"format": "pt"}) as writer:
        for layout in writer.order:
            writer.write(layout.name, np.ascontiguousarray(named[layout.name], np.float32))
    return folder


def measured(folder):
    """{(checkpoint, recipe, whether fitted): rms of the actions' range}, on held-out observations
    and noises (calibration counts its own from 0)."""
    found = {}
    for make in (clean, hidden, large):
        place = folder / make.__name__
        source = open_source(make(place / "checkpoint"))
        calibration, held_out = find_observations(source, "synthetic", 14).split(6)
        exact = Subject(source, compute="float32", threads=1).chunks(held_out, 100)
        for recipe in ("int8", "balanced"):
            for fitted in (False, True):
                seen = calibration if fitted else None
                bundle = quantize(source, place / f"{recipe}{fitted}", RECIPES[recipe], seen)
                subject = Subject(open_source(bundle.path), threads=1)
                error = ActionError.between(subject.chunks(held_out, 100), exact)
                found[make.__name__, recipe, fitted] = error.rms_of_range
    return found


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    return measured(tmp_path_factory.mktemp("stress"))


@pytest.mark.parametrize("recipe", ["int8", "balanced"])
def test_hidden_outliers_are_undone_by_fitting_and_by_nothing_else(errors, recipe):
    allowed = GATE * errors["clean", recipe, False]
    assert errors["hidden", recipe, False] > allowed
    assert errors["hidden", recipe, True] < allowed


@pytest.mark.parametrize("recipe", ["int8", "balanced"])
def test_large_columns_cost_less_when_fitted(errors, recipe):
    assert errors["large", recipe, True] < 0.75 * errors["large", recipe, False]


def test_one_scale_for_a_whole_matrix_is_not_enough():
    """Why each output channel has its own: of a matrix with one large row nothing else is left."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((96, 64)).astype(np.float32)
    weight[3] *= FACTOR
    others = np.arange(96) != 3
    scale = np.abs(weight).max() / 127
    whole = np.rint(weight / scale) * scale
    rows = round_to_nearest(weight, RECIPES["int8"].rules[0].format).weight()

    def lost(rounded):
        return np.linalg.norm((rounded - weight)[others]) / np.linalg.norm(weight[others])

    assert lost(whole) > 0.25 and lost(rows) < 0.01


if __name__ == "__main__":  # the table of docs/numerics.md
    with tempfile.TemporaryDirectory() as scratch:
        table = measured(Path(scratch))
    for name in ("clean", "hidden", "large"):
        cells = [
            f"{table[name, recipe, False]:.2%}, {table[name, recipe, True]:.2%}"
            for recipe in ("int8", "balanced")
        ]
        print(f"| {name} | {' | '.join(cells)} |")
