"""The pre- and postprocessor files of a LeRobot checkpoint: what happens around the model.

    policy_preprocessor.json    rename -> batch -> newline -> tokenise -> device -> normalise
    policy_postprocessor.json   un-normalise -> device

Each step names itself and keeps its statistics in a safetensors file beside it. A step unknown
here is refused: skipping it would change what the model sees or what the robot gets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smolvla_edge.errors import ContractError
from smolvla_edge.paths import shown
from smolvla_edge.safetensors_file import SafetensorsFile, TensorEntry
from smolvla_edge.statistics import DEFAULT_EPS, Mode, parse_mode
from smolvla_edge.strict_json import read_json_object

PREPROCESSOR = "policy_preprocessor.json"
POSTPROCESSOR = "policy_postprocessor.json"

_RENAME = "rename_observations_processor"
_NEWLINE = "smolvla_new_line_processor"
_TOKENIZER = "tokenizer_processor"
_NORMALIZER = "normalizer_processor"
_UNNORMALIZER = "unnormalizer_processor"
# Batching and moving to a device are LeRobot's plumbing: nothing of them remains here.
_PLUMBING = frozenset({"to_batch_processor", "device_processor"})
_PRE_STEPS = frozenset({_RENAME, _NEWLINE, _TOKENIZER, _NORMALIZER}) | _PLUMBING
_STATE_FILE = re.compile(r"[\w.-]+\.safetensors")
_POST_STEPS = frozenset({_UNNORMALIZER}) | _PLUMBING


@dataclass(frozen=True)
class Normalizer:
    """One (un)normalising step: its modes by feature type, and its statistics by flat key."""

    where: str
    modes: Mapping[str, Mode]
    features: frozenset[str]
    only_keys: frozenset[str] | None
    eps: float
    entries: Mapping[str, TensorEntry]  # "observation.state.mean" -> where it lies
    missing_file: str | None = None  # the statistics file it names, when that is not there

    def skips(self, feature: str) -> str | None:
        """Why LeRobot's step would pass this feature through unchanged, or None."""
        if feature not in self.features:
            return f"{self.where} does not list the feature {feature!r}"
        if self.only_keys is not None and feature not in self.only_keys:
            return f"{self.where}: normalize_observation_keys leaves {feature!r} out"
        return None


@dataclass(frozen=True)
class Processors:
    """What the two files say, reduced to what a runtime needs."""

    rename_map: Mapping[str, str] = field(default_factory=dict)
    newline: bool = True
    tokenizer_max_length: int | None = None
    normalizer: Normalizer | None = None
    unnormalizer: Normalizer | None = None


def read_processors(folder: Path) -> Processors | None:
    """The processors in `folder`, or None for a checkpoint older than these files.

    Raises ContractError for a half pair, an unknown or repeated step, or malformed content.
    """
    present = [name for name in (PREPROCESSOR, POSTPROCESSOR) if (folder / name).exists()]
    if not present:
        return None
    if len(present) == 1:
        missing = POSTPROCESSOR if present == [PREPROCESSOR] else PREPROCESSOR
        raise ContractError(
            f"{folder}: expected both {PREPROCESSOR} and {POSTPROCESSOR}, found {present[0]} "
            f"alone. Copy {missing} from where the policy was trained"
        )
    pre = _steps(folder / PREPROCESSOR, _PRE_STEPS)
    post = _steps(folder / POSTPROCESSOR, _POST_STEPS)
    return Processors(
        rename_map=_rename_map(folder, pre),
        newline=_NEWLINE in pre,
        tokenizer_max_length=_max_length(folder, pre),
        normalizer=_normalizer(folder, PREPROCESSOR, pre.get(_NORMALIZER)),
        unnormalizer=_normalizer(folder, POSTPROCESSOR, post.get(_UNNORMALIZER)),
    )


def _steps(path: Path, known: frozenset[str]) -> dict[str, dict[str, Any]]:
    document = read_json_object(path, ContractError)
    steps = document.get("steps")
    if not isinstance(steps, list):
        raise ContractError(f"{path}: expected a list under 'steps', got {type(steps).__name__}")
    result: dict[str, dict[str, Any]] = {}
    for index, step in enumerate(steps):
        name = step.get("registry_name") if isinstance(step, dict) else None
        if not isinstance(name, str) or name not in known:
            shown = (
                name if name is not None else step.get("class") if isinstance(step, dict) else step
            )
            raise ContractError(
                f"{path}: step {index} is {shown!r:.80}, expected one of "
                f"{', '.join(sorted(known))}. "
                "A step that this runtime does not know changes what the policy sees or does, so "
                "it is not skipped: export the policy without it"
            )
        if name in result and name not in _PLUMBING:
            raise ContractError(f"{path}: step {name!r} appears twice, expected once")
        config = step.get("config", {})
        if not isinstance(config, dict):
            raise ContractError(f"{path}: config of step {name!r} is not an object")
        result[name] = step
    return result


def _rename_map(folder: Path, steps: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    value = steps.get(_RENAME, {}).get("config", {}).get("rename_map", {})
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value.values()):
        raise ContractError(
            f"{folder / PREPROCESSOR}: expected rename_map as an object of strings, got "
            f"{value!r:.80}"
        )
    return dict(value)


def _max_length(folder: Path, steps: Mapping[str, dict[str, Any]]) -> int | None:
    if _TOKENIZER not in steps:
        return None
    value = steps[_TOKENIZER].get("config", {}).get("max_length")
    if value is not None and (type(value) is not int or value < 1):
        raise ContractError(
            f"{folder / PREPROCESSOR}: expected the tokenizer's max_length as an integer >= 1, "
            f"got {value!r:.80}"
        )
    return value


def _normalizer(folder: Path, file: str, step: dict[str, Any] | None) -> Normalizer | None:
    if step is None:
        return None
    where = shown(folder / file)
    config = step.get("config", {})
    norm_map, features = config.get("norm_map", {}), config.get("features", {})
    if not isinstance(norm_map, dict) or not isinstance(features, dict):
        raise ContractError(f"{where}: expected norm_map and features as objects")
    only = config.get("normalize_observation_keys")
    if only is not None and not (isinstance(only, list) and all(isinstance(k, str) for k in only)):
        raise ContractError(f"{where}: expected normalize_observation_keys as a list of names")
    eps = config.get("eps", DEFAULT_EPS)
    if type(eps) is not float or not 0 < eps <= 1e-3:
        raise ContractError(f"{where}: expected eps as a number in (0, 1e-3], got {eps!r:.80}")
    state_file = _state_file(where, step.get("state_file"))
    present = state_file is not None and (folder / state_file).is_file()
    return Normalizer(
        where=where,
        modes={
            kind: parse_mode(mode, f"{where}: norm_map.{kind}") for kind, mode in norm_map.items()
        },
        features=frozenset(features),
        only_keys=None if only is None else frozenset(only),
        eps=eps,
        entries=(
            dict(SafetensorsFile(folder / state_file, ContractError).entries)
            if state_file is not None and present
            else {}
        ),
        missing_file=None if present else state_file,
    )


def _state_file(where: str, name: object) -> str | None:
    """The statistics file of a step. Its name comes from the checkpoint: it must stay inside.

    Whether it is there is asked only when its statistics are needed: --stats may replace them.
    """
    if name is None:  # LeRobot writes no file for a step without statistics
        return None
    if not isinstance(name, str) or not _STATE_FILE.fullmatch(name):
        raise ContractError(f"{where}: expected state_file as a plain file name, got {name!r:.80}")
    return name
