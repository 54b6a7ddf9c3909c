"""Engines of the C++ core made by hand, without the package's own checks in front of it."""

from __future__ import annotations

import os

import numpy as np

from smolvla_edge import _core
from smolvla_edge.backends.native import engine_plan
from smolvla_edge.plan import Plan

F32 = np.float32
CHUNK, DIMS, STATE = 8, 8, 10  # of the tiny checkpoint: chunk, max_action_dim, max_state_dim


def tensors_of(source) -> list[tuple]:
    return [
        (name, e.dtype, e.shape, os.fsencode(e.path), e.offset, e.nbytes)
        for name, e in source.tensors.items()
    ]


def make(
    source, *, tensors=None, stats=None, threads=1, isa="", packed=None, device="cpu", **config
):
    return _core.Engine(
        {**source.model.to_dict(), **config},
        tensors_of(source) if tensors is None else tensors,
        source.contract.engine_stats() if stats is None else stats,
        threads,
        isa,
        packed=packed,
        device=device,
    )


def plan_of(rows=CHUNK, steps=3, **changes):
    """A plan as the engine takes it, which may be wrong."""
    return {**engine_plan(Plan(), rows), "steps": steps, **changes}


def arguments(**changes):
    """Of Engine.predict; those of a plan by name."""
    known = plan_of()
    plan = {name: changes.pop(name) for name in list(changes) if name in known}
    usual = {
        "frames": [np.full((48, 64, 3), 90, np.uint8)] * 2,
        "tokens": np.array([1, 2, 3]),
        "state": np.zeros(6, F32),
        "noise": np.ones((CHUNK, DIMS), F32),
        "plan": {**known, **plan},
    }
    return {**usual, **changes}
