"""A torch that is installed beside a GPU and cannot use it: the usual wrong wheel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smolvla_edge.doctor.finding import PASS, WARN, Finding
from smolvla_edge.doctor.gpu import GpuFacts


def check_torch_wheel(torch: Mapping[str, Any], gpu: GpuFacts, jetson: bool) -> Finding | None:
    """`torch` is what backend_run found out. None when no torch ran: another line says so."""
    if "torch" not in torch:
        return None
    facts = {name: torch.get(name) for name in ("torch", "cuda_built", "cuda_available")}
    version = f"torch {torch['torch']}"
    if torch.get("cuda_available"):
        message = f"{version} for CUDA {torch.get('cuda_built')} sees the GPU"
        return Finding("software", "torch and GPU", PASS, message, facts=facts)
    if not (gpu.devices or gpu.hardware):
        message = f"{version}, on the CPU: there is no GPU for it"
        return Finding("software", "torch and GPU", PASS, message, facts=facts)
    if torch.get("cuda_built") is None:
        wheel = (
            "NVIDIA's wheel for your JetPack (PyPI's for aarch64 does not know Jetson GPUs)"
            if jetson
            else "a CUDA build: pip install --force-reinstall torch --index-url "
            f"https://download.pytorch.org/whl/cu... (at most CUDA {gpu.cuda or 'of the driver'})"
        )
        return Finding(
            "software",
            "torch and GPU",
            WARN,
            f"{version} was built without CUDA and cannot use the GPU; smolvla-edge's own kernels "
            "do not need it",
            f"for backend='torch', device='cuda': {wheel}",
            facts,
        )
    why = torch.get("cuda_warning") or "it gives no reason"
    return Finding(
        "software",
        "torch and GPU",
        WARN,
        f"{version} was built for CUDA {torch['cuda_built']} and sees no GPU: {why}",
        "make the line 'gpu' pass first; then choose a torch for a CUDA that the driver runs "
        f"({gpu.cuda or 'see nvidia-smi'})",
        facts,
    )
