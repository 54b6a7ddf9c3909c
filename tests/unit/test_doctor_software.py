"""System, Python, packages; and that the doctor's table of packages is the project's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from doctor_helpers import stands

from smolvla_edge.doctor import packages
from smolvla_edge.doctor.finding import FAIL, PASS, SECTIONS, WARN, Finding, counts, gib
from smolvla_edge.doctor.software import (
    NEWEST_PYTHON,
    OLDEST_PYTHON,
    SoftwareFacts,
    check_python,
    check_system,
    read_software,
)

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def facts(**changes) -> SoftwareFacts:
    usual = {
        "system": "Linux",
        "kernel": "6.1",
        "machine": "x86_64",
        "libc": "glibc 2.36",
        "python": (3, 11, 7),
        "bits": 64,
    }
    return SoftwareFacts(**{**usual, **changes})


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({}, PASS, ["Linux 6.1", "glibc 2.36"]),
        ({"libc": ""}, WARN, ["other than glibc"]),
        ({"libc": "musl 1.2"}, WARN, ["musl"]),
        ({"system": "Darwin", "libc": ""}, WARN, ["only Linux"]),
    ],
)
def test_system(changes, status, words):
    stands(check_system(facts(**changes)), status, *words)


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({}, PASS, ["3.11.7", "64 bits"]),
        ({"python": (3, 10, 0)}, PASS, []),
        ({"python": (3, 13, 5)}, PASS, []),
        ({"python": (3, 14, 0)}, WARN, ["newer than what was tested", "3.13"]),
        ({"python": (3, 9, 18)}, FAIL, ["3.10 to 3.13"]),
        ({"bits": 32}, FAIL, ["64-bit"]),
    ],
)
def test_python(changes, status, words):
    stands(check_python(facts(**changes)), status, *words)


def test_reading_this_machine():
    assert check_python(read_software()).status in (PASS, WARN)
    assert check_system(read_software()).message


VERSIONS = {**packages.REQUIRED, "torch": "2.13.0+cpu", "matplotlib": "3.11.2"}


def test_required_packages():
    stands(packages.check_required(VERSIONS.get), PASS, "numpy 1.24")
    older = {**VERSIONS, "numpy": "1.23.5"}
    stands(packages.check_required(older.get), FAIL, "numpy 1.23.5", "1.24", "pip install")
    missing = {**VERSIONS, "tokenizers": None}
    stands(packages.check_required(missing.get), FAIL, "tokenizers missing")


def test_extras():
    stands(packages.check_extra("torch", VERSIONS.get), PASS, "torch 2.13.0+cpu")
    stands(packages.check_extra("hub", VERSIONS.get), PASS, "pip install 'smolvla-edge[hub]'")
    stands(packages.check_extra("viz", VERSIONS.get), WARN, "pillow missing", "smolvla-edge[viz]")
    old = {"torch": "1.13.1"}
    stands(packages.check_extra("torch", old.get), WARN, "torch 1.13.1", "2.2")
    exact = {"metaworld": "3.0.0", "mujoco": "3.8.1", "gymnasium": "1.4.0", "packaging": "26.3",
             "pillow": "13.0.0"}  # fmt: skip
    stands(packages.check_extra("sim", exact.get), PASS, "mujoco 3.8.1")
    newer = exact | {"mujoco": "4.0.0"}
    stands(packages.check_extra("sim", newer.get), WARN, "mujoco 4.0.0", "exactly 3.8.1")
    odd = {"torch": "unknown"}
    stands(packages.check_extra("torch", odd.get), WARN, "torch unknown")


def test_versions_of_installed_packages():
    assert packages.installed_version("numpy")
    assert packages.installed_version("no-such-package-as-this") is None


@pytest.mark.skipif(not PYPROJECT.is_file(), reason="the tests run outside of the source folder")
def test_the_tables_are_the_projects():
    text = PYPROJECT.read_text()

    def table(words: str) -> dict[str, str]:
        found = re.findall(r'"([\w-]+)([>=]=)([\d.]+)"', words)
        assert {name for name, sign, _ in found if sign == "=="} <= set(packages.EXACT)
        return {name: version for name, _, version in found}

    required = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert required and table(required[1]) == packages.REQUIRED
    block = re.search(r"^\[project.optional-dependencies\]\n(.*?)\n\n", text, re.M | re.DOTALL)
    assert block
    lines = [line for line in block[1].splitlines() if not line.startswith("#")]
    extras = {line.split(" = ")[0]: table(line) for line in lines}
    del extras["test"]  # a developer's
    assert extras == packages.EXTRAS
    assert f'requires-python = ">={".".join(map(str, OLDEST_PYTHON))}"' in text
    assert f"Python :: {'.'.join(map(str, NEWEST_PYTHON))}" in text
    later = f"Python :: 3.{NEWEST_PYTHON[1] + 1}"
    assert later not in text


class TestFinding:
    def test_a_warning_without_a_remedy_is_refused(self):
        for status in (WARN, FAIL):
            with pytest.raises(ValueError, match="needs a remedy"):
                Finding("machine", "x", status, "it hurts")

    def test_unknown_words_are_refused(self):
        with pytest.raises(ValueError, match="no such"):
            Finding("moon", "x", PASS, "")
        with pytest.raises(ValueError, match="no such"):
            Finding("machine", "x", "maybe", "")

    def test_counts_and_json(self):
        findings = [Finding("machine", "x", PASS, "m"), Finding("machine", "y", FAIL, "m", "r")]
        assert counts(findings) == {PASS: 1, WARN: 0, FAIL: 1}
        assert findings[1].to_json() == {
            "section": "machine",
            "check": "y",
            "status": FAIL,
            "message": "m",
            "remedy": "r",
            "facts": {},
        }
        assert SECTIONS == ("machine", "software", "policy", "backends")

    def test_sizes(self):
        assert [gib(1 << 30), gib(3 << 29), gib(5 << 20), gib(0)] == [
            "1.0 GiB",
            "1.5 GiB",
            "5 MiB",
            "0 MiB",
        ]
