"""The kernel sets that the core finds are the ones that this machine has."""

from __future__ import annotations

import pytest
from expected_isas import expected_isas, of_this_machine

from smolvla_edge import _core

INTEL = "processor\t: 0\nflags\t\t: fpu sse2 fma avx2 avx512f avx512bw avx512vl avx512dq\n"
ORIN = "processor\t: 0\nFeatures\t: fp asimd evtstrm asimdhp asimddp\n"


def test_every_promised_kernel_set_is_found(monkeypatch):
    for variable in ("SMOLVLA_FORCE_ISA", "SMOLVLA_FORCE_KERNEL"):
        monkeypatch.delenv(variable, raising=False)
    found = {row["isa"] for row in _core.kernel_table() if row["supported"]}
    expected = of_this_machine()
    assert found == set(expected)
    assert _core.cpu_info()["isa"] == expected[0]


def test_every_kernel_set_is_chosen_when_it_is_forced(monkeypatch):
    for isa in of_this_machine():
        monkeypatch.setenv("SMOLVLA_FORCE_ISA", isa)
        assert _core.cpu_info()["isa"] == isa


@pytest.mark.parametrize(
    ("environment", "cpuinfo", "expected"),
    [
        ({}, INTEL, ["avx512", "avx2", "scalar"]),
        ({}, INTEL.replace("avx512vl", ""), ["avx2", "scalar"]),
        ({}, INTEL.replace("dq", "dq avx512_bf16"), ["avx512_bf16", "avx512", "avx2", "scalar"]),
        ({}, INTEL.replace("dq", "dq avx512_vnni"), ["avx512_vnni", "avx512", "avx2", "scalar"]),
        ({}, INTEL.replace("avx512vl", "avx_vnni"), ["avx_vnni", "avx2", "scalar"]),
        ({}, INTEL.replace(" fma", ""), ["scalar"]),
        ({}, ORIN, ["neon_dotprod", "neon", "scalar"]),
        (
            {},
            ORIN.replace("asimddp", "asimddp bf16"),
            ["neon_bf16", "neon_dotprod", "neon", "scalar"],
        ),
        (
            {},
            ORIN.replace("asimddp", "asimddp i8mm"),
            ["neon_i8mm", "neon_dotprod", "neon", "scalar"],
        ),
        ({}, "", ["scalar"]),
        ({"SMOLVLA_EXPECT_ISAS": "neon,scalar"}, INTEL, ["neon", "scalar"]),
    ],
)
def test_what_a_cpu_must_run(environment, cpuinfo, expected):
    assert expected_isas(environment, cpuinfo) == expected
