"""Jetson boards: release and power mode, which alone changes times threefold."""

from __future__ import annotations

import re
from dataclasses import dataclass

from smolvla_edge.doctor.finding import PASS, WARN, Finding
from smolvla_edge.doctor.process import Run
from smolvla_edge.doctor.tree import Tree

_JETPACK = {32: "4", 34: "5", 35: "5", 36: "6", 38: "7"}


@dataclass(frozen=True)
class JetsonFacts:
    """release: "36.4.3" of Linux for Tegra. mode: nvpmodel's name of it, None when not known."""

    release: str
    jetpack: str | None
    mode: str | None


def read_jetson(tree: Tree, run: Run) -> JetsonFacts | None:
    """None on anything that is no Jetson."""
    text = tree.text("/etc/nv_tegra_release")
    if text is None:
        return None
    match = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", text)
    major = int(match[1]) if match else None
    mode = re.search(r"NV Power Mode:\s*(\S+)", run(["nvpmodel", "-q"]).out)
    return JetsonFacts(
        release=f"{match[1]}.{match[2]}" if match else text[:40],
        jetpack=_JETPACK.get(major) if major is not None else None,
        mode=mode[1] if mode else None,
    )


def check_jetson(f: JetsonFacts) -> Finding:
    facts = {"release": f.release, "jetpack": f.jetpack, "power_mode": f.mode}
    pack = f"JetPack {f.jetpack}" if f.jetpack else "a JetPack not known here"
    message = f"Linux for Tegra {f.release} ({pack}), power mode {f.mode or 'not readable'}"
    if f.mode is None:
        return Finding(
            "machine",
            "jetson",
            WARN,
            f"{message}: clocks may be cut to a half or less",
            "ask with rights: sudo nvpmodel -q, and choose the fastest: sudo nvpmodel -m 0",
            facts,
        )
    if not f.mode.upper().startswith("MAXN"):
        return Finding(
            "machine",
            "jetson",
            WARN,
            f"{message}: cores are off or clocks are cut in this mode",
            "if power and cooling allow: sudo nvpmodel -m 0 && sudo jetson_clocks (modes: sudo "
            "nvpmodel -p --verbose)",
            facts,
        )
    return Finding("machine", "jetson", PASS, message, facts=facts)
