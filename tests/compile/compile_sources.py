"""The CUDA sources, as csrc/cuda/sources.cmake lists them for both compilers."""

from __future__ import annotations

import re
from pathlib import Path

from compile_tools import TARGETS, includes

ROOT = Path(__file__).parents[2]


def sources() -> list[Path]:
    listing = ROOT / "csrc" / "cuda" / "sources.cmake"
    if not listing.exists():
        return []  # tests of an installed wheel
    text = re.sub(r"#.*", "", listing.read_text())
    return [ROOT / name for name in re.findall(r"\S+\.cu\b", text)]


_KERNEL = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(")


def kernels_of(source: Path) -> set[str]:
    """The names of the __global__ functions that stand in a source and in what it includes."""
    texts = (path.read_text() for path in includes(source, ROOT / "csrc"))
    found = set()
    for text in texts:
        code = re.sub(r"//[^\n]*", "", text)
        names = _KERNEL.findall(code)
        assert len(names) == code.count("__global__"), f"{source.name}: an unusual declaration"
        found.update(names)
    return found


def targets_of(source: Path) -> tuple[int, ...]:
    """Host code is the same for all targets, and compiling it for each took a third of the time."""
    return TARGETS if kernels_of(source) else TARGETS[:1]
