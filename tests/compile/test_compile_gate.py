"""The gate itself: deliberately broken kernels fail it, each for the reason that it has."""

from __future__ import annotations

import dataclasses
import random
import subprocess
from pathlib import Path

import pytest
from compile_gate import complaints
from compile_occupancy import PROCESSORS, blocks_per_processor
from compile_sources import ROOT
from compile_table import TENSOR_F16, Row
from compile_tools import _FLAGS, TARGETS, CompileError, compile_source, plain_name

SAMPLES = Path(__file__).parent / "samples"
ROW = Row(threads=32, registers=52, shared=768, blocks=12, instructions=400, needs=TENSOR_F16)


@pytest.fixture(scope="module")
def records(tools, kept):
    def of(name, targets=(87, 90)):
        return compile_source(tools, SAMPLES / name, ROOT / "csrc", kept, targets)

    return of


def test_a_good_kernel_passes_for_every_target(records):
    found = records("good.cu", TARGETS)
    assert sorted(r.target for r in found) == sorted(TARGETS)
    assert complaints(found, {"sample": ROW}) == []


def test_a_kernel_without_a_row_fails(records):
    assert complaints(records("good.cu"), {}) == ["sample: no row in compile_table.py"]


def test_a_kernel_that_lost_its_tensor_core_fails(records):
    found = complaints(records("no_tensor_core.cu"), {"sample": ROW})
    assert "sample on sm_87: no HMMA instruction" in found
    assert "sample on sm_90: no LDGSTS instruction" in found


def test_a_kernel_that_spills_fails(records):
    row = Row(threads=1024, registers=255, instructions=10**6)
    found = complaints(records("spills.cu"), {"sample": row})
    for target in (87, 90):
        mine = [c for c in found if c.startswith(f"sample on sm_{target}: ")]
        assert any("spills" in c for c in mine)
        assert any("STL instructions" in c for c in mine)


def test_a_kernel_that_does_not_compile_for_a_target_fails(records):
    assert len(records("not_everywhere.cu", (90,))) == 1
    with pytest.raises(CompileError, match=r"sm_90|sm_87"):
        records("not_everywhere.cu", (87, 90))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"registers": 8}, "registers, at most 8"),
        ({"shared": 228 * 1024}, "bytes of shared memory"),
        ({"blocks": 33}, "blocks on a multiprocessor, at least 33"),
        ({"instructions": 10}, "instructions, at most 10"),
        ({"needs": ("IMMA",)}, "no IMMA"),
        ({"forbids": ("LDSM",)}, "LDSM instructions"),
    ],
)
def test_every_column_of_the_table_is_looked_at(records, change, part):
    found = complaints(records("good.cu"), {"sample": dataclasses.replace(ROW, **change)})
    assert any(part in c for c in found)


def test_a_number_may_be_of_one_target(records):
    row = dataclasses.replace(ROW, registers={0: 255, 87: 8})
    (found,) = complaints(records("good.cu"), {"sample": row})
    assert found.startswith("sample on sm_87: ") and found.endswith("registers, at most 8")


def test_results_are_kept_until_the_source_changes(tools, tmp_path):
    source = tmp_path / "mine.cu"
    source.write_text((SAMPLES / "good.cu").read_text())
    first = compile_source(tools, source, ROOT / "csrc", tmp_path / "kept", (87,))
    broken = dataclasses.replace(tools, nvcc=tools.nvcc, nvdisasm=Path("/nowhere"))
    assert compile_source(broken, source, ROOT / "csrc", tmp_path / "kept", (87,)) == first
    source.write_text(source.read_text().replace("sample", "renamed"))
    again = compile_source(tools, source, ROOT / "csrc", tmp_path / "kept", (87,))
    assert [r.kernel for r in again] == ["renamed"]


def test_the_flags_are_the_builds():
    build = (ROOT / "csrc" / "cuda" / "cuda.cmake").read_text()
    mine = [flag for flag in _FLAGS if flag.startswith("-f")]
    assert mine and all(flag in build for flag in mine)


def test_names():
    assert plain_name("_ZN7smolvla4cuda3runIfLi64ELb1EEEvPT_") == "run<float, 64, true>"
    inner = "_ZN7smolvla4cuda45_GLOBAL__N__829234a4_12_gemm_bf16_cu_7d1c042f4gemmEPf"
    assert plain_name(inner) == "gemm"
    assert plain_name("plain_c") == "plain_c"


_OCCUPANCY = """
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <cuda_occupancy.h>
int main() {
    int major, minor, warps, shared, per_block, registers, threads;
    unsigned long used;
    while (std::scanf("%d %d %d %d %d %d %d %lu", &major, &minor, &warps, &shared, &per_block,
                      &registers, &threads, &used) == 8) {
        cudaOccDeviceProp device;
        device.computeMajor = major, device.computeMinor = minor;
        device.maxThreadsPerBlock = 1024, device.maxThreadsPerMultiprocessor = 32 * warps;
        device.regsPerBlock = device.regsPerMultiprocessor = 65536, device.warpSize = 32;
        device.sharedMemPerBlock = 48 * 1024, device.sharedMemPerMultiprocessor = shared;
        device.numSms = 1, device.sharedMemPerBlockOptin = per_block;
        device.reservedSharedMemPerBlock = 1024;
        cudaOccFuncAttributes kernel;
        kernel.maxThreadsPerBlock = 1024, kernel.numRegs = registers, kernel.sharedSizeBytes = 0;
        kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
        kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
        kernel.maxDynamicSharedSizeBytes = per_block;
        cudaOccDeviceState state;
        state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
        cudaOccResult result;
        std::memset(&result, 0, sizeof result);
        const int error = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state,
                                                                  threads, used);
        std::printf("%d\\n", error ? -error : result.activeBlocksPerMultiprocessor);
    }
}
"""


def test_occupancy_is_nvidias(tools, tmp_path):
    include = next(
        (
            place
            for place in (
                tools.nvcc.resolve().parents[1] / "include",
                Path("/usr/local/cuda/include"),
            )
            if (place / "cuda_occupancy.h").exists()
        ),
        None,
    )
    if include is None:
        pytest.skip("this toolkit has no cuda_occupancy.h")
    (tmp_path / "o.cpp").write_text(_OCCUPANCY)
    build = ["g++", "-O1", f"-I{include}", str(tmp_path / "o.cpp"), "-o", str(tmp_path / "o")]
    subprocess.run(build, check=True, capture_output=True)
    draw = random.Random(3)
    cases = []
    for target in TARGETS:
        for _ in range(200):
            shared = draw.choice([0, draw.randrange(PROCESSORS[target].shared_per_block + 1)])
            cases.append((target, draw.randint(16, 255), draw.randint(1, 1024), shared))
    lines = [
        f"{t // 10} {t % 10} {PROCESSORS[t].warps} {PROCESSORS[t].shared} "
        f"{PROCESSORS[t].shared_per_block} {registers} {threads} {shared}"
        for t, registers, threads, shared in cases
    ]
    out = subprocess.run(
        [tmp_path / "o"], input="\n".join(lines), capture_output=True, text=True, check=True
    ).stdout.split()
    assert [int(x) for x in out] == [blocks_per_processor(*case) for case in cases]
