"""Make what a GPU machine without a network needs: build/gpu-carry, to be brought along.

    python -m tools.gpu.carry --arch 90 --python 3.12      (on a machine with a network and nvcc)
    python -m tools.gpu.carry --rival                      only LeRobot's wheels

- smolvla_edge-*.whl: the package with its CUDA backend for one architecture, built by this Python
  for this version of Python. Where the GPU machine has nvcc, or another Python, tools.gpu.build
  compiles there and this is not needed.
- rival/*.whl: what LeRobot 0.4.4 needs and CUDA images do not have (carried.txt).
- commit: of this tree, for results of a machine that it reaches without its history.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from tools.gpu.machine import CARRIED, ROOT, commit, find_nvcc

LIST = ROOT / "benchmarks" / "rivals" / "lerobot" / "carried.txt"
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")


def wheel(arch: str) -> int:
    """The package's wheel with CUDA, by the nvcc at hand."""
    import pybind11

    nvcc = find_nvcc()
    if nvcc is None:
        print("error: no nvcc here; pip install nvidia-cuda-nvcc and its kin (constraints.txt)")
        return 1
    library = nvcc.parent.parent / "lib"
    environment = {**os.environ, "LIBRARY_PATH": str(library)} if library.is_dir() else None
    defines = {
        "SMOLVLA_CUDA": "ON", "SMOLVLA_CUDA_ARCHS": arch, "CMAKE_CUDA_COMPILER": str(nvcc),
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }  # fmt: skip
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps",
               "--no-build-isolation", "--wheel-dir", str(CARRIED)]  # fmt: skip
    for name, value in defines.items():
        command += ["-C", f"cmake.define.{name}={value}"]
    return subprocess.run([*command, str(ROOT)], env=environment, check=False).returncode


def rival(python: str, machine: str) -> int:
    """LeRobot's wheels for another Python, without their dependencies."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
               "--only-binary=:all:", "--python-version", python, "--implementation", "cp",
               "--dest", str(CARRIED / "rival"), "--requirement", str(LIST)]  # fmt: skip
    for platform in PLATFORMS:
        command += ["--platform", f"{platform}_{machine}"]
    return subprocess.run(command, check=False).returncode


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu.carry", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--arch", default="90", help="compute capability without its point")
    parser.add_argument("--python", default="3.12", help="of the GPU machine, for the rival")
    parser.add_argument("--machine", default="x86_64", help="its processor")
    parser.add_argument("--rival", action="store_true", help="only LeRobot's wheels")
    options = parser.parse_args(arguments)
    CARRIED.mkdir(parents=True, exist_ok=True)
    (CARRIED / "commit").write_text(commit() + "\n")
    failed = rival(options.python, options.machine)
    if not options.rival:
        failed = wheel(options.arch) or failed
    sizes = {path: path.stat().st_size for path in CARRIED.rglob("*.whl")}
    for path, size in sorted(sizes.items()):
        print(f"{size / 2**20:7.2f} MiB  {path.relative_to(CARRIED)}")
    print(f"{sum(sizes.values()) / 2**20:7.2f} MiB  in all, in {CARRIED}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
