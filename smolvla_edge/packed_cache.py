"""The packed cache: a bundle's weights as they lie in memory once packed, for the next load to map.

Packing the 450 M parameters of a bundle for this machine's kernels takes about a second; mapping
what came out of it a tenth of that. The file is of one bundle (its digest), one memory layout and
one version of this package; it is checked completely before it is used, made again when it is of
another one or damaged, and never needed: where it cannot be written the policy loads all the same.
It doubles what a bundle takes on the disk, so it is made only when it is asked for.

The embedding table stays in the bundle, mapped, and is the one weight that a load from the cache
still compares with its checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolvla_edge.codes import SCALE
from smolvla_edge.errors import BackendError, CheckpointError
from smolvla_edge.paths import shown, user_cache
from smolvla_edge.version import __version__

if TYPE_CHECKING:
    from smolvla_edge.backends.native import NativeBackend
    from smolvla_edge.source import Source

PackedCacheOption = bool | str | os.PathLike[str]

_NOT_PACKED = ("text.embed.weight", "text.embed.weight" + SCALE)


class PackedCacheWarning(UserWarning):
    """A packed cache was damaged, or could not be written; the policy is right all the same."""


@dataclass(frozen=True)
class _Key:
    """What a cache file must be of; the order is that of `_core.open_packed`."""

    layout: str
    compute: str
    bundle: str
    config: str


def check_option(packed_cache: object, backend: str) -> None:
    """Raises BackendError for what is no option, or a backend that has no packed cache.

    (A GPU has none either: backends.choose refuses it there.)"""
    if not isinstance(packed_cache, (bool, str, os.PathLike)):
        raise BackendError(f"packed_cache: expected False, True or a path, got {packed_cache!r}")
    if packed_cache is not False and backend != "native":
        raise BackendError(
            f"packed_cache: expected the native backend, got {backend}: no other packs weights"
        )


def open_with_cache(
    source: Source,
    build: Callable[[Any], NativeBackend],
    packed_cache: PackedCacheOption,
    threads: int | None,
) -> tuple[NativeBackend, str]:
    """The engine, and `hit`, `written`, `stale`, `damaged` or `unwritable`.

    `build(image)` makes the engine, from no image when given None. All but `hit` packed the weights
    anew; `stale` and `damaged` say what was found before and has been replaced.

    Raises CheckpointError when the source is no bundle, BundleError when its tensors are damaged.
    Warns (PackedCacheWarning) when the cache was damaged or could not be written.
    """
    if source.bundle is None:
        raise CheckpointError(
            "packed_cache: expected a bundle, got a checkpoint, which has no digest to tell "
            "whether a cache is of it. Convert it first: smolvla-edge convert CHECKPOINT BUNDLE"
        )
    from smolvla_edge.backends.native import load_core

    core = load_core()
    compute = source.bundle.compute
    key = _Key(core.packed_layout("", compute), compute, source.bundle.digest, _config_hash(source))
    path = _path(packed_cache, key)
    status, why, image = core.open_packed(
        os.fsencode(path),
        *(key.layout, key.compute, key.bundle, key.config),
        threads if type(threads) is int and threads > 0 else 0,  # `build` refuses other words
    )
    if image is not None:
        source.verify_tensors(name for name in _NOT_PACKED if name in source.tensors)
        try:
            return build(image), "hit"
        except CheckpointError as cause:  # whole, but of another sequence of weights
            status, why = "damaged", str(cause)
    if status == "damaged":
        _warn(f"the packed cache {shown(path)} is not used: {why}. It is made again")
    source.verify_tensors()
    engine = build(None)
    try:
        if packed_cache is True:
            path.parent.mkdir(parents=True, exist_ok=True)
        engine.write_packed(path, key.bundle, key.config)
    except (BackendError, OSError) as cause:
        _warn(f"the packed cache is not kept: {cause}. The next load will take as long as this one")
        return engine, "unwritable"
    return engine, "written" if status == "absent" else status


def _path(packed_cache: PackedCacheOption, key: _Key) -> Path:
    """True: in the user's cache. A folder: in it. Anything else: that file."""
    name = f"{key.bundle}-{key.layout}.bin"
    if packed_cache is True:
        return user_cache() / "packed" / name
    path = Path(packed_cache).expanduser()  # type: ignore[arg-type]
    return path / name if path.is_dir() else path


def _config_hash(source: Source) -> str:
    """What packed weights depend on beside the bundle: the sizes as read, and the program."""
    text = json.dumps([__version__, source.model.to_dict()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _warn(message: str) -> None:
    warnings.warn(message, PackedCacheWarning, stacklevel=4)  # of the caller of load()
