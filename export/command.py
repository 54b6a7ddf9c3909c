"""What `smolvla-edge export` and `optimum-cli export smolvla-edge` have in common."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from smolvla_edge.bundle import is_bundle
from smolvla_edge.errors import ExportError
from smolvla_edge.export import tensorrt
from smolvla_edge.export.exporter import Options, Verify, export_onnx
from smolvla_edge.onnx_folder import EXPORT_FOLDER, Manifest
from smolvla_edge.presets import EXACT, resolve_plan
from smolvla_edge.source import Source, open_source

Progress = Callable[[str, int, int], None]  # what is being done, how far, of how much


def run_export(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    options: Options | None = None,
    *,
    plan: str = EXACT,
    verify: bool = True,
    data: str = "synthetic",
    observations: int = 4,
    seed: int = 0,
    threads: int | None = None,
    opening: Mapping[str, Any] | None = None,
    progress: Progress = lambda doing, done, total: None,
    command: str | None = None,
    force: bool = False,
) -> tuple[Path, Manifest]:
    """Export the bundle or checkpoint `path` -> the folder and its manifest.

    out: of a bundle BUNDLE/onnx when None.  plan: words, a preset or a file.  opening: arguments of
    `open_source`.  verify: as the target asks, with `observations` of `data`, and nothing is kept
    of what fails. Raises a SmolVLAEdgeError.
    """
    options = options or Options()
    folder = default_folder(path) if out is None else Path(out)
    if not force and os.path.lexists(folder):  # said before the work, not after it
        raise ExportError(f"{folder} exists: choose another name, or pass --force to replace it")
    progress(f"reading {path}", 0, 1)
    source = open_source(path, **(opening or {}))
    checked = None
    if verify:
        checked = _verifier(source, options.target, data, observations, seed, threads, progress)
    made = export_onnx(
        source,
        folder,
        resolve_plan(plan, source.model.num_steps, source.presets),
        options,
        verify=checked,
        progress=lambda doing: progress(doing, 0, 1),
        command=command,
        force=force,
    )
    return folder, made


def default_folder(path: str | os.PathLike[str]) -> Path:
    """Raises ExportError for a checkpoint, whose folder is somebody else's."""
    if not is_bundle(path):
        raise ExportError(f"OUT is missing: {path} is no bundle that could hold the export")
    return Path(path) / EXPORT_FOLDER


def _verifier(
    source: Source,
    target: str,
    data: str,
    observations: int,
    seed: int,
    threads: int | None,
    progress: Progress,
) -> Verify:
    if target == tensorrt.NAME:
        if data != "synthetic":
            raise ExportError(
                f"--data {data}: expected synthetic observations for target {tensorrt.NAME}, whose "
                "graphs start behind the letterbox; verify an export for onnxruntime on recordings"
            )
        from smolvla_edge.export.tensorrt_check import check_tensorrt

        return partial(
            check_tensorrt, source=source, observations=observations, seed=seed, threads=threads
        )
    from smolvla_edge.export.verify import Settings, verify_folder

    settings = Settings(data, observations, seed, threads)
    return partial(verify_folder, source=source, settings=settings, progress=progress)
