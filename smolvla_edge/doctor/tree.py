"""Reading /proc, /sys and /etc, where every file may be absent, unreadable or odd.

All checks read through a Tree, so that a test can put a made-up machine under a folder.
"""

from __future__ import annotations

import os
from pathlib import Path

_MOST_BYTES = 1 << 20  # no file that is read here is near this; a limit against surprises


class Tree:
    """The file system below `root`; paths are absolute ("/proc/meminfo")."""

    def __init__(self, root: str | os.PathLike[str] = "/") -> None:
        self._root = Path(root)

    def path(self, path: str) -> Path:
        return self._root / path.lstrip("/")

    def text(self, path: str) -> str | None:
        """The file's text without surrounding blanks and NULs; None when it cannot be read."""
        try:
            with open(self.path(path), "rb") as file:
                data = file.read(_MOST_BYTES)
        except (OSError, ValueError):
            return None
        return data.decode("utf-8", "replace").strip("\0 \t\r\n")

    def integer(self, path: str) -> int | None:
        """The file's one whole number; None for anything else ("max", an empty file)."""
        text = self.text(path)
        try:
            return None if text is None else int(text)
        except ValueError:
            return None

    def exists(self, path: str) -> bool:
        try:
            return self.path(path).exists()
        except OSError:
            return False

    def glob(self, pattern: str) -> list[str]:
        """Existing paths of a pattern, sorted; an unreadable folder has none."""
        try:
            found = sorted(self._root.glob(pattern.lstrip("/")))
        except OSError:
            return []
        return ["/" + str(path.relative_to(self._root)) for path in found]
