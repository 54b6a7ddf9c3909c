"""A tiny policy some of whose layers do nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from policy_helpers import tiny_checkpoint

from smolvla_edge.names import lerobot_name
from smolvla_edge.safetensors_file import SafetensorsFile, SafetensorsWriter, TensorLayout
from smolvla_edge.safetensors_file import iter_tensor_bytes as bytes_of

PREFIX = {"vision": "vision.layers.", "vlm": "text.layers.", "expert": "expert.layers."}


def idle_checkpoint(folder: Path, idle: Iterable[tuple[str, int]]) -> Path:
    """The tiny checkpoint whose layers `idle`, (part, layer), add nothing to what they are given:
    the last matrices of their attention and MLP are zero."""
    made = tiny_checkpoint(folder)
    silent = {
        str(lerobot_name(f"{PREFIX[part]}{layer}.{matrix}.{kind}"))
        for part, layer in idle
        for matrix in ("attn.o", "mlp.down")
        for kind in (("weight", "bias") if part == "vision" else ("weight",))
    }
    path = made / "model.safetensors"
    entries = SafetensorsFile(path).entries
    assert silent <= entries.keys()
    layouts = [TensorLayout(name, entry.dtype, entry.shape) for name, entry in entries.items()]
    with SafetensorsWriter(folder / "changed", layouts, {"format": "pt"}) as writer:
        for layout in writer.order:
            entry = entries[layout.name]
            zeros = np.zeros(entry.nbytes, np.uint8).tobytes()
            writer.write(layout.name, [zeros] if layout.name in silent else bytes_of(entry))
    (folder / "changed").rename(path)
    return made
