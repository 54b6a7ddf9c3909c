"""GPUs by their public numbers, for predictions; none of these numbers was measured here.

Rates are dense (without 2:4 sparsity), with float32 sums. Where a maker names sparse rates only,
half of them; where a table names none, processors x clock x operations a clock of that
architecture, which gives the maker's numbers where both exist.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """tflops: by unit of `operations.Operation`; gbps: of its memory; l2_mb: 10^6 bytes.

    mma_share: how much of tflops `mma.sync`, which our kernels are made of, can reach. node_us:
    from the end of one kernel of a graph to the beginning of the next.
    """

    name: str
    sm: int
    processors: int
    tflops: dict[str, float]
    gbps: float
    l2_mb: float
    node_us: float
    mma_share: float
    sources: tuple[str, ...]

    def rate(self, unit: str) -> float:
        """FLOP/s that our kernels could reach at best."""
        return self.tflops[unit] * 1e12 * (1.0 if unit == "float32" else self.mma_share)


def _peaks(float32: float, bfloat16: float, int8: float) -> dict[str, float]:
    return {"float32": float32, "bfloat16": bfloat16, "int8": int8}


_ORIN = "https://developer.nvidia.com/embedded/jetson-modules"
_HOPPER = "https://arxiv.org/abs/2402.13499 (mma.sync reaches 62.9 % of Hopper's peak on average)"
_NODE_HOPPER = "https://hazyresearch.stanford.edu/blog/2025-05-27-no-bubbles (1.3 us a kernel)"
_NODE_THOR = "https://github.com/flashrt-project/FlashRT (2,340 nodes in 6.9 ms on Thor)"

DEVICES = (
    Device(
        "Jetson Orin Nano 8 GB (Super)", 87, 8, _peaks(2.1, 16.7, 33.4), 102, 2.0, 3.0, 1.0,
        (f"{_ORIN}: 67 sparse TOPS, 102 GB/s, 1024 cores at 1.02 GHz", "node: as Thor, assumed"),
    ),
    Device(
        "Jetson Orin NX 16 GB (Super)", 87, 8, _peaks(2.4, 19.2, 38.4), 102, 2.0, 3.0, 1.0,
        (f"{_ORIN}: 102 GB/s, 1024 cores at 1.17 GHz (GPU alone, without its DLAs)",
         "node: as Thor, assumed"),
    ),
    Device(
        "Jetson AGX Orin 64 GB", 87, 16, _peaks(5.3, 42.6, 85.0), 204.8, 4.0, 3.0, 1.0,
        (f"{_ORIN}: 170 sparse TOPS of the GPU, 204.8 GB/s, 2048 cores at 1.3 GHz",
         "https://github.com/infinigence/ApxInf/pull/74 (33.4 TFLOP/s and 152.8 GB/s measured)",
         "node: as Thor, assumed"),
    ),
    Device(
        "Jetson Thor T5000", 110, 20, _peaks(8.0, 258.0, 517.0), 273, 32.0, 3.0, 0.5,
        ("https://github.com/NVIDIA/TensorRT/issues/4590 (517 dense FP8 and int8)", _NODE_THOR,
         "mma.sync: half of the peak is assumed, no public number was found"),
    ),
    Device(
        "GeForce RTX 4090", 89, 128, _peaks(82.6, 165.2, 660.6), 1008, 72.0, 1.3, 1.0,
        ("https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf",
         "node: as H100, assumed"),
    ),
    Device(
        "H100 SXM 80 GB", 90, 132, _peaks(66.9, 989.4, 1978.9), 3350, 50.0, 1.3, 0.629,
        ("https://resources.nvidia.com/en-us-tensor-core/gtc22-whitepaper-hopper", _HOPPER,
         _NODE_HOPPER),
    ),
    Device(
        "H200 SXM 141 GB", 90, 132, _peaks(66.9, 989.4, 1978.9), 4800, 50.0, 1.3, 0.629,
        ("https://www.nvidia.com/en-us/data-center/h200/", _HOPPER, _NODE_HOPPER),
    ),
)  # fmt: skip
