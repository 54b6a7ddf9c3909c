"""A LeRobot SmolVLA checkpoint, read without loading it: every tensor accounted for, or an error.

config.json            -> PolicyConfig   what LeRobot saved                (policy_config.py)
vlm_config.json        -> VlmConfig      or the table of known VLMs        (vlm_config.py)
  both                 -> ModelConfig    every number the engine needs     (config.py)
model.safetensors      -> tensors        names, dtypes, shapes, offsets    (weight_files.py)
processors, buffers    -> Contract       cameras, features, statistics     (contract.py)
tokenizer.json         -> tokenizer_file                                   (tokenizer_search.py)
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolvla_edge import hub
from smolvla_edge.config import (
    ModelConfig,
    PolicyConfig,
    build_model_config,
    find_vlm_config,
    read_policy_config,
)
from smolvla_edge.contract import Contract, build_contract
from smolvla_edge.errors import CheckpointError
from smolvla_edge.four_bit import is_state
from smolvla_edge.names import (
    WEIGHT_DTYPES,
    canonical_name,
    expected_tensors,
    is_statistics_name,
    lerobot_name,
    strip_compiled,
    text_layer_count,
)
from smolvla_edge.onnx_folder import is_export
from smolvla_edge.paths import shown
from smolvla_edge.safetensors_file import TensorEntry
from smolvla_edge.tokenizer_search import find_tokenizer
from smolvla_edge.weight_files import open_weights

_CONFIG_FILE = "config.json"
_LISTED_NAMES = 20


@dataclass(frozen=True)
class Tensors:
    """The tensors of a checkpoint by what they are for.

    `live` and `dead` are by canonical name; `statistics` (normalisation buffers of the older
    layout) by LeRobot's name without `_orig_mod`.
    """

    live: dict[str, TensorEntry]
    dead: dict[str, TensorEntry]
    statistics: dict[str, TensorEntry]


@dataclass(frozen=True)
class Checkpoint:
    """What `read_checkpoint` found; tensors are described, not loaded."""

    path: Path
    policy: PolicyConfig
    model: ModelConfig
    tensors: dict[str, TensorEntry]  # live ones, canonical names
    dead: dict[str, TensorEntry]  # present in the file, without influence on any action
    contract: Contract
    tokenizer_file: Path | None
    provenance: dict[str, Any]

    @property
    def dtype_counts(self) -> dict[str, int]:
        """How many live tensors have each dtype."""
        return dict(Counter(entry.dtype for entry in self.tensors.values()))


def read_checkpoint(
    path: str | os.PathLike[str],
    *,
    rename: Mapping[str, str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    stats: str | Path | None = None,
    allow_unnormalized: bool = False,
    revision: str | None = None,
) -> Checkpoint:
    """Reads a LeRobot folder, or a Hub id "owner/name" (with `revision`; needs the extra `hub`).

    `rename` maps a camera or feature name of the robot to the checkpoint's; `stats` and
    `allow_unnormalized` are the contract's (see contract.py); `tokenizer` is a tokenizer.json.

    Raises CheckpointError (files, configuration, tensors), ContractError (features, statistics),
    TokenizerError (an explicit tokenizer that is not there). A checkpoint without tokenizer has
    `tokenizer_file` None: everything but turning a task into tokens works.
    """
    folder, origin = locate_checkpoint(path, revision)
    _check_folder(folder)
    policy = read_policy_config(folder / _CONFIG_FILE)
    vlm, vlm_source = find_vlm_config(folder, policy.vlm_model_name)
    model = build_model_config(policy, vlm)
    files = open_weights(folder)
    if any(is_state(name) for file in files for name in file.entries):
        raise CheckpointError(
            f"{folder} holds weights in bitsandbytes' 4-bit format: convert it first, "
            "smolvla-edge convert decodes them exactly"
        )
    tensors = account_tensors((entry for file in files for entry in file.entries.values()), model)
    contract = build_contract(
        policy,
        model,
        folder,
        tensors.statistics,
        rename=rename,
        stats=stats,
        allow_unnormalized=allow_unnormalized,
    )
    return Checkpoint(
        path=folder,
        policy=policy,
        model=model,
        tensors=tensors.live,
        dead=tensors.dead,
        contract=contract,
        tokenizer_file=find_tokenizer(folder, policy.vlm_model_name, tokenizer),
        provenance={
            **origin,
            "vlm_config": vlm_source,
            "weights": [{"file": file.path.name, "bytes": file.file_bytes} for file in files],
        },
    )


def account_tensors(entries: Iterable[TensorEntry], model: ModelConfig) -> Tensors:
    """Sorts tensors into live, dead and statistics.

    Raises CheckpointError listing names for: an adapter's tensors, unknown tensors, two tensors
    of one name, missing live tensors, wrong shapes (with both), live tensors that are no floats.
    """
    weights, statistics, unknown = _by_name(entries)
    specs = expected_tensors(model, text_layer_count(weights))
    unknown += [entry.name for name, entry in weights.items() if name not in specs]
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} tensors of the checkpoint belong to nothing in a SmolVLA of "
            f"{model.text_layers} VLM and {model.expert_layers} expert layers: "
            f"{_listed(unknown)}. Check num_vlm_layers and num_expert_layers in config.json"
        )
    needed = [name for name, spec in specs.items() if not spec.dead]
    missing = [lerobot_name(name) for name in needed if name not in weights]
    if missing:
        raise CheckpointError(
            f"{len(missing)} tensors are missing from the checkpoint: {_listed(missing)}. The "
            f"configuration asks for {model.text_layers} VLM layers (the file holds "
            f"{text_layer_count(weights)}), {model.vision_layers} vision layers and "
            f"{model.expert_layers} expert layers; LeRobot would run with random values instead"
        )
    misshapen = [
        f"{entry.name}: expected {list(specs[name].shape)}, got {list(entry.shape)}"
        for name, entry in weights.items()
        if entry.shape != specs[name].shape
    ]
    if misshapen:
        raise CheckpointError(
            f"{len(misshapen)} tensors have another shape than config.json and the VLM's "
            f"configuration ask for: {_listed(misshapen, '; ')}"
        )
    live = {name: weights.pop(name) for name in needed}
    no_floats = [f"{e.name} ({e.dtype})" for e in live.values() if e.dtype not in WEIGHT_DTYPES]
    if no_floats:
        raise CheckpointError(
            f"expected weights of {', '.join(WEIGHT_DTYPES)}, got {_listed(no_floats)}"
        )
    return Tensors(live, weights, statistics)


_MERGE = (
    "Merge the adapter into its base first (peft's merge_and_unload, then save_pretrained) and "
    "load the merged policy"
)


def locate_checkpoint(
    path: str | os.PathLike[str], revision: str | None
) -> tuple[Path, dict[str, Any]]:
    """The local folder of a checkpoint and where it came from, for the provenance."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise CheckpointError(
                f"revision {revision!r} was given, but {folder} is a local folder: revisions are "
                "of the Hub"
            )
        return folder, {"source": shown(path)}
    if not isinstance(path, str) or folder.exists() or not hub.is_hub_id(path):
        raise CheckpointError(
            f"expected a folder saved by LeRobot or a Hub id like owner/name, got {str(path)!r}, "
            f"which is {'not a folder' if folder.exists() else 'not there'}"
        )
    folder = hub.download(path, revision)
    return folder, {"source": path, "revision": revision or "main", "commit": folder.name}


