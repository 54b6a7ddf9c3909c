"""File names as text, and the user's cache."""

from __future__ import annotations

import os
from pathlib import Path


def shown(path: str | os.PathLike[str]) -> str:
    """`path` as text that every stream and JSON document can hold.

    A file name on Linux is bytes; those that are no UTF-8, which Python keeps as lone surrogates,
    are written as \\xff.
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def user_cache() -> Path:
    """This package's folder of the user's cache: $XDG_CACHE_HOME or ~/.cache, then smolvla-edge."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return home / "smolvla-edge"
