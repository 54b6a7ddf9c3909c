"""What the arithmetic units reach when nothing but registers is touched, measured in the run."""

from __future__ import annotations

from typing import Any

BURST_MS = 150
BURSTS = 4  # the best of several: a ceiling is what the machine can do undisturbed
# kind of `_core.peak` -> what its loop does
LOOPS = {
    "float32": "fused multiply-adds of float32",
    "bfloat16": "vdpbf16ps: pairs of bfloat16 products added to float32",
    "int8": "vpdpbusd: fours of 8-bit products added to int32",
}


def peak(kind: str, threads: int, isa: str = "", milliseconds: float = BURST_MS) -> float | None:
    """GFLOP/s (multiply and add are two) of one burst on `threads` cores.

    None when this CPU, or the forced `isa`, has no such instructions.
    """
    from smolvla_edge import _core
    from smolvla_edge.errors import BackendError

    if kind not in LOOPS:
        raise ValueError(f"kind: expected one of {', '.join(LOOPS)}, got {kind!r}")
    try:
        return float(_core.peak(threads, isa, milliseconds, kind))
    except BackendError:
        return None


def merge(bursts: list[dict[str, float | None]]) -> dict[str, float | None]:
    """The best burst of every kind; None where there is no loop."""
    best: dict[str, float | None] = dict.fromkeys(LOOPS)
    for burst in bursts:
        for kind, rate in burst.items():
            if rate is not None:
                best[kind] = max(best[kind] or 0.0, rate)
    return best


def measure(threads: int, isa: str = "", bursts: int = BURSTS) -> dict[str, Any]:
    """The best of a few bursts of every loop."""
    return merge([{kind: peak(kind, threads, isa) for kind in LOOPS} for _ in range(bursts)])
