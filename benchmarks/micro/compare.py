"""Two runs of the microbenchmarks side by side, case by case.

    pytest benchmarks/micro --benchmark-json=before.json     at one commit
    pytest benchmarks/micro --benchmark-json=after.json      at another, same machine
    python -m benchmarks.micro.compare before.json after.json [--slower 1.05]

Exits with 1 when a case of the second run takes more than `--slower` times as long.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.report import table


def load(path: Path) -> dict[str, Any]:
    """A JSON of pytest-benchmark. Raises ValueError when it is something else."""
    run = json.loads(path.read_text())
    if "benchmarks" not in run or "machine_info" not in run:
        raise ValueError(f"{path}: expected the JSON of pytest --benchmark-json")
    return dict(run)


def cases(run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """name -> {"us", "rate"}: median microseconds, and the rate with its unit."""
    found = {}
    for entry in run["benchmarks"]:
        info = entry["extra_info"]
        unit = "GFLOP/s" if "gflops" in info else "GB/s"
        value = info.get("gflops", info.get("gbps"))
        found[entry["name"]] = {
            "us": entry["stats"]["median"] * 1e6,
            "rate": "-" if value is None else f"{value:.1f} {unit}",
        }
    return found


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """Cases of both runs, the one that slowed down most first. ratio: after over before."""
    old, new = cases(before), cases(after)
    rows = [
        {"name": name, "before": old[name], "after": new[name],
         "ratio": new[name]["us"] / old[name]["us"]}
        for name in old.keys() & new.keys()
    ]  # fmt: skip
    return sorted(rows, key=lambda row: (-row["ratio"], row["name"]))


def _origin(run: dict[str, Any]) -> str:
    commit = run.get("commit_info", {})
    dirty = " with changes" if commit.get("dirty") else ""
    cpu = run["machine_info"].get("cpu", {}).get("brand_raw", "?")
    return f"{str(commit.get('id', '?'))[:12]}{dirty}, {run.get('datetime', '?')}, {cpu}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--slower", type=float, default=1.05, help="ratio to fail at")
    options = parser.parse_args()
    try:
        before, after = load(options.before), load(options.after)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = compare(before, after)
    if not rows:
        print("error: the two runs have no case in common", file=sys.stderr)
        return 2
    print(f"before: {_origin(before)}\nafter:  {_origin(after)}\n")
    print(
        table(
            ["case", "before us", "after us", "after / before", "before", "after"],
            [
                [
                    row["name"],
                    f"{row['before']['us']:.1f}",
                    f"{row['after']['us']:.1f}",
                    f"{row['ratio']:.3f}",
                    row["before"]["rate"],
                    row["after"]["rate"],
                ]
                for row in rows
            ],
        )
    )
    for name in sorted(cases(before).keys() ^ cases(after).keys()):
        print(f"only in one of them: {name}")
    return 1 if rows[0]["ratio"] > options.slower else 0


if __name__ == "__main__":
    sys.exit(main())
