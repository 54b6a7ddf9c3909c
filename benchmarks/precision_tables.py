"""The tables of a precision result: one a case, one row a stage."""

from __future__ import annotations

from typing import Any

from benchmarks.precision_stages import ACTIONS
from benchmarks.report import Section, table


def _value(value: float) -> str:
    return f"{value:.2e}" if value < 1e-2 else f"{value:.4f}" if value < 10 else f"{value:.1f}"


def within(row: dict[str, Any], limit: float) -> bool:
    """Whether both our largest and our mean error are at most `limit` times the rival's."""
    return bool(row["ratio_max"] <= limit and row["ratio_mean"] <= limit)


def sections(run: dict[str, Any]) -> list[Section]:
    header = ["stage", "largest value", "ours: max", "mean", "LeRobot: max", "mean"]
    header += ["ratio of max", "of mean", f"at most {run['limit']}"]
    found = []
    for result in run["results"]:
        rows = [
            [
                row["stage"],
                f"{row['largest']:.3g}",
                _value(row["ours_max"]),
                _value(row["ours_mean"]),
                _value(row["rival_max"]),
                _value(row["rival_mean"]),
                f"{row['ratio_max']:.2f}",
                f"{row['ratio_mean']:.2f}",
                "yes" if within(row, run["limit"]) else "**no**",
            ]
            for row in result["stages"]
        ]
        actions = next(row for row in result["stages"] if row["stage"] == ACTIONS)
        reached = "within" if within(actions, run["limit"]) else "**beyond**"
        about = (
            f"Actions: {reached} {run['limit']} times LeRobot's own error. Absolute errors of each "
            "side's bfloat16 run against its float32 run; actions in normalised units."
        )
        if "float32_gap" in result:
            about += (
                f" The float32 actions of the two differ by {result['float32_gap']:.1e} at most."
            )
        found.append(Section(result["case"], table(header, rows), about))
    return found
