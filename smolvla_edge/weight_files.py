"""The model's tensor files in a checkpoint folder: model.safetensors, or shards with an index."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from smolvla_edge.errors import CheckpointError
from smolvla_edge.safetensors_file import SafetensorsFile
from smolvla_edge.strict_json import read_json_object

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_MAX_SHARDS = 1024
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


def open_weights(folder: Path) -> list[SafetensorsFile]:
    """The checked headers of all tensor files of the model. Raises CheckpointError.

    A single file wins over an index, as in LeRobot, which never reads one.
    """
    if (folder / SINGLE_FILE).is_file():
        return [SafetensorsFile(folder / SINGLE_FILE)]
    if (folder / INDEX_FILE).is_file():
        return _open_shards(folder)
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in _PICKLE_SUFFIXES)
    raise CheckpointError(
        f"{folder}: expected {SINGLE_FILE} or {INDEX_FILE}, found neither"
        + (
            f" but {', '.join(pickles)}: pickled weights can run code and are never read; save "
            "the policy with safetensors"
            if pickles
            else ""
        )
    )


def _open_shards(folder: Path) -> list[SafetensorsFile]:
    path = folder / INDEX_FILE
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise CheckpointError(f"{path}: expected weight_map, an object of tensor name to file name")
    names: set[str] = set()
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not _is_plain_file_name(name):
            raise CheckpointError(
                f"{path}: {tensor:.200}: expected the name of a .safetensors file in this folder, "
                f"got {name!r:.200}"
            )
        names.add(name)
    if len(names) > _MAX_SHARDS:
        raise CheckpointError(f"{path}: {len(names)} shards, more than {_MAX_SHARDS}")
    shards = [SafetensorsFile(folder / name) for name in sorted(names)]
    _check_index(path, weight_map, shards)
    return shards


def _is_plain_file_name(name: str) -> bool:
    # Links inside the Hub's cache are fine; a name that walks out of the folder is not.
    return (
        name.endswith(".safetensors")
        and name.isprintable()
        and not name.startswith(".")
        and not any(mark in name for mark in ("/", "\\", ":"))
    )


def _check_index(path: Path, weight_map: Mapping[str, str], shards: list[SafetensorsFile]) -> None:
    stored = {(name, shard.path.name) for shard in shards for name in shard.entries}
    listed = set(weight_map.items())
    for wrong, what in (
        (listed - stored, "lists tensors that their shard does not hold"),
        (stored - listed, "does not list tensors that a shard holds"),
    ):
        if wrong:
            some = ", ".join(f"{name} in {file}" for name, file in sorted(wrong)[:20])
            raise CheckpointError(f"{path} {what} ({len(wrong)}): {some}")
