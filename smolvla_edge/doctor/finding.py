"""One line of the doctor's report: what was looked at, how it stands, and what to do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

PASS, WARN, FAIL = "pass", "warn", "fail"
STATUSES = (PASS, WARN, FAIL)
SECTIONS = ("machine", "software", "policy", "backends")


@dataclass(frozen=True)
class Finding:
    """pass: nothing to do.  warn: it works, slower or with a risk.  fail: it does not work.

    `facts` are the raw values that the sentence was made of (JSON types), for programs. A warning
    or failure without a remedy is a mistake of ours: ValueError.
    """

    section: str
    check: str
    status: str
    message: str
    remedy: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.section not in SECTIONS or self.status not in STATUSES:
            raise ValueError(f"no such section or status: {self.section!r}, {self.status!r}")
        if self.status != PASS and not self.remedy:
            raise ValueError(f"{self.check}: a {self.status} needs a remedy")

    def to_json(self) -> dict[str, Any]:
        return {
            "section": self.section,
            "check": self.check,
            "status": self.status,
            "message": self.message,
            "remedy": self.remedy,
            "facts": dict(self.facts),
        }


def counts(findings: Iterable[Finding]) -> dict[str, int]:
    """How many findings of each status, all three present."""
    found = Counter(finding.status for finding in findings)
    return {status: found[status] for status in STATUSES}


def gib(nbytes: float) -> str:
    """Bytes for a sentence about memory or disks."""
    return f"{nbytes / (1 << 30):.1f} GiB" if nbytes >= 1 << 30 else f"{nbytes / (1 << 20):.0f} MiB"
