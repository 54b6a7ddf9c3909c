"""The tables of docs/evaluation.md from study.json: names of the lines, and Markdown of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tools.demo_policy.recipe import CHUNK

EXACT = "exact"
# A line that asks for what the checkpoint does by itself is EXACT.
ACTION_STEPS = (1, 2, 4, 5, 8, 10, CHUNK)
DENOISE_STEPS = (1, 2, 4)
RECIPES = ("int8", "balanced", "small")
BITS = (8, 4, 3, 2)
REPLANNED = (4, 8, CHUNK)
_EYES_AND_WORDS = ("blank picture", "another task's words", "LeRobot's words", "shuffled weights")

Lines = Mapping[str, Mapping[str, Any]]


def executing(count: int, own: int) -> str:
    """own: how many actions the checkpoint executes by itself."""
    return EXACT if count == own else f"n_action_steps {count}"


def denoising(steps: int) -> str:
    return f"denoise steps {steps}"


def bundle_of(recipe: str) -> str:
    return f"bundle {recipe}"


def weights_of(bits: int, count: int) -> str:
    return f"{bits}-bit weights, n_action_steps {count}"


def render(lines: Lines) -> str:
    """Those tables whose lines are there."""
    parts = [by_task(lines)]
    side = lines[EXACT]["side"]
    own = side["n_action_steps"]
    default = f"{EXACT}: n_action_steps {own}, {side['steps']} denoise steps"
    settings = [executing(n, own) for n in ACTION_STEPS if n != own]
    settings += [*map(denoising, DENOISE_STEPS), *map(bundle_of, RECIPES)]
    parts.append(settings_table(lines, default, [name for name in settings if name in lines]))
    needed = {executing(n, own) for n in REPLANNED}
    needed |= {weights_of(bits, n) for bits in BITS for n in REPLANNED}
    if needed <= lines.keys():
        parts.append(bits_table(lines, own))
    return "\n".join(parts)


def by_task(lines: Lines) -> str:
    shown = [name for name in _EYES_AND_WORDS if name in lines]
    exact = lines[EXACT]
    head = ["task", "solved", "95 % interval", "mean steps", *shown]
    rows = []
    for task in [*exact["tasks"], "mean"]:
        row = _row(exact, task)
        cells = [
            task,
            f"{row['successes']} of {row['n']}",
            _interval(row),
            "-" if row["mean_steps"] is None else f"{row['mean_steps']:.0f}",
        ]
        if task == "mean":
            cells[1] = f"**{row['rate']:.1%}** ({cells[1]})"
        rows.append([*cells, *(_percent(_row(lines[name], task)) for name in shown)])
    return table(head, rows)


def settings_table(lines: Lines, default: str, names: list[str]) -> str:
    head = ["setting", "solved", "less exact (95 % interval)", "only exact / only this",
            "McNemar p", "ms a chunk, p50", "jump at seams / inside"]  # fmt: skip
    rows = []
    for name in [EXACT, *names]:
        line = lines[name]
        rows.append([default if name == EXACT else name, *settings_cells(line),
                     f"{line['latency_ms']['p50']:.1f}",
                     f"{_jump(line['seam_jump'])} / {_jump(line['inner_jump'])}"])  # fmt: skip
    return table(head, rows)


def settings_cells(line: Mapping[str, Any]) -> list[str]:
    """Solved, the difference, who solved alone, p: of a line and its base."""
    pairs = line["against_base"]
    if pairs is None:
        return [_percent(line["all"]), "", "", ""]
    alone = f"{pairs['only_first']} / {pairs['only_second']}"
    return [_percent(line["all"]), _difference(pairs), alone, f"{pairs['p_value']:.2g}"]


def bits_table(lines: Lines, own: int) -> str:
    rows = [["as shipped", *(_percent(lines[executing(n, own)]["all"]) for n in REPLANNED)]]
    for bits in BITS:
        cells = []
        for count in REPLANNED:
            line = lines[weights_of(bits, count)]
            cells.append(f"{_percent(line['all'])}, {_difference(line['against_base'])}")
        rows.append([f"{bits} bits", *cells])
    return table(["weights", *(f"planned anew every {count} actions" for count in REPLANNED)], rows)


def _jump(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _row(line: Mapping[str, Any], task: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = line["all"] if task == "mean" else line["tasks"][task]
    return found


def _percent(row: Mapping[str, Any]) -> str:
    return f"{row['rate']:.1%}" if row["n"] > 100 else f"{row['rate']:.0%}"


def _interval(row: Mapping[str, Any]) -> str:
    return f"{row['low']:.0%} to {row['high']:.0%}"


def _difference(pairs: Mapping[str, Any]) -> str:
    return f"{pairs['difference']:+.1%} ({pairs['low']:+.1%} to {pairs['high']:+.1%})"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"
