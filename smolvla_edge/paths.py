"""File names as text."""

from __future__ import annotations

import os


def shown(path: str | os.PathLike[str]) -> str:
    """`path` as text that every stream and JSON document can hold.

    A file name on Linux is bytes; those that are no UTF-8, which Python keeps as lone surrogates,
    are written as \\xff.
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")
