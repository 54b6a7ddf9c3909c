"""A call made by hand: two stages, five operations, times in thousands of nanoseconds."""

from __future__ import annotations

from typing import Any

from smolvla_edge.profile.summary import Ceiling

US = 1000  # nanoseconds

# float32 does 2 operations a nanosecond here, bfloat16 4.
CEILING = Ceiling({"float32": 2.0, "bfloat16": 4.0}, threads=2)


def op(kind: str, start: int, end: int, weight: str = "", **more: Any) -> dict[str, Any]:
    """One record as the engine gives it; times in microseconds."""
    usual = {"rows": 4, "in": 8, "out": 16, "heads": 0, "flops": 0, "bytes": 0}
    record = {"kind": kind, "weight": weight, "compute": "float32", **usual, **more}
    return {**record, "start": start * US, "end": end * US}


def linear(start: int, end: int, weight: str, share: float, **more: Any) -> dict[str, Any]:
    """A linear layer that runs at this share of its ceiling."""
    peak = CEILING.gflops[more.get("compute", "float32")]
    flops = round((end - start) * US * peak * share)
    # The shape follows the flops of a layer that is not gated.
    return op("linear", start, end, weight, **{"rows": flops // 2, "in": 1, "out": 1, **more},
              flops=flops)  # fmt: skip


def stage(kind: str, start: int, end: int, index: int = 0) -> dict[str, Any]:
    return {"kind": kind, "index": index, "start": start * US, "end": end * US}


def raw_call() -> dict[str, Any]:
    """From 1000 to 2000 us: 100 Python, 10 engine, 850 stages, 40 Python."""
    vision = "vision.layers.0."
    return {
        "overwritten": 0,
        "stages": [stage("vision", 1100, 1500), stage("flow", 1510, 1960)],
        "ops": [
            op("layer_norm", 1110, 1120, bytes=64 * US),
            linear(1120, 1320, vision + "attn.q.weight+" + vision + "attn.k.weight", 0.5),
            op("attention", 1330, 1480, **{"in": 4, "out": 12, "heads": 3}, flops=90 * US),
            linear(1520, 1720, "expert.layers.1.mlp.up.weight", 1.0, compute="bfloat16"),
            op("flow_update", 1720, 1730, bytes=30 * US),
            linear(1740, 1940, "expert.layers.2.mlp.up.weight", 0.5, compute="bfloat16"),
            op("flow_update", 1940, 1950, bytes=30 * US),
        ],
    }
