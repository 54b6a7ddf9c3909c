"""The chosen plan and its neighbours in a simulator, against the exact plan, pair by pair."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from smolvla_edge.eval.report import resolvable
from smolvla_edge.tune.finalists import Finalist
from smolvla_edge.tune.front import nearest
from smolvla_edge.tune.tuning import Tuned

Report = Callable[[str, int, int], None]
_NEIGHBOURS = 2
ENVIRONMENT = "metaworld"


@dataclass(frozen=True)
class Played:
    """One finalist's episodes against those of the exact plan of the first bundle. rates: solved,
    the exact plan's and its own; pairs: what eval.summary.compare says."""

    number: int
    rates: tuple[float, float]
    pairs: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {
            "environment": ENVIRONMENT,
            "finalist": self.number,
            "exact_rate": self.rates[0],
            "rate": self.rates[1],
            **self.pairs,
        }

    def describe(self) -> str:
        """What was seen, and what so few pairs can show."""
        p = self.pairs
        return (
            f"solved {self.rates[1]:.1%}, the exact plan {self.rates[0]:.1%}: "
            f"{p['difference']:+.1%} ({p['low']:+.1%} to {p['high']:+.1%}, McNemar p = "
            f"{p['p_value']:.3g}); {p['pairs']} pairs can show {resolvable(p)}"
        )


def play(found: Tuned, episodes: int, folder: Path, workers: int, report: Report) -> list[Played]:
    """The choice first, then its neighbours on the measured front; `episodes` initial states of
    each of the ten tasks. Results are kept in `folder`, so that the same command goes on.

    Raises what loading the policy or the simulator raises, MissingExtraError without the extra sim.
    """
    from smolvla_edge.eval.metaworld import require_simulator
    from smolvla_edge.eval.runner import Setting, evaluate
    from smolvla_edge.eval.sides import Side
    from smolvla_edge.eval.summary import compare, summarize
    from smolvla_edge.eval.tasks import TASKS

    require_simulator()
    jobs = [(task, seed) for task in TASKS for seed in range(episodes)]

    def results(finalist: Finalist) -> Any:
        side = Side(found.request.bundles[finalist.candidate.source], found.words(finalist))
        name = hashlib.sha256(json.dumps(side.to_json()).encode()).hexdigest()[:16]
        return evaluate(
            side, jobs, Setting(), workers=workers, file=folder / f"{name}.jsonl",
            progress=partial(report, f"playing {side.describe()}"),
        )  # fmt: skip

    chosen = found.choice.number
    exact = results(found.finalists[0])
    played = []
    for number in (chosen, *nearest(found.finalists, chosen, _NEIGHBOURS)):
        mine = results(found.finalists[number])
        rates = tuple(summarize(side)["all"]["rate"] for side in (exact, mine))
        played.append(Played(number, (rates[0], rates[1]), compare(exact, mine)))
    return played
