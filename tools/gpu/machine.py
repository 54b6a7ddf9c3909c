"""What this machine has of what the parts need."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "gpu"
CARRIED = ROOT / "build" / "gpu-carry"  # what carry.py made on a machine with a network
# nvcc as wheels, with what it needs to compile and link; versions are in constraints.txt.
NVCC_WHEELS = (
    "nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm", "nvidia-cuda-runtime", "nvidia-cuda-cccl",
)  # fmt: skip


def find_nvcc(where: Path | None = None) -> Path | None:
    """nvcc on PATH, of a toolkit, or of wheels in this Python or in the folder `where`."""
    found = [shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    folders = [*map(Path, sys.path), *([where] if where else [])]
    found += [str(folder / "nvidia" / "cu13" / "bin" / "nvcc") for folder in folders]
    return next((Path(p) for p in found if p and os.access(p, os.X_OK)), None)


def architecture() -> str | None:
    """ "90" of the first GPU, as its driver says; None without one."""
    probe = ROOT / "smolvla_edge" / "doctor" / "cuda_probe.py"
    done = subprocess.run(
        [sys.executable, str(probe)], capture_output=True, text=True, check=False, timeout=60
    )
    devices = json.loads(done.stdout)["devices"] if done.returncode == 0 else []
    return str(devices[0]["capability"]).replace(".", "") if devices else None


def has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def torch_has_gpu(python: Path) -> bool:
    """Whether the torch of that Python finds a GPU: it may be a build for the CPU."""
    program = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    done = subprocess.run([str(python), "-c", program], capture_output=True, check=False)
    return done.returncode == 0


def sanitizer() -> str | None:
    """compute-sanitizer on PATH or of a toolkit."""
    usual = "/usr/local/cuda/bin/compute-sanitizer"
    return shutil.which("compute-sanitizer") or (usual if os.access(usual, os.X_OK) else None)


def core_state() -> dict[str, object]:
    """`_core.cuda()` of the build in this tree, by a process of its own; {} when it fails."""
    program = "import json; from smolvla_edge import _core; print(json.dumps(_core.cuda()))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT,
        env=environment(),
    )  # fmt: skip
    return dict(json.loads(done.stdout)) if done.returncode == 0 else {}


def environment() -> dict[str, str]:
    """Everything runs from this tree, whatever is installed."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def commit() -> str:
    """Of this tree; where it travelled without its history, what carry.py noted."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    noted = CARRIED / "commit"
    return done.stdout.strip() or (noted.read_text().strip() if noted.is_file() else "unknown")
