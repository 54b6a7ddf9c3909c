"""A made-up machine: files under a folder instead of /proc, /sys and /etc."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from smolvla_edge.doctor.finding import FAIL, WARN, Finding
from smolvla_edge.doctor.process import Outcome
from smolvla_edge.doctor.tree import Tree


def tree(folder: Path, files: Mapping[str, str]) -> Tree:
    """{"/proc/meminfo": text} below `folder`."""
    for path, text in files.items():
        target = folder / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return Tree(folder)


def programs(answers: Mapping[str, Outcome]):
    """A stand-in for `process.run`: an answer by the program's name, absent for all others."""

    def run(command: Sequence[str]) -> Outcome:
        name = next((key for key in answers if any(key in word for word in command)), None)
        return answers[name] if name else Outcome(problem="not installed", absent=True)

    return run


def stands(finding: Finding, status: str, *words: str) -> None:
    """The finding has this status, says these words, and a remedy when one is due."""
    text = f"{finding.message} -> {finding.remedy}"
    assert finding.status == status, text
    assert bool(finding.remedy) == (status in (WARN, FAIL)), text
    for word in words:
        assert word in text, (word, text)
