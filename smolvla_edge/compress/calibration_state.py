"""A calibration that was interrupted goes on: the tallies so far, in a file beside the target.

The file says what it is of. Of anything else (other weights, observations, layers, seed) it is left
alone and written over when the new calibration first saves.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolvla_edge.compress.observations import Observations
from smolvla_edge.source import Source

if TYPE_CHECKING:
    from smolvla_edge.compress.calibrate import Tally

EVERY = 32  # observations between two writings: of SmolVLA's size one is 0.4 GB
_NUMBER, _IDENTITY, _RANDOM = "number", "identity", "random"


def identity(
    source: Source,
    observations: Observations,
    weights: Collection[str],
    hessians: Collection[str],
    seed: int,
) -> str:
    """A digest of everything that the tallies depend on."""
    files = sorted({entry.path for entry in source.tensors.values()})
    facts = {
        "weights": list(weights),
        "hessians": sorted(hessians),
        "seed": seed,
        "observations": observations.evidence(),
        "model": source.model.to_dict(),
        "files": [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def save(path: Path, what: str, tallies: Mapping[str, Tally], random: Any, number: int) -> None:
    """The state after `number` observations; an interrupted write leaves the older one."""
    from safetensors.torch import save_file

    tensors = {_RANDOM: random.get_state()}
    for key, tally in tallies.items():
        tensors |= {f"{key}.{name}": value for name, value in tally.state().items()}
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, {_NUMBER: str(number), _IDENTITY: what})
    os.replace(partial, path)


def restore(path: Path, what: str, tallies: Mapping[str, Tally], random: Any) -> int:
    """Put the state of `what` into the tallies -> how many observations it has seen, 0 if none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            found = file.metadata() or {}
            if found.get(_IDENTITY) != what:
                return 0
            state = file.get_tensor(_RANDOM)
            kept = {
                key: {name: file.get_tensor(f"{key}.{name}") for name in tally.state()}
                for key, tally in tallies.items()
            }
    except (OSError, SafetensorError):  # there is none, or it is broken
        return 0
    random.set_state(state)
    for key, tally in tallies.items():
        tally.restore(kept[key])
    return int(found[_NUMBER])
