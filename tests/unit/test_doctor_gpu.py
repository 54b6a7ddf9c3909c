"""GPUs, drivers and Jetson boards, none of which is here: made-up facts, and a made-up libcuda."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from doctor_helpers import programs, stands, tree

from smolvla_edge.doctor import cuda_probe, process
from smolvla_edge.doctor.cuda_backend import check_cuda, read_cuda
from smolvla_edge.doctor.finding import PASS, WARN
from smolvla_edge.doctor.gpu import GpuFacts, check_gpu, read_gpu
from smolvla_edge.doctor.jetson import JetsonFacts, check_jetson, read_jetson
from smolvla_edge.doctor.process import Outcome
from smolvla_edge.doctor.torch_wheel import check_torch_wheel

ORIN = {"name": "Orin", "capability": "8.7", "memory": 8 << 30}
COMPILER = shutil.which(os.environ.get("CXX", "g++"))


class TestGpu:
    @pytest.mark.parametrize(
        ("facts", "status", "words"),
        [
            (
                GpuFacts((ORIN,), ("Tegra",), "540.4.0", "12.6"),
                PASS,
                ["Orin (compute 8.7, 8.0 GiB)", "540.4.0", "CUDA up to 12.6"],
            ),
            (GpuFacts(problem="absent"), PASS, ["no NVIDIA GPU", "none is needed"]),
            (GpuFacts(problem="CUDA_ERROR_NO_DEVICE", code=100), PASS, ["no NVIDIA GPU"]),
            # A container without the driver's libraries, on a host with a GPU.
            (
                GpuFacts(hardware=("PCI 0000:01:00.0",), driver="550.1", problem="absent"),
                WARN,
                ["PCI 0000:01:00.0 is there", "libcuda.so.1 is not installed", "--gpus all"],
            ),
            (GpuFacts(driver="550.1", problem="absent"), WARN, ["driver 550.1 is there"]),
            (
                GpuFacts(hardware=("Tegra",), problem="CUDA_ERROR_NO_DEVICE", code=100, smi="why"),
                WARN,
                ["CUDA_ERROR_NO_DEVICE", "nvidia-smi says: why"],
            ),
            (
                GpuFacts(problem="CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", code=803),
                WARN,
                ["CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "reboot"],
            ),
            (GpuFacts(problem="crashed with SIGSEGV"), WARN, ["crashed with SIGSEGV", "driver"]),
            (GpuFacts(problem="gave no answer in 10 s"), WARN, ["no answer"]),
        ],
    )
    def test_gpu(self, facts, status, words):
        stands(check_gpu(facts), status, *words)

    def test_reading_a_machine_with_one(self, tmp_path):
        answer = {"problem": "", "code": 0, "cuda": "12.6", "devices": [ORIN]}
        run = programs(
            {
                "cuda_probe": Outcome(json.dumps(answer)),
                "nvidia-smi": Outcome("550.54.14\n"),
            }
        )
        files = {
            "/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX  Kernel Module  550.54.14  T",
            "/sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
            "/sys/bus/pci/devices/0000:01:00.0/class": "0x030000\n",
            "/sys/bus/pci/devices/0000:01:00.1/vendor": "0x10de\n",  # the card's sound device
            "/sys/bus/pci/devices/0000:01:00.1/class": "0x040300\n",
            "/sys/bus/pci/devices/0000:02:00.0/vendor": "0x8086\n",
            "/sys/bus/pci/devices/0000:02:00.0/class": "0x030000\n",
        }
        facts = read_gpu(tree(tmp_path, files), run)
        assert facts.devices == (ORIN,)
        assert facts.hardware == ("PCI 0000:01:00.0",)
        assert (facts.driver, facts.cuda, facts.smi) == ("550.54.14", "12.6", "550.54.14")

    @pytest.mark.parametrize(
        ("probed", "problem"),
        [
            (Outcome(problem="crashed with SIGSEGV"), "crashed with SIGSEGV"),
            (Outcome("not JSON"), "no answer"),
            (Outcome('["a list"]'), "no answer"),
            (Outcome('"text"'), "no answer"),
        ],
    )
    def test_a_probe_that_fails_is_a_problem(self, tmp_path, probed, problem):
        facts = read_gpu(tree(tmp_path, {}), programs({"cuda_probe": probed}))
        assert problem in facts.problem and facts.devices == ()

    def test_this_machine(self):
        """Whatever it has: no exception, and a line."""
        from smolvla_edge.doctor.tree import Tree

        assert check_gpu(read_gpu(Tree(), process.run)).status in (PASS, WARN)


# What the probe asks of the driver, with `%s` for the body of cuInit.
FAKE_CUDA = r"""
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
extern "C" {
int cuInit(unsigned) { %s }
int cuDriverGetVersion(int* v) { *v = 12060; return 0; }
int cuDeviceGetCount(int* n) { *n = 1; return 0; }
int cuDeviceGet(int* d, int i) { *d = i; return 0; }
int cuDeviceGetName(char* s, int n, int) { strncpy(s, "Fake Orin", n); return 0; }
int cuDeviceTotalMem_v2(size_t* n, int) { *n = size_t(1) << 33; return 0; }
int cuDeviceGetAttribute(int* v, int a, int) { *v = a == 75 ? 8 : 7; return 0; }
int cuGetErrorName(int, const char** s) { *s = "CUDA_ERROR_FAKE"; return 0; }
}
"""


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
class TestProbe:
    def run(self, folder: Path, init: str, seconds: float = 10) -> Outcome:
        source = folder / "cuda.cpp"
        source.write_text(FAKE_CUDA % init)
        library = folder / "libcuda.so.1"
        subprocess.run(
            [str(COMPILER), "-shared", "-fPIC", "-o", str(library), str(source)], check=True
        )
        return process.run(
            [sys.executable, cuda_probe.__file__],
            seconds=seconds,
            environment={**os.environ, "LD_LIBRARY_PATH": str(folder)},
        )

    def test_a_device(self, tmp_path):
        assert json.loads(self.run(tmp_path, "return 0;").out) == {
            "problem": "",
            "code": 0,
            "cuda": "12.6",
            "devices": [{"name": "Fake Orin", "capability": "8.7", "memory": 1 << 33}],
        }

    def test_an_error_code(self, tmp_path):
        found = json.loads(self.run(tmp_path, "return 803;").out)
        assert (found["problem"], found["code"]) == ("CUDA_ERROR_FAKE", 803)

    def test_a_crash_stays_in_the_probe(self, tmp_path):
        assert self.run(tmp_path, "abort();").problem == "crashed with SIGABRT"

    def test_a_hang_is_ended(self, tmp_path):
        outcome = self.run(tmp_path, "for (;;) sleep(1);", seconds=1)
        assert "no answer in 1 s" in outcome.problem

    def test_a_library_that_does_not_load(self, tmp_path):
        (tmp_path / "libcuda.so.1").write_bytes(b"no ELF")
        environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
        done = process.run([sys.executable, cuda_probe.__file__], environment=environment)
        assert json.loads(done.out)["problem"] not in ("", "absent")


class TestJetson:
    release = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64"

    @pytest.mark.parametrize(
        ("facts", "status", "words"),
        [
            (JetsonFacts("36.4.3", "6", "MAXN"), PASS, ["JetPack 6", "MAXN"]),
            (JetsonFacts("36.4.3", "6", "MAXN_SUPER"), PASS, ["MAXN_SUPER"]),
            (JetsonFacts("36.4.3", "6", "15W"), WARN, ["15W", "nvpmodel -m 0"]),
            (JetsonFacts("36.4.3", "6", None), WARN, ["not readable", "sudo nvpmodel -q"]),
            (JetsonFacts("99.1", None, "MAXN"), PASS, ["not known here"]),
        ],
    )
    def test_jetson(self, facts, status, words):
        stands(check_jetson(facts), status, *words)

    def test_reading(self, tmp_path):
        run = programs({"nvpmodel": Outcome("NV Power Mode: 15W\n0\n")})
        found = read_jetson(tree(tmp_path, {"/etc/nv_tegra_release": self.release}), run)
        assert found == JetsonFacts("36.4.3", "6", "15W")

    def test_reading_without_nvpmodel_and_with_an_odd_file(self, tmp_path):
        found = read_jetson(tree(tmp_path, {"/etc/nv_tegra_release": "?"}), programs({}))
        assert found == JetsonFacts("?", None, None)

    def test_reading_another_machine(self, tmp_path):
        assert read_jetson(tree(tmp_path, {}), programs({})) is None


class TestCudaBackend:
    gpu = GpuFacts((ORIN,), ("Tegra",), "540", "12.6")
    without: ClassVar = {
        "built": False, "emulated": False, "architectures": [], "driver": None, "devices": [],
        "error": "this build has no CUDA backend",
    }  # fmt: skip
    usable: ClassVar = {
        "built": True, "emulated": False, "architectures": [80, 87], "driver": "12.6",
        "devices": [{"name": "Orin", "sm": 87, "memory_bytes": 8 << 30, "integrated": True}],
        "error": None,
    }  # fmt: skip

    def test_not_built(self):
        stands(check_cuda(self.without, GpuFacts()), PASS, "not in this build", "no GPU")
        finding = check_cuda(self.without, self.gpu)
        stands(finding, WARN, "although a GPU is here", "SMOLVLA_CUDA=ON", "nvcc")

    def test_usable(self):
        words = ("8.0, 8.7", "device 'auto' takes the GPU: Orin (compute 8.7, 8.0 GiB)", "12.6")
        stands(check_cuda(self.usable, self.gpu), PASS, *words)

    def test_no_driver(self):
        error = "no NVIDIA driver was found (libcuda.so.1). Install it"
        gone = {**self.usable, "driver": None, "devices": [], "error": error}
        stands(check_cuda(gone, GpuFacts()), PASS, "no GPU is here")
        hardware = GpuFacts(hardware=("PCI 0000:01:00.0",))
        stands(check_cuda(gone, hardware), WARN, "cannot be used: no NVIDIA driver", "Install it")

    def test_a_gpu_that_is_too_old(self):
        error = "expected a GPU of compute capability 8.0 or later, got Orin of 7.2"
        found = {**self.usable, "error": error}
        stands(check_cuda(found, self.gpu), WARN, "8.0 or later, got Orin of 7.2", "device='cpu'")

    @pytest.mark.parametrize(
        "outcome", [Outcome(problem="crashed with SIGSEGV"), Outcome("no JSON"), Outcome("[1]")]
    )
    def test_asking_that_fails(self, outcome):
        found = read_cuda(lambda _: outcome)
        assert set(found) == {"error"}
        stands(check_cuda(found, self.gpu), WARN, "does not answer", "device='cpu'")

    def test_this_build(self):
        from smolvla_edge import _core

        assert read_cuda(process.run) == _core.cuda()


class TestTorchWheel:
    cpu_only: ClassVar = {"torch": "2.13.0+cpu", "cuda_built": None, "cuda_available": False}
    for_cuda: ClassVar = {"torch": "2.13.0", "cuda_built": "13.0", "cuda_available": False}
    gpu = GpuFacts((ORIN,), ("Tegra",), "540", "12.6")

    def test_no_torch_no_line(self):
        assert check_torch_wheel({}, self.gpu, False) is None

    def test_no_gpu_no_problem(self):
        stands(check_torch_wheel(self.cpu_only, GpuFacts(), False), PASS, "no GPU")

    def test_it_sees_the_gpu(self):
        sees = {**self.for_cuda, "cuda_available": True}
        stands(check_torch_wheel(sees, self.gpu, False), PASS, "CUDA 13.0", "sees the GPU")

    def test_the_wheel_without_cuda(self):
        finding = check_torch_wheel(self.cpu_only, self.gpu, False)
        stands(finding, WARN, "2.13.0+cpu", "without CUDA", "--index-url", "at most CUDA 12.6")
        stands(check_torch_wheel(self.cpu_only, self.gpu, True), WARN, "JetPack")

    def test_a_driver_older_than_the_wheel(self):
        torch = {**self.for_cuda, "cuda_warning": "driver too old"}
        finding = check_torch_wheel(torch, self.gpu, False)
        stands(finding, WARN, "CUDA 13.0", "driver too old", "12.6")


class TestProcess:
    def test_an_absent_program(self):
        outcome = process.run(["/no/such/program"])
        assert outcome.absent and "not installed" in outcome.problem

    def test_an_exit_code_and_the_last_line(self):
        outcome = process.run(
            [sys.executable, "-c", "import sys; print('x', file=sys.stderr); sys.exit(3)"]
        )
        assert (outcome.problem, outcome.last_line, outcome.absent) == ("exit code 3", "x", False)

    def test_a_program_that_may_not_be_run(self, tmp_path):
        assert "cannot be started" in process.run([str(tmp_path)]).problem
