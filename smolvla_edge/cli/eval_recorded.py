"""`smolvla-edge eval --dataset`: action error over recorded frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smolvla_edge.cli import output
from smolvla_edge.errors import DatasetError


def evaluate_recorded(
    sides: Sequence[Any],
    folder: Path,
    episodes: int,
    every: int,
    cameras: Mapping[str, str],
    first_seed: int,
) -> dict[str, Any]:
    """Predict at recorded moments under one or two settings, -> the errors."""
    from smolvla_edge.dataset import read_dataset
    from smolvla_edge.eval.open_loop import Moments, error_table, predict_all

    dataset = read_dataset(folder)
    if not dataset.episodes:
        raise DatasetError(f"{folder}: expected recorded episodes, found none")
    # Spread over the dataset, which is often sorted by task.
    count = min(episodes, len(dataset.episodes))
    chosen = np.linspace(0, len(dataset.episodes) - 1, count).round().astype(int)
    moments = Moments(dataset, sorted(set(chosen.tolist())), every)
    found, rows = [], []
    for side in sides:
        rows.append(side.facts())
        with output.progress(f"predicting, {side.describe()}", unit_bytes=False) as report:
            chunks = predict_all(side, moments, cameras=cameras, seed=first_seed, progress=report)
        found.append(chunks)
        rows[-1]["against_recorded"] = error_table(
            chunks, chunks.recorded, rows[-1]["n_action_steps"]
        )
        rows[-1]["latency_ms"] = round(float(np.median(chunks.latency_ms)), 2)
    result: dict[str, Any] = {
        "dataset": str(folder),
        "episodes": [int(e) for e in moments.episodes],
        "every": every,
        "sides": rows,
        "between_sides": None,
    }
    if len(found) == 2:
        executed = min(row["n_action_steps"] for row in rows)
        result["between_sides"] = error_table(found[1], found[0].predicted, executed)
    return result


def print_recorded(result: Mapping[str, Any]) -> None:
    columns = [("action", "right"), ("rms", "right"), ("mean", "right"), ("max", "right"),
               ("rms of range", "right")]  # fmt: skip
    tables = [(f"{_name(s)} against the recording", s["against_recorded"]) for s in result["sides"]]
    if result["between_sides"] is not None:
        tables.append(("second against first, same noise", result["between_sides"]))
    for title, table in tables:
        part = table["executed"]
        lines = [
            [str(i), *(f"{part[k][i]:.5g}" for k in ("rms", "mean", "max")),
             f"{part['rms_of_range'][i]:.2%}"]
            for i in range(len(part["rms"]))
        ]  # fmt: skip
        output.print_table(
            f"{title}: robot units, first {part['rows']} actions of {table['moments']} chunks",
            columns,
            lines,
        )


def _name(side: Mapping[str, Any]) -> str:
    words = f"{side['policy']}, {side['plan']} ({side['steps']} denoise steps, horizon "
    words += f"{side['horizon']})"
    return words + (", blank picture" if side["blank"] else "")
