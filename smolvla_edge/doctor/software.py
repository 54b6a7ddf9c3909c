"""Operating system, C library and Python."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass

from smolvla_edge.doctor.finding import FAIL, PASS, WARN, Finding

OLDEST_PYTHON = (3, 10)
NEWEST_PYTHON = (3, 13)  # that the tests were run on


@dataclass(frozen=True)
class SoftwareFacts:
    system: str
    kernel: str
    machine: str
    libc: str  # "glibc 2.36"; empty when it is another one
    python: tuple[int, int, int]
    bits: int


def read_software() -> SoftwareFacts:
    try:
        libc = " ".join(platform.libc_ver()).strip()
    except OSError:  # reads the interpreter's own file
        libc = ""
    return SoftwareFacts(
        system=platform.system(),
        kernel=platform.release(),
        machine=platform.machine(),
        libc=libc,
        python=(sys.version_info[0], sys.version_info[1], sys.version_info[2]),
        bits=64 if sys.maxsize > 1 << 32 else 32,
    )


def check_system(f: SoftwareFacts) -> Finding:
    facts = {"system": f.system, "kernel": f.kernel, "machine": f.machine, "libc": f.libc}
    message = f"{f.system} {f.kernel}, {f.machine}, {f.libc or 'a C library other than glibc'}"
    if f.system != "Linux":
        return Finding(
            "software",
            "system",
            WARN,
            f"{message}: only Linux is built and tested",
            "what is below may work; docs/limits.md says what was tried",
            facts,
        )
    if not f.libc.startswith("glibc"):
        return Finding(
            "software",
            "system",
            WARN,
            f"{message}: only glibc is tested",
            "use a distribution with glibc (Debian, Ubuntu, Fedora) if anything below fails",
            facts,
        )
    return Finding("software", "system", PASS, message, facts=facts)


def check_python(f: SoftwareFacts) -> Finding:
    version = ".".join(map(str, f.python))
    facts = {"python": version, "bits": f.bits}
    oldest, newest = (".".join(map(str, pair)) for pair in (OLDEST_PYTHON, NEWEST_PYTHON))
    message = f"Python {version}, {f.bits} bits"
    if f.python[:2] < OLDEST_PYTHON or f.bits != 64:
        return Finding(
            "software",
            "python",
            FAIL,
            message,
            f"install a 64-bit Python from {oldest} to {newest} and make a new environment with it",
            facts,
        )
    if f.python[:2] > NEWEST_PYTHON:
        return Finding(
            "software",
            "python",
            WARN,
            f"{message}: newer than what was tested",
            f"if something fails, try it with Python {newest}",
            facts,
        )
    return Finding("software", "python", PASS, message, facts=facts)
