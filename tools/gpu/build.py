"""Build the extension for the GPU at hand into the source tree: smolvla_edge/_core*.so.

    python -m tools.gpu.build [--arch 90] [--jobs N]

With nvcc of this machine, or of wheels from PyPI; where there is neither, what tools/gpu/carry.py
made elsewhere for this version of Python.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from zlib import crc32

from tools.gpu.machine import (
    BUILD,
    CARRIED,
    NVCC_WHEELS,
    ROOT,
    architecture,
    core_state,
    find_nvcc,
    has,
)

SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
TARGET = ROOT / "smolvla_edge" / f"_core{SUFFIX}"


class BuildError(RuntimeError):
    """What is missing, and what to do about it."""


def run(*command: str | Path, env: dict[str, str] | None = None) -> None:
    print("+", *command, flush=True)
    subprocess.run([str(word) for word in command], check=True, cwd=ROOT, env=env)


def install_nvcc(folder: Path) -> Path:
    """nvcc from PyPI into a folder. Raises BuildError without a network."""
    constraints = str(ROOT / "constraints.txt")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target",
               str(folder), "--constraint", constraints, *NVCC_WHEELS]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    nvcc = find_nvcc(folder)
    if done.returncode or nvcc is None:
        raise BuildError(
            "no nvcc: not on PATH, in /usr/local/cuda or from PyPI, and no carried build fits this "
            f"Python ({SUFFIX}). On a machine with a network and the same Python: "
            f"python -m tools.gpu.carry; then bring {CARRIED}"
        )
    return nvcc


def from_carried() -> bool:
    """Take the extension out of a carried wheel that was built for this Python."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    for wheel in sorted(CARRIED.glob(f"smolvla_edge-*-{tag}-{tag}-*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            name = f"smolvla_edge/_core{SUFFIX}"
            if name in archive.namelist():
                TARGET.write_bytes(archive.read(name))
                print(f"took {name} from {wheel}")
                return True
    return False


def compile_here(nvcc: Path, arch: str, jobs: int) -> None:
    """Configure and build; what is up to date is not built again. Raises BuildError."""
    if not (shutil.which("cmake") and has("pybind11")):
        raise BuildError(
            "expected cmake on PATH and pybind11 in this Python; run: "
            f"{sys.executable} -m pip install cmake ninja pybind11"
        )
    import pybind11

    # A folder for each compiler: CMake forgets its variables when that changes.
    folder = BUILD / f"core-{arch}-{crc32(str(nvcc).encode()):08x}"
    # nvcc of wheels has its static runtime in lib, where nvcc's own link step looks in lib64 too.
    library = nvcc.parent.parent / "lib"
    env = dict(os.environ)
    if library.is_dir():
        env["LIBRARY_PATH"] = os.pathsep.join(filter(None, [str(library), env.get("LIBRARY_PATH")]))
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    run("cmake", "-S", ROOT, "-B", folder, *generator, "-DSMOLVLA_CUDA=ON", "-DSMOLVLA_PYTHON=ON",
        f"-DSMOLVLA_CUDA_ARCHS={arch}", f"-DCMAKE_CUDA_COMPILER={nvcc}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}",
        env=env)  # fmt: skip
    run("cmake", "--build", folder, "--target", "_core", "--parallel", str(jobs), env=env)
    shutil.copy2(next(folder.glob("_core*.so")), TARGET)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu.build", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--arch", help="compute capability without its point; default: the GPU's")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args(arguments)
    try:
        arch = options.arch or architecture()
        if arch is None:
            raise BuildError("no GPU answers here; name its architecture: --arch 90")
        nvcc = find_nvcc()
        if nvcc is None and from_carried():
            pass
        else:
            compile_here(nvcc or install_nvcc(BUILD / "nvcc"), arch, options.jobs)
    except (BuildError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{TARGET}: {TARGET.stat().st_size / 2**20:.1f} MiB, {core_state()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
