"""The picture of docs/performance.md: what each plan saves, against what it does to actions and to
task success.

    python -m tools.demo_policy.plans_picture OUT/plans.json docs/pictures/plans.svg
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smolvla_edge.plot import COLOURS, check_plot_path, require_matplotlib
from tools.demo_policy.plans import EXACT, FAST

KINDS = {
    "steps": "fewer steps",
    "ab2": "Adams-Bashforth",
    "schedule": "unequal steps",
    "adaptive, stop": "adaptive, stop",
    "cache": "token cache",
    "skip": "a layer skipped",
    "reuse": "layers reused",
    "fast": "fast: 2 steps, token cache",
}
_WORDS = {"adaptive": "adaptive, stop", "stop": "adaptive, stop", "schedule": "schedule",
          "solver": "ab2", "skip.reuse": "reuse", "cache.threshold": "cache"}  # fmt: skip


def kind_of(words: str) -> str:
    """Which of KINDS a line is."""
    if words == FAST:
        return "fast"
    names = [word.partition("=")[0] for word in words.split(",")]
    for name in names:
        if name in _WORDS:
            return _WORDS[name]
    return "skip" if any(name.startswith("skip.") for name in names) else "steps"


def draw(lines: Mapping[str, Any], path: Path) -> None:
    """Two panels over the multiply-adds of the exact plan: error of actions, success."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "smolvla-edge"
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 8), sharex=True, layout="constrained")
    colours = dict(zip(KINDS, COLOURS, strict=False))
    for words, line in lines.items():
        found = line.get("open_loop")
        if found is None:  # nothing was recorded that a warm start could begin from
            continue
        kind = kind_of(words)
        colour = "#000000" if words == EXACT else colours[kind]
        mark = "*" if kind == "fast" else "s" if words == EXACT else "o"
        size = 14 if kind == "fast" else 6
        work, pairs = 100 * found["work"], line["against_base"]
        above.plot(work, 100 * found["rms_of_range"], mark, color=colour, markersize=size)
        gain, low, high = (100 * pairs[n] if pairs else 0 for n in ("difference", "low", "high"))
        below.errorbar(
            work, gain, [[gain - low], [high - gain]], fmt=mark, color=colour, markersize=size,
            capsize=2, linewidth=1,
        )  # fmt: skip
    used = {kind_of(w) for w, line in lines.items() if line.get("open_loop") and w != EXACT}
    above.plot([], [], "s", color="#000000", label="exact (4 rows)")
    for kind in (kind for kind in KINDS if kind in used):
        above.plot([], [], "*" if kind == "fast" else "o", color=colours[kind], label=KINDS[kind])
    above.legend(fontsize=8)
    above.set_ylabel("error of executed actions,\n% of their range (rms)")
    below.set_ylabel("tasks solved, points\nbeyond the exact plan (95 %)")
    below.set_xlabel("multiply-adds of a chunk, % of the exact plan's of all rows")
    below.axhline(0, color="#888888", linewidth=0.8)
    below.set_yscale("symlog", linthresh=5)
    below.set_yticks(
        [-50, -20, -10, -5, -2, 0, 2, 5], ["-50", "-20", "-10", "-5", "-2", "0", "2", "5"]
    )
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo_policy.plans_picture", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("plans", type=Path, help="plans.json, measured with --data")
    parser.add_argument("out", type=Path)
    options = parser.parse_args(arguments)
    require_matplotlib()
    check_plot_path(options.out)
    draw(json.loads(options.plans.read_text()), options.out)


if __name__ == "__main__":
    main()
