"""Which tile a kernel takes at a shape: configs/<device>.json, read once, nothing is tuned here.

A file maps a kernel to rows of {"shape": [...], tile}; a shape is the kernel's own key (README.md),
its first number (rows of tokens) rounded up to a power of two, and "*" is every other shape. Of a
device without a file, and of shapes that its file does not have, default.json decides.
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib import resources
from typing import Any

from smolvla_edge.errors import BackendError
from smolvla_edge.kernels.launch import torch

Tile = dict[str, int]
DEFAULT = "default"


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(n: int, least: int = 16) -> int:
    """The least power of two that is >= n and >= `least`."""
    return max(least, 1 << (n - 1).bit_length())


def device_slug(name: str) -> str:
    """A device's name as a file's name: "NVIDIA H200" -> "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def shape_key(shape: tuple[int, ...]) -> str:
    """(50, 720, 1600) -> "64x720x1600"."""
    return "x".join(map(str, (power_of_two(shape[0]), *shape[1:])))


@cache
def load_config(name: str) -> dict[str, Any]:
    """configs/<name>.json; no kernels where there is no such file.

    Raises BackendError for a file that is damaged.
    """
    file = resources.files("smolvla_edge.kernels") / "configs" / f"{name}.json"
    if not file.is_file():
        return {"kernels": {}}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BackendError(f"{file}: expected JSON, got {error}; run kernels.tune again") from error
    if not isinstance(found, dict) or not isinstance(found.get("kernels"), dict):
        raise BackendError(f"{file}: expected an object with 'kernels'; run kernels.tune again")
    return found


@cache
def _lookup(kernel: str, key: str, config: str) -> Tile:
    for name in dict.fromkeys((config, DEFAULT)):
        tiles = load_config(name)["kernels"].get(kernel, {})
        if key in tiles:
            return dict(tiles[key])
    return dict(tiles["*"])  # of default.json, which has one for every kernel


def tile_for(kernel: str, shape: tuple[int, ...], x: torch.Tensor) -> Tile:
    """BLOCK_* sizes, num_warps and num_stages. Off a GPU (interpreter, "meta"): default.json.

    A kernel whose float32 products need smaller tiles, as no tensor core makes them, has a second
    entry, "<kernel>_f32".
    """
    config = DEFAULT
    if x.is_cuda:
        config = device_slug(torch.cuda.get_device_name(x.device))
    if x.dtype == torch.float32 and f"{kernel}_f32" in load_config(DEFAULT)["kernels"]:
        kernel = f"{kernel}_f32"
    return _lookup(kernel, shape_key(shape), config)
