"""From a source to what computes it: the backend, with its options and its caches."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from smolvla_edge.backends import Backend, open_backend
from smolvla_edge.errors import BackendError
from smolvla_edge.onnx_folder import EXPORT_FOLDER, is_export
from smolvla_edge.packed_cache import PackedCacheOption, open_with_cache
from smolvla_edge.source import Source


def find_export(path: str | os.PathLike[str], backend: str) -> tuple[str | os.PathLike[str], str]:
    """Where to load from, and by which backend: a folder that is an export needs "onnx", and "onnx"
    finds the export in a bundle.

    Raises BackendError when "onnx" was asked for and nothing was exported.
    """
    if is_export(path):
        return path, "onnx" if backend == "auto" else backend
    if backend != "onnx":
        return path, backend
    inside = Path(path) / EXPORT_FOLDER
    if not is_export(inside):
        raise BackendError(
            f"backend='onnx': expected an export folder, {path} is none and has none in "
            f"{EXPORT_FOLDER}/. Make it: smolvla-edge export {path}"
        )
    return inside, backend


def check_onnx_options(backend: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those options of `load` that were given, for backend "onnx". BackendError for another."""
    options = {name: value for name, value in given.items() if value is not None}
    if options and backend != "onnx":
        raise BackendError(
            f"{', '.join(options)}: expected backend='onnx', got {backend!r}: no other has them"
        )
    return options


def open_engine(
    source: Source,
    backend: str,
    device: str,
    threads: int | None,
    packed_cache: PackedCacheOption,
    onnx_options: Mapping[str, Any],
) -> tuple[Backend, Source]:
    """The backend, and the source with what became of its packed cache."""

    def build(packed: Any = None) -> Any:
        return open_backend(
            source.model,
            source.tensors,
            source.contract,
            backend=backend,
            device=device,
            threads=threads,
            compute=source.compute,
            packed=packed,
            export=source.export,
            onnx_options=onnx_options,
        )

    if packed_cache is False:
        return build(), source
    engine, status = open_with_cache(source, build, packed_cache, threads)
    return engine, replace(source, provenance={**source.provenance, "packed_cache": status})