def _check_folder(folder: Path) -> None:
    if is_export(folder):
        raise CheckpointError(
            f"{folder} is an ONNX export folder, whose weights are in graphs: expected the bundle "
            "or checkpoint that it was exported from"
        )
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"{folder} holds adapter_config.json: a PEFT adapter, not a whole policy. {_MERGE}"
        )
    if not (folder / _CONFIG_FILE).is_file():
        # LeRobot's training output keeps the policy one to three folders further down.
        below = (f"{up}pretrained_model" for up in ("", "*/", "checkpoints/*/"))
        inner = [found for pattern in below for found in sorted(folder.glob(pattern))]
        raise CheckpointError(
            f"{folder}: expected a policy folder saved by LeRobot, with {_CONFIG_FILE}"
            + (f"; did you mean {inner[-1]}?" if inner else "; found none there")
        )


def _by_name(
    entries: Iterable[TensorEntry],
) -> tuple[dict[str, TensorEntry], dict[str, TensorEntry], list[str]]:
    """Weights by canonical name, statistics by plain name, names that mean nothing here."""
    weights: dict[str, TensorEntry] = {}
    statistics: dict[str, TensorEntry] = {}
    unknown: list[str] = []
    for entry in entries:
        if "lora_" in entry.name or ".base_layer." in entry.name:
            raise CheckpointError(f"{entry.path}: {entry.name} belongs to a PEFT adapter. {_MERGE}")
        plain = strip_compiled(entry.name)
        name = canonical_name(plain)
        if is_statistics_name(plain):
            _add(statistics, plain, entry)
        elif name is None:
            unknown.append(entry.name)
        else:
            _add(weights, name, entry)
    return weights, statistics, unknown


def _add(into: dict[str, TensorEntry], name: str, entry: TensorEntry) -> None:
    if name in into:
        raise CheckpointError(
            f"{entry.name} in {entry.path.name} and {into[name].name} in {into[name].path.name} "
            "are the same tensor of the model; expected each once"
        )
    into[name] = entry


def _listed(names: list[str], separator: str = ", ") -> str:
    rest = len(names) - _LISTED_NAMES
    some = separator.join(sorted(names)[:_LISTED_NAMES])
    return f"{some} and {rest} more" if rest > 0 else some
