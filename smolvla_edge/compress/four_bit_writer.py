"""A LeRobot checkpoint whose matrices bitsandbytes has put into its 4-bit format (extra `quant`).

The names and tensors are those that bitsandbytes' Linear4bit saves; four_bit.py reads them back.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.codes import is_table, may_be_codes
from smolvla_edge.compress.solve import Progress, weight_of
from smolvla_edge.errors import MissingExtraError, QuantizationError
from smolvla_edge.names import lerobot_name
from smolvla_edge.safetensors_file import SafetensorsWriter, TensorLayout, iter_tensor_bytes
from smolvla_edge.source import Source

TYPES = ("nf4", "fp4")
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_STORED = {"float32": "F32", "uint8": "U8"}


def write_four_bit(
    source: Source,
    dest: str | os.PathLike[str],
    kind: str = "nf4",
    *,
    block_size: int = 64,
    double: bool = True,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, int]:
    """Copy the checkpoint folder that `source` was read from to `dest`, the matrices of its three
    transformers in 4 bits; -> {"weights": how many, "bytes": of the new file}.

    Keys and values of cross-attention stay as they are, as `quantize` leaves them. Raises
    MissingExtraError without bitsandbytes, QuantizationError for a source that is no checkpoint
    folder, a target that exists, or a type that is neither nf4 nor fp4.
    """
    folder, target = Path(str(source.provenance["source"])), Path(dest)
    if source.bundle is not None or not folder.is_dir():
        raise QuantizationError("expected a LeRobot checkpoint folder, got a bundle or a Hub id")
    if os.path.lexists(target):
        raise QuantizationError(f"{target} exists: choose another name")
    if kind not in TYPES:
        raise QuantizationError(f"expected one of {', '.join(TYPES)}, got {kind!r}")
    layers = source.model.cross_expert_layers()
    kept = {f"expert.layers.{layer}.attn.{part}.weight" for layer in layers for part in "kv"}
    chosen = [
        name
        for name, entry in source.tensors.items()
        if ".layers." in name and name not in kept and may_be_codes(name, entry.shape)
        and not is_table(name)
    ]  # fmt: skip
    arrays: dict[str, NDArray[Any]] = {}
    for number, name in enumerate(chosen):
        progress("quantising with bitsandbytes", number, len(chosen))
        dtype = _DTYPES[source.tensors[name].dtype]
        made = _quantize(weight_of(source, name), dtype, kind, block_size, double)
        arrays |= {str(lerobot_name(name)) + suffix: value for suffix, value in made.items()}
    progress("quantising with bitsandbytes", len(chosen), len(chosen))
    return {"weights": len(chosen), "bytes": _write(source, folder, target, chosen, arrays)}


def _quantize(
    weight: NDArray[np.float32], dtype: str, kind: str, block_size: int, double: bool
) -> dict[str, NDArray[Any]]:
    """{suffix of the name: tensor} of one weight."""
    try:
        import torch
        from bitsandbytes.functional import quantize_4bit
    except ImportError as cause:
        raise MissingExtraError(
            "bitsandbytes is not installed: pip install 'smolvla-edge[quant]'"
        ) from cause
    values = torch.from_numpy(weight).to(getattr(torch, dtype))
    packed, state = quantize_4bit(
        values, blocksize=block_size, compress_statistics=double, quant_type=kind
    )
    tensors: Mapping[str, Any] = state.as_dict(packed=True)
    found = {"." + name: value.cpu().numpy() for name, value in tensors.items()}
    return {"": packed.cpu().numpy(), **found}


def _write(
    source: Source,
    folder: Path,
    target: Path,
    chosen: Collection[str],
    arrays: Mapping[str, NDArray[Any]],
) -> int:
    plain = {str(lerobot_name(n)): e for n, e in source.tensors.items() if n not in chosen}
    layouts = [TensorLayout(n, _STORED[str(a.dtype)], a.shape) for n, a in arrays.items()]
    layouts += [TensorLayout(name, entry.dtype, entry.shape) for name, entry in plain.items()]
    weight_files = {entry.path for entry in source.tensors.values()}
    target.parent.mkdir(parents=True, exist_ok=True)
    # There under its name when it is complete.
    with tempfile.TemporaryDirectory(".partial", f".{target.name}.", target.parent) as scratch:
        made = Path(scratch) / target.name
        made.mkdir()
        for path in folder.iterdir():
            if path.is_dir():
                shutil.copytree(path, made / path.name)
            elif path not in weight_files and not path.name.endswith(".index.json"):
                shutil.copyfile(path, made / path.name)
        with SafetensorsWriter(made / "model.safetensors", layouts, {"format": "pt"}) as writer:
            for layout in writer.order:
                if layout.name in arrays:
                    writer.write(layout.name, np.ascontiguousarray(arrays[layout.name]))
                else:
                    writer.write(layout.name, iter_tensor_bytes(plain[layout.name]))
        os.rename(made, target)
    return writer.file_bytes
