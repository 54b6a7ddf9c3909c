"""Which GPUs a build compiles for: csrc/cuda/architectures.cmake, on machines that are made up."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NO_TREE = "/nonexistent/compatible"
NVCC_12_2 = "compute_75 compute_80 compute_86 compute_87 compute_89 compute_90 compute_90a"
NVCC_12_8 = f"{NVCC_12_2} compute_101 compute_100 compute_120"  # in no order, as it says them


def tool(name: str) -> str:
    """A program beside this Python (where pip puts it) or on PATH."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None and os.environ.get("SMOLVLA_REQUIRE_NVCC") == "1":
        pytest.fail(f"SMOLVLA_REQUIRE_NVCC=1, and {name} is not installed")
    return found or pytest.skip(f"{name} is not installed")


@pytest.fixture(autouse=True)
def source_folder():
    if not (ROOT / "CMakeLists.txt").is_file():
        pytest.skip("the tests run outside of the source folder")


@pytest.fixture
def machine(tmp_path):
    """A folder that is all of PATH, and a function that puts a program into it."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def put(name: str, script: str) -> Path:
        program = folder / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return program

    put.path = folder
    return put


def run(machine, tmp_path, *lines: str) -> str:
    """What a script of CMake's says that has `lines` and then shows `result`."""
    script = tmp_path / "script.cmake"
    before = f'include("{ROOT}/csrc/cuda/architectures.cmake")'
    script.write_text("\n".join([before, *lines, 'message("result: ${result}")']))
    done = subprocess.run(
        [tool("cmake"), "-P", script],
        env={"PATH": str(machine.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def result(said: str) -> list[str]:
    return re.search(r"^result: (.*)$", said, re.M)[1].split(";")


def smi(*lines: str) -> str:
    """An nvidia-smi that answers the one question with these lines."""
    said = "\\n".join(lines)
    return (
        'test "$*" = "--query-gpu=compute_cap --format=csv,noheader" || exit 2\n'
        f"printf '{said}\\n'"
    )


@pytest.mark.parametrize(
    ("lines", "gpus"),
    [
        (["8.9"], ["89"]),
        (["9.0", "8.0", "9.0"], ["90", "80"]),
        (["12.0", "10.0"], ["120", "100"]),
        (["7.5", "8.6"], ["86"]),  # 7.5: too old for the backend
        (["7.5"], [""]),
        (["[N/A]"], [""]),
        (["No devices were found"], [""]),
    ],
)
def test_what_nvidia_smi_says(machine, tmp_path, lines, gpus):
    machine("nvidia-smi", smi(*lines))
    assert result(run(machine, tmp_path, f"smolvla_gpus_here(result {NO_TREE})")) == gpus


@pytest.mark.parametrize(
    "script", [f"{smi('8.9')}\nexit 9", f"/bin/sleep 20\n{smi('8.9')}"], ids=["fails", "hangs"]
)
def test_an_nvidia_smi_that_does_not_answer(machine, tmp_path, script):
    machine("nvidia-smi", script)
    lines = "set(SMOLVLA_GPUS_SECONDS 1)", f"smolvla_gpus_here(result {NO_TREE})"
    assert result(run(machine, tmp_path, *lines)) == [""]


def test_no_nvidia_smi(machine, tmp_path):
    assert result(run(machine, tmp_path, f"smolvla_gpus_here(result {NO_TREE})")) == [""]


@pytest.mark.parametrize(
    ("compatible", "gpus"),
    [
        (b"nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0", ["87"]),
        (b"nvidia,p4071-0000+p3834-0008\0nvidia,p3834-0008\0nvidia,tegra264\0", ["110"]),
        (b"nvidia,p2972-0000\0nvidia,tegra194\0", [""]),  # Xavier, 7.2
        (b"raspberrypi,5-model-b\0brcm,bcm2712\0", [""]),
    ],
)
@pytest.mark.parametrize("answer", [None, "[N/A]"])
def test_what_a_jetson_says(machine, tmp_path, compatible, gpus, answer):
    tree = tmp_path / "compatible"
    tree.write_bytes(compatible)
    if answer:
        machine("nvidia-smi", smi(answer))
    assert result(run(machine, tmp_path, f"smolvla_gpus_here(result {tree})")) == gpus


def test_nvidia_smi_comes_before_the_device_tree(machine, tmp_path):
    tree = tmp_path / "compatible"
    tree.write_bytes(b"nvidia,tegra234\0")
    machine("nvidia-smi", smi("12.0"))
    assert result(run(machine, tmp_path, f"smolvla_gpus_here(result {tree})")) == ["120"]


def test_another_machine_is_built_for(machine, tmp_path):
    machine("nvidia-smi", smi("8.9"))
    lines = "set(CMAKE_CROSSCOMPILING ON)", f"smolvla_gpus_here(result {NO_TREE})"
    assert result(run(machine, tmp_path, *lines)) == [""]


def test_what_the_compiler_knows(machine, tmp_path):
    said = NVCC_12_8.replace(" ", "\\n")
    nvcc = machine("nvcc", f'test "$*" = --list-gpu-arch || exit 2\nprintf "{said}\\n"')
    archs = result(run(machine, tmp_path, f'smolvla_archs_of_compiler(result "{nvcc}")'))
    assert archs == ["75", "80", "86", "87", "89", "90", "101", "100", "120"]
    clang = machine("clang", "exit 1")
    assert result(run(machine, tmp_path, f'smolvla_archs_of_compiler(result "{clang}")')) == [""]


@pytest.mark.parametrize(
    ("wanted", "known", "architectures", "ptx_for"),
    [
        ("89", NVCC_12_2, "89-real 89-virtual", None),
        ("90;80", NVCC_12_2, "80-real 90-real 80-virtual", None),
        ("120;80;100", NVCC_12_8, "80-real 100-real 120-real 80-virtual", None),
        ("121", NVCC_12_8, "120-virtual", "sm_121"),
        ("110", NVCC_12_8, "101-virtual", "sm_110"),  # Thor: 11.0 since CUDA 13
        ("120", NVCC_12_2, "90-virtual", "sm_120"),
        ("120;90", NVCC_12_2, "90-real 90-virtual", "sm_120"),
        ("89;120", NVCC_12_2, "89-real 90-virtual 89-virtual", "sm_120"),
        ("87;110", "", "87-real 110-real 87-virtual", None),  # whatever the compiler knows
    ],
)
def test_what_is_compiled(machine, tmp_path, wanted, known, architectures, ptx_for):
    numbers = ";".join(re.findall(r"(\d+)(?= |$)", known))
    line = f'smolvla_cuda_architectures(result "{wanted}" "{numbers}")'
    said = run(machine, tmp_path, line)
    assert result(said) == architectures.split()
    assert re.findall(r"knows no (sm_\d+)", said) == ([ptx_for] if ptx_for else [])


def nvcc() -> Path:
    """NVIDIA's package of it, or the machine's."""
    packaged = (Path(folder, "nvidia/cu13/bin/nvcc") for folder in sys.path)
    return next((path for path in packaged if path.is_file()), None) or Path(tool("nvcc"))


@pytest.mark.parametrize(
    ("gpus", "options", "said"),
    [
        ("7.5", [], r"left out\. nvcc is here, and .*SMOLVLA_CUDA=ON.*SMOLVLA_CUDA_ARCHS=87"),
        ("8.9\\n8.6", [], r"nvcc \S+, 86-real;89-real;86-virtual"),
        ("8.9", ["-DSMOLVLA_CUDA_ARCHS=87"], r"nvcc \S+, 87-real;87-virtual"),
        ("8.9", ["-DSMOLVLA_CUDA=ON"], r"nvcc \S+, 80-real;87-real;89-real;90-real;.*80-virtual"),
    ],
    ids=["no GPU", "two GPUs", "asked for one", "asked for all"],
)
def test_the_whole_build_is_configured(machine, tmp_path, gpus, options, said):
    machine("nvidia-smi", smi(gpus))
    compiler = nvcc()
    done = subprocess.run(
        [tool("cmake"), "-S", ROOT, "-B", tmp_path / "build", "-DSMOLVLA_PYTHON=OFF",
         f"-DCMAKE_CUDA_COMPILER={compiler}", *options],
        env={**os.environ, "PATH": f"{machine.path}:{os.environ['PATH']}",
             "LIBRARY_PATH": str(compiler.parents[1] / "lib")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(f"CUDA backend: {said}", done.stdout), done.stdout
