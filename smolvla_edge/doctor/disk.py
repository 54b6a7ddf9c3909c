"""Room for the packed weights that are kept between loads."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from smolvla_edge.doctor.finding import PASS, WARN, Finding, gib
from smolvla_edge.paths import user_cache

_SPARE = 256 << 20  # a disk that is full to the last byte breaks other programs


@dataclass(frozen=True)
class DiskFacts:
    """The folder, what is free on its disk in bytes (None: not readable), and may it be written."""

    folder: Path
    free: int | None
    writable: bool


def cache_folder() -> Path:
    """Where packed weights are kept when nobody says where."""
    return user_cache() / "packed"


def read_disk(folder: Path) -> DiskFacts:
    """Of the folder, or of the nearest one above it that exists."""
    there = next((p for p in (folder, *folder.absolute().parents) if p.is_dir()), Path("/"))
    try:
        free: int | None = shutil.disk_usage(there).free
    except OSError:
        free = None
    return DiskFacts(folder, free, os.access(there, os.W_OK | os.X_OK))


def check_disk(f: DiskFacts, needed: int) -> Finding:
    facts = {"folder": str(f.folder), "free": f.free, "needed": needed, "writable": f.writable}
    choose = "or choose another place: XDG_CACHE_HOME=/path/with/room"
    if not f.writable:
        return Finding(
            "machine",
            "disk",
            WARN,
            f"{f.folder} cannot be written to: no packed weights can be kept there",
            f"give this user rights to it, {choose}",
            facts,
        )
    if f.free is None:
        return Finding("machine", "disk", PASS, f"{f.folder}: free space not readable", facts=facts)
    message = (
        f"{gib(f.free)} free in {f.folder}; a packed cache (--packed-cache) takes {gib(needed)}"
    )
    if f.free < needed + _SPARE:
        return Finding("machine", "disk", WARN, message, f"free some space, {choose}", facts)
    return Finding("machine", "disk", PASS, message, facts=facts)
