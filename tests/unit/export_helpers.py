"""Exports of a tiny policy, made once a session, and ways to break a copy of one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from smolvla_edge.compress.quantize import quantize
from smolvla_edge.compress.recipe import RECIPES
from smolvla_edge.onnx_folder import describe_files, read_export, write_manifest
from smolvla_edge.source import open_source
from smolvla_edge.synthetic import make_checkpoint

CAMERAS = ("observation.images.top", "observation.images.wrist")
SOURCES = {"float32": "checkpoint", "codes": "small", "float16": "checkpoint"}


class Exports:
    """name of SOURCES -> its export folder, made on first use. Read only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        make_checkpoint(
            folder / "checkpoint", "tiny", cameras=CAMERAS, overrides={"empty_cameras": 1}
        )
        quantize(open_source(folder / "checkpoint"), folder / "small", RECIPES["small"])

    def source(self, name: str) -> Path:
        return self._folder / SOURCES[name]

    def __call__(self, name: str) -> Path:
        from smolvla_edge.export.exporter import Options, export_onnx

        path = self._folder / name
        if not path.exists():
            precision = "as-stored" if name == "codes" else name
            export_onnx(open_source(self.source(name)), path, options=Options(precision))
        return path


def broken(folder: Path, target: Path, change: Callable[[Path], None]) -> Path:
    """A copy of an export, changed; its manifest says what it holds then."""
    shutil.copytree(folder, target)
    change(target)
    renew(target)
    return target


def renew(folder: Path) -> None:
    """Make export.json say what the files are now."""
    data = json.loads((folder / "export.json").read_text())
    for name, record in describe_files(folder).items():
        data["files"][name] = {"bytes": record.nbytes, "sha256": record.sha256}
    (folder / "export.json").write_text(json.dumps(data))
    manifest = read_export(folder).manifest
    write_manifest(folder, replace(manifest, files=describe_files(folder)))


def place_of(folder: Path, graph: str, name: str) -> tuple[Path, int, int]:
    """File, offset and length of a weight, by its name in a graph."""
    import onnx

    from smolvla_edge.export.audit import tensors_of

    model = onnx.load(folder / f"{graph}.onnx", load_external_data=False)
    tensor = next(item for item in tensors_of(graph, model) if item.name == name)
    return folder / str(tensor.file), tensor.offset, tensor.nbytes


def change_bytes(folder: Path, graph: str, name: str, change: Callable[[np.ndarray], None]) -> None:
    """`change` is given the bytes of a weight, and changes them."""
    path, offset, length = place_of(folder, graph, name)
    data = np.memmap(path, np.uint8, "r+")
    change(data[offset : offset + length])
    data.flush()
