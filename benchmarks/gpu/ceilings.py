"""What the device reaches at best, measured in the run: a copy, and the largest products.

python -m benchmarks.gpu.ceilings         prints them as JSON
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

COPY_BYTES = 1 << 30
SIDE = 8192  # of the square matrices; random numbers: zeros run faster
BURSTS = 3


def copy_gbps(clock: Any, device: str, nbytes: int = COPY_BYTES) -> float:
    """GB/s of a copy inside the device's memory, bytes read and bytes written."""
    source = torch.randint(0, 127, (nbytes,), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    best = min(clock.time([lambda: target.copy_(source)]).median_us for _ in range(BURSTS))
    return 2e-3 * nbytes / best


def product_tflops(clock: Any, device: str, unit: str, side: int = SIDE) -> float:
    """TFLOP/s (TOP/s) of the libraries' largest product in "float32", "bfloat16" or "int8"."""
    if unit == "int8":
        a, b = (
            torch.randint(-127, 128, (side, side), dtype=torch.int8, device=device)
            for _ in range(2)
        )
        transposed = b.t()
        timings = [clock.time([lambda: torch._int_mm(a, transposed)]) for _ in range(BURSTS)]
    else:
        dtype = getattr(torch, unit)
        x, w = (torch.randn((side, side), device=device).to(dtype) for _ in range(2))
        timings = [clock.time([lambda: x @ w.t()]) for _ in range(BURSTS)]
    return 2.0 * side**3 / min(t.median_us for t in timings) * 1e-6


def measure(clock: Any, device: str, scale: int = 1) -> dict[str, float]:
    """{"gbps", "float32", "bfloat16", "int8"}; `scale` divides the sizes, to try the program.

    float32 is IEEE, not TF32: what an exact bundle is held to.
    """
    found = {"gbps": copy_gbps(clock, device, COPY_BYTES // scale**2)}
    for unit in ("float32", "bfloat16", "int8"):
        found[unit] = product_tflops(clock, device, unit, SIDE // scale)
        if device != "cpu":
            torch.cuda.empty_cache()
    return found


def main() -> int:
    from benchmarks.gpu.clock import DeviceClock

    if not torch.cuda.is_available():
        print("torch finds no CUDA device", file=sys.stderr)
        return 1
    torch.backends.cuda.matmul.allow_tf32 = False
    print(json.dumps(measure(DeviceClock(40.0), "cuda")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
