"""Where normalisation statistics are found: processor files, the model file, or `stats=FILE|KEY`.

Every source is brought to one form, a table of flat keys "<set>.<feature>.<stat>":

    policy_preprocessor's state file        observation.state.mean
    the same, badly migrated (smolvla_base) so100.buffer.action.mean
    buffers in an old model.safetensors     normalize_inputs.so100-red_buffer_observation_state.mean
    a dataset's meta/stats.json             {"observation.state": {"mean": [...]}}

Nothing is guessed: a feature's statistics stand under its own name, or under the set that the
user names, or in several sets that all say the same. Anything else is refused with the list of
what there is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smolvla_edge.errors import ContractError
from smolvla_edge.paths import shown
from smolvla_edge.processors import Normalizer, Processors
from smolvla_edge.safetensors_file import SafetensorsFile, TensorEntry, as_float32, read_tensor
from smolvla_edge.statistics import (
    DEFAULT_EPS,
    FeatureStatistics,
    Mode,
    checked_statistics,
    identity,
    parse_mode,
)
from smolvla_edge.strict_json import read_json_object

_STAT = r"(?P<stat>mean|std|min|max|count|q\d\d)"
_FLAT_KEY = re.compile(rf"(?P<feature>.+)\.{_STAT}")
_LEGACY_KEY = re.compile(
    r"(?P<part>normalize_inputs|normalize_targets|unnormalize_outputs)\."
    rf"(?:(?P<set>.+)_)?buffer_(?P<feature>.+)\.{_STAT}"
)
_MAX_STATISTIC_BYTES = 1 << 20  # a weight that merely looks like a statistic is not read
_MAX_LISTED = 40


@dataclass(frozen=True)
class Wanted:
    """A feature whose statistics are looked for. `output` features are un-normalised."""

    feature: str
    kind: str  # STATE or ACTION, as norm_map names it
    dim: int
    output: bool


@dataclass(frozen=True)
class Table:
    """Flat keys of one source. A value is read only when a feature asks for it."""

    where: str
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    legacy: bool = False

    def listing(self) -> str:
        names = [f"{name} {list(shape)}" for name, shape in sorted(self.shapes.items())]
        if len(names) > _MAX_LISTED:
            names = [*names[:_MAX_LISTED], f"and {len(names) - _MAX_LISTED} more"]
        return f"{self.where} holds: {', '.join(names) or 'no statistics'}"


def find_statistics(
    wanted: tuple[Wanted, ...],
    *,
    processors: Processors | None,
    legacy_buffers: Mapping[str, TensorEntry],
    config_modes: Mapping[str, str],
    stats: str | os.PathLike[str] | None,
    allow_unnormalized: bool,
) -> dict[str, FeatureStatistics]:
    """Statistics of every wanted feature, by its name.

    `stats` is a file, the name of a set in the checkpoint's own statistics, or "FILE|SET".
    Raises ContractError; with `allow_unnormalized` an unusable feature becomes IDENTITY instead.
    """
    own = _own_tables(processors, legacy_buffers)
    file, key = _split(stats)
    key = key.rstrip(".")
    result = {}
    for item in wanted:
        step = None
        if processors is not None:
            step = processors.unnormalizer if item.output else processors.normalizer
        try:
            mode = _mode(item, processors is not None, step, config_modes)
            if file is None and mode is not Mode.IDENTITY:
                _check_present(step)
            tables = [_file_table(file)] if file is not None else own(item)
            result[item.feature] = _resolve(item, mode, tables, key, step, file is not None)
        except ContractError as cause:
            if not allow_unnormalized:
                raise
            result[item.feature] = identity(f"allow_unnormalized: {cause}", unnormalized=True)
    return result


def _check_present(step: Normalizer | None) -> None:
    if step is not None and step.missing_file is not None:
        raise ContractError(
            f"{step.where}: its statistics file {step.missing_file!r} is missing. Copy it from "
            "where the policy was trained, or supply statistics with --stats FILE"
        )


def _split(stats: str | os.PathLike[str] | None) -> tuple[Path | None, str]:
    """FILE, SET or FILE|SET -> (file, set). A name that looks like a file must be one."""
    if stats is None:
        return None, ""
    if not isinstance(stats, str) or Path(stats).is_file():
        return Path(stats), ""
    if not stats.strip():
        raise ContractError("stats: expected a file or the name of a set, got an empty string")
    head, bar, tail = stats.rpartition("|")
    file = Path(head if bar else stats)
    if bar or "/" in stats or file.suffix in (".json", ".safetensors"):
        if not file.is_file():
            raise ContractError(
                f"stats: there is no file {str(file)!r}; expected a safetensors file, a LeRobot "
                "stats.json, or the name of a set inside the checkpoint"
            )
        return file, tail if bar else ""
    return None, stats


def _own_tables(
    processors: Processors | None, legacy: Mapping[str, TensorEntry]
) -> Callable[[Wanted], list[Table]]:
    def tables(item: Wanted) -> list[Table]:
        found = []
        if processors is not None:
            step = processors.unnormalizer if item.output else processors.normalizer
            if step is not None:
                found.append(_entries_table(step.where, step.entries, legacy=False))
        if legacy:
            found.append(_entries_table("the model file", legacy, legacy=True))
        return found

    return tables


def _entries_table(where: str, entries: Mapping[str, TensorEntry], *, legacy: bool) -> Table:
    statistics = {
        name: entry
        for name, entry in entries.items()
        if entry.nbytes <= _MAX_STATISTIC_BYTES and _FLAT_KEY.fullmatch(name)
    }
    if statistics and not legacy:
        where = shown(next(iter(statistics.values())).path)

    def read(name: str) -> np.ndarray:
        entry = statistics[name]
        if entry.dtype not in ("F32", "F64", "F16", "BF16"):
            raise ContractError(
                f"{where}: {name}: expected floating-point statistics, got {entry.dtype}"
            )
        values = read_tensor(entry, ContractError)
        return values if entry.dtype == "F64" else as_float32(values, entry.dtype)

    shapes = {name: entry.shape for name, entry in statistics.items()}
    return Table(where, shapes, read, legacy)


def _file_table(path: Path) -> Table:
    """A safetensors file, or a LeRobot stats.json."""
    if path.suffix == ".json":
        flat: dict[str, Any] = {}
        _flatten("", read_json_object(path, ContractError), flat)
        values = {
            name: _json_array(value) for name, value in flat.items() if _FLAT_KEY.fullmatch(name)
        }
        arrays = {name: value for name, value in values.items() if value is not None}
        return Table(shown(path), {name: a.shape for name, a in arrays.items()}, arrays.__getitem__)
    entries = SafetensorsFile(path, ContractError).entries
    legacy = any(_LEGACY_KEY.fullmatch(name) for name in entries)
    return _entries_table(shown(path), entries, legacy=legacy)


def _flatten(prefix: str, value: dict[str, Any], into: dict[str, Any]) -> None:
    for name, item in value.items():
        if isinstance(item, dict):
            _flatten(f"{prefix}{name}.", item, into)
        elif f"{prefix}{name}" in into:
            raise ContractError(f"statistics: the key {prefix}{name} is spelled in two ways")
        else:
            into[f"{prefix}{name}"] = item


def _json_array(value: object) -> np.ndarray | None:
    """A list of numbers as float64, else None (image statistics are nested and not needed)."""
    if not isinstance(value, list) or not all(type(item) in (int, float) for item in value):
        return None
    try:
        return np.asarray(value, np.float64)
    except OverflowError:
        return np.full(len(value), np.inf)


def _mode(
    item: Wanted, has_processors: bool, step: Normalizer | None, config_modes: Mapping[str, str]
) -> Mode:
    """The processor's mode, which is what LeRobot runs; config.json's for older checkpoints."""
    if not has_processors:
        modes, where = config_modes, "config.json: normalization_mapping"
    elif step is not None:
        modes, where = {kind: mode.value for kind, mode in step.modes.items()}, step.where
    else:
        side = "un-normalises actions" if item.output else "normalises the state"
        raise ContractError(
            f"the checkpoint's processors have no step that {side}, so {item.feature!r} would "
            "pass unchanged: expected a normalizer_processor and an unnormalizer_processor. "
            "Pass --allow-unnormalized if that is how it was trained"
        )
    if item.kind not in modes:
        raise ContractError(
            f"{where}: no mode for {item.kind} ({item.feature!r}), it lists {sorted(modes)}. "
            "Expected a mode, IDENTITY to say that nothing is normalised"
        )
    return parse_mode(modes[item.kind], f"{where}: {item.kind}")


def _resolve(
    item: Wanted,
    mode: Mode,
    tables: list[Table],
    key: str,
    step: Normalizer | None,
    from_file: bool,
) -> FeatureStatistics:
    if mode is Mode.IDENTITY:
        return identity(step.where if step is not None else "config.json: normalization_mapping")
    if step is not None and not from_file and (skipped := step.skips(item.feature)):
        raise ContractError(
            f"{skipped}, so LeRobot passes it through without normalisation although its mode is "
            f"{mode.value}. Pass --stats FILE, or --allow-unnormalized if it was trained like that"
        )
    eps = step.eps if step is not None else DEFAULT_EPS
    for table in tables:
        sets = _matching_sets(table, item, mode)
        chosen = _chosen_set(table, item, sets, key)
        if chosen is None:
            continue
        names = sets[chosen]
        return checked_statistics(
            item.feature,
            item.dim,
            mode,
            {stat: table.read(name) for stat, name in names.items()},
            eps=eps,
            eps_in_range=table.legacy,
            source=f"{table.where}: {', '.join(names.values())}",
        )
    raise _nothing_found(item, mode, tables, key)


def _matching_sets(table: Table, item: Wanted, mode: Mode) -> dict[str, dict[str, str]]:
    """Complete sets of this feature in a table: set name -> {stat: key}. "" is the plain set."""
    sets: dict[str, dict[str, str]] = {}
    for name in table.shapes:
        found = _set_and_stat(table, name, item)
        if found is not None and found[1] in mode.needs:
            sets.setdefault(found[0], {})[found[1]] = name
    return {
        label: {stat: names[stat] for stat in mode.needs}
        for label, names in sets.items()
        if all(stat in names for stat in mode.needs)
    }


def _set_and_stat(table: Table, name: str, item: Wanted) -> tuple[str, str] | None:
    if table.legacy and (match := _LEGACY_KEY.fullmatch(name)):
        # unnormalize_outputs is what acts on the robot; normalize_targets only trained the model.
        part = "unnormalize_outputs" if item.output else "normalize_inputs"
        if match["part"] == part and match["feature"] == item.feature.replace(".", "_"):
            return match["set"] or "", match["stat"]
        return None
    match = _FLAT_KEY.fullmatch(name)
    if match is None:
        return None
    if match["feature"] == item.feature:
        return "", match["stat"]
    if match["feature"].endswith("." + item.feature):
        return match["feature"][: -len(item.feature) - 1], match["stat"]
    return None


def _chosen_set(
    table: Table, item: Wanted, sets: Mapping[str, Mapping[str, str]], key: str
) -> str | None:
    """The set to use: the one named, the plain one, or any of several old sets that all agree."""
    if key:
        return key if key in sets else None
    if "" in sets:
        return ""
    if not table.legacy or not sets:
        return None
    labels = sorted(sets)
    first = {stat: table.read(name) for stat, name in sets[labels[0]].items()}
    for label in labels[1:]:
        if not all(np.array_equal(first[s], table.read(n)) for s, n in sets[label].items()):
            raise ContractError(
                f"{table.where} holds {len(labels)} different statistics for {item.feature!r}, "
                f"under the sets {', '.join(labels)}; each fits another robot, so none is guessed. "
                f"Pass --stats SET, for example --stats {labels[0]}"
            )
    return labels[0]


def _nothing_found(item: Wanted, mode: Mode, tables: list[Table], key: str) -> ContractError:
    expected = ", ".join(f"{key + '.' if key else ''}{item.feature}.{s}" for s in mode.needs)
    held = "; ".join(table.listing() for table in tables) or (
        "the checkpoint holds no statistics, neither in processor files nor in the model file"
    )
    sets = sorted(
        {label for t in tables for label in _matching_sets(t, item, mode) if label and label != key}
    )
    choose = f"--stats SET to use one of its sets ({', '.join(sets)}), " if sets else ""
    under = f" under the set {key!r}" if key else ""
    return ContractError(
        f"no statistics for {item.feature!r}{under}: expected {expected} ({mode.value}, "
        f"{item.dim} values each). {held}. Pass {choose}--stats FILE with the dataset's "
        "meta/stats.json, or --allow-unnormalized to run this feature without normalisation"
    )
