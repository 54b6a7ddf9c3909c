"""Which kernel sets this machine must be able to run, by what the kernel says of its CPU.

    python tests/unit/expected_isas.py          prints them, best first, separated by commas

A second opinion beside the core's own detection: the tests fail when a set is promised here and
the core does not run it, instead of testing less in silence. SMOLVLA_EXPECT_ISAS=a,b promises by
hand, for emulated CPUs, whose /proc/cpuinfo is the host's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "SMOLVLA_EXPECT_ISAS"

_AVX512 = frozenset({"fma", "avx512f", "avx512bw", "avx512vl", "avx512dq"})
# Best first: what each set needs, in the words of /proc/cpuinfo.
_NEEDS = {
    "avx512_bf16": _AVX512 | {"avx512_bf16"},
    "avx512_vnni": _AVX512 | {"avx512_vnni"},
    "avx512": _AVX512,
    "avx_vnni": frozenset({"avx2", "fma", "avx_vnni"}),
    "avx2": frozenset({"avx2", "fma"}),
    "neon_bf16": frozenset({"asimd", "bf16"}),
    "neon_i8mm": frozenset({"asimd", "i8mm"}),
    "neon_dotprod": frozenset({"asimd", "asimddp"}),
    "neon": frozenset({"asimd"}),
    "scalar": frozenset(),
}


def expected_isas(environment: Mapping[str, str], cpuinfo: str) -> list[str]:
    promised = environment.get(VARIABLE)
    if promised:
        return promised.split(",")
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, flags=re.MULTILINE)
    features = set(line[1].split()) if line else set()
    return [isa for isa, needs in _NEEDS.items() if needs <= features]


def of_this_machine() -> list[str]:
    return expected_isas(os.environ, Path("/proc/cpuinfo").read_text(encoding="utf-8"))


if __name__ == "__main__":
    print(",".join(of_this_machine()))
