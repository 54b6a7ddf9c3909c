"""What a policy is loaded from: a bundle, a LeRobot checkpoint or an ONNX export folder, brought to
one form."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolvla_edge.bundle import Bundle, is_bundle, read_bundle
from smolvla_edge.bundle_format import precision_map
from smolvla_edge.checkpoint import read_checkpoint
from smolvla_edge.config import ModelConfig
from smolvla_edge.contract import Contract
from smolvla_edge.errors import CheckpointError, ContractError, TokenizerError
from smolvla_edge.onnx_folder import EXPORTED, ExportFolder, is_export, read_export
from smolvla_edge.paths import shown
from smolvla_edge.presets import Preset, read_presets
from smolvla_edge.safetensors_file import TensorEntry
from smolvla_edge.tokenizer_search import missing_tokenizer


@dataclass(frozen=True)
class Source:
    """Everything a policy needs but an engine; tensors are described, not loaded."""

    model: ModelConfig
    contract: Contract
    tensors: Mapping[str, TensorEntry]
    tokenizer_file: Path | None
    no_tokenizer: TokenizerError  # raised when a task has to be encoded without one
    presets: Mapping[str, Preset]
    compute: str  # the arithmetic of bfloat16 weights (precision.py)
    provenance: Mapping[str, Any]
    bundle: Bundle | None = None
    export: ExportFolder | None = None  # then there are no tensors, and only backend "onnx" runs it

    def verify_tensors(self, only: Iterable[str] | None = None) -> None:
        """Compare a bundle's tensors (or those named) with their checksums. Raises BundleError."""
        if self.bundle is not None:
            self.bundle.verify_tensors(only=only)


def open_source(
    path: str | os.PathLike[str],
    *,
    rename: Mapping[str, str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    stats: str | os.PathLike[str] | None = None,
    allow_unnormalized: bool = False,
    revision: str | None = None,
    verify: bool = True,
    exports: bool = False,
) -> Source:
    """The bundle or checkpoint at `path`, with `exports` an export folder too; the arguments are
    those of `load`.

    With `verify` a bundle's tensors are compared with their checksums; without, that is left to
    `verify_tensors`, which must be called before they are used. Raises a SmolVLAEdgeError.
    """
    read = _from_bundle if is_bundle(path) else _from_checkpoint  # which refuses an export
    if exports and is_export(path):
        read = _from_export
    source = read(
        path,
        rename=rename,
        tokenizer=tokenizer,
        stats=stats,
        allow_unnormalized=allow_unnormalized,
        revision=revision,
    )
    if verify:
        source.verify_tensors()
    return source


def _from_bundle(
    path: str | os.PathLike[str],
    *,
    rename: Mapping[str, str] | None,
    tokenizer: str | os.PathLike[str] | None,
    stats: str | os.PathLike[str] | None,
    allow_unnormalized: bool,
    revision: str | None,
) -> Source:
    if revision is not None:
        raise CheckpointError(f"revision {revision!r} was given, but {path} is a local bundle")
    bundle = read_bundle(path)
    contract = _adjusted(bundle.contract, bundle.path, rename, stats, allow_unnormalized)
    return Source(
        model=bundle.model,
        contract=contract,
        tensors=bundle.tensors,
        tokenizer_file=bundle.tokenizer_file if tokenizer is None else Path(tokenizer),
        no_tokenizer=TokenizerError(
            f"{bundle.path} holds no tokenizer.json: pass tokenizer=FILE (--tokenizer FILE)"
        ),
        presets=read_presets(bundle.path, bundle.digest),
        compute=bundle.compute,
        provenance={
            "source": shown(bundle.path),
            "bundle": bundle.digest,
            "precision": {part: dict(counts) for part, counts in bundle.precision.items()},
        },
        bundle=bundle,
    )


def _from_export(
    path: str | os.PathLike[str],
    *,
    rename: Mapping[str, str] | None,
    tokenizer: str | os.PathLike[str] | None,
    stats: str | os.PathLike[str] | None,
    allow_unnormalized: bool,
    revision: str | None,
) -> Source:
    if revision is not None:
        raise CheckpointError(f"revision {revision!r} was given, but {path} is a local folder")
    folder = read_export(path)
    manifest = folder.manifest
    noted = manifest.provenance
    return Source(
        model=manifest.model,
        contract=_adjusted(manifest.contract, folder.path, rename, stats, allow_unnormalized),
        tensors={},
        tokenizer_file=folder.tokenizer_file if tokenizer is None else Path(tokenizer),
        no_tokenizer=TokenizerError(
            f"{folder.path} holds no tokenizer.json: pass tokenizer=FILE (--tokenizer FILE)"
        ),
        presets={EXPORTED: Preset(EXPORTED, manifest.plan)},
        compute="float32",
        provenance={
            "source": shown(folder.path),
            "bundle": noted["bundle"],
            "precision": {part: dict(counts) for part, counts in noted["precision"].items()},
        },
        export=folder,
    )


def _adjusted(
    contract: Contract,
    where: Path,
    rename: Mapping[str, str] | None,
    stats: str | os.PathLike[str] | None,
    allow_unnormalized: bool,
) -> Contract:
    """A stored contract under the caller's names and statistics. Raises ContractError."""
    if rename is not None:
        contract = contract.with_rename(rename)
    if stats is not None:
        contract = contract.with_stats(stats)
    if contract.unnormalized and not allow_unnormalized:
        raise ContractError(
            f"{where}: {', '.join(contract.unnormalized)} was converted without "
            "normalisation (--allow-unnormalized): convert again with --stats, or pass "
            "allow_unnormalized=True here too"
        )
    return contract


def _from_checkpoint(
    path: str | os.PathLike[str],
    *,
    rename: Mapping[str, str] | None,
    tokenizer: str | os.PathLike[str] | None,
    stats: str | os.PathLike[str] | None,
    allow_unnormalized: bool,
    revision: str | None,
) -> Source:
    checkpoint = read_checkpoint(
        path,
        rename=rename,
        tokenizer=tokenizer,
        stats=stats if stats is None or isinstance(stats, str) else Path(stats),
        allow_unnormalized=allow_unnormalized,
        revision=revision,
    )
    return Source(
        model=checkpoint.model,
        contract=checkpoint.contract,
        tensors=checkpoint.tensors,
        tokenizer_file=checkpoint.tokenizer_file,
        no_tokenizer=missing_tokenizer(checkpoint.path, checkpoint.policy.vlm_model_name),
        presets={},
        compute="float32",  # exact whatever it stores; bfloat16 is asked for by converting
        provenance={
            "source": shown(path),
            "bundle": None,
            "precision": precision_map(
                (name, entry.dtype) for name, entry in checkpoint.tensors.items()
            ),
        },
    )
