"""The table of a stream result: means, ratios to the rivals and to the exact plan."""

from __future__ import annotations

from typing import Any

from benchmarks.report import Section, milliseconds, number, table

STAGES = ("preprocess", "vision", "prefix", "flow")


def sections(run: dict[str, Any]) -> list[Section]:
    found = {result["engine"]: result for result in run["results"]}
    exact = next(iter(found.values()))
    rivals = [found[name] for name in run["rivals"]]
    rows = []
    for name, result in found.items():
        ours = name not in run["rivals"]
        rows.append(
            [
                f"`{name}`" if ours else name,
                *(milliseconds(result[key]) for key in ("mean_ms", "p50_ms", "p90_ms")),
                " / ".join(milliseconds(result["stages_ms"].get(s, 0.0)) for s in STAGES),
                "-" if result["dirty"] is None else f"{result['dirty']:.0%}",
                _times(exact, result) if ours else "",
                *(_times(rival, result) if ours else "" for rival in rivals),
                number((run["differences"] or {}).get(name), 3),
            ]
        )
    header = ["plan", "mean ms", "p50", "p90", " / ".join(STAGES), "computed", "x `exact`"]
    header += [f"x {name}" for name in run["rivals"]]
    about = (
        "Stages are means too. *computed*: tokens of the pictures, the mean over cameras that are "
        "cached. Ratios are of means: how many times longer the other takes."
    )
    if run["differences"]:
        header.append("largest difference of actions")
        about += (
            f" The last column: normalised actions against {run['rivals'][0]}'s on the frames of "
            "both. The weights are untrained, so that it says how much is computed otherwise, and "
            "nothing about success."
        )
    else:
        rows = [row[:-1] for row in rows]
    return [Section("", table(header, rows), about)]


def _times(rival: dict[str, Any], ours: dict[str, Any]) -> str:
    return f"{rival['mean_ms'] / ours['mean_ms']:.2f}"
