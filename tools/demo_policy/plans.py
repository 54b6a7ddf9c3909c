"""What doing less costs the demo policy: every technique of a Plan alone, and combinations.

    python -m tools.demo_policy.plans POLICY OUT --episodes 50 --workers 2

Each line is one plan in words (docs/plans.md) against the exact one: the same initial states, the
same noise, four actions executed of each chunk. Resumable; OUT/plans.json has everything,
OUT/plans.md the table. --only REGEX plays a part, --plan WORDS a line that is not in the list, and
more --episodes go on from those that were played. With --data (recordings of the simulator, as
tools.demo_policy.generate makes) each line also says how far its actions are from the exact ones on
recorded frames, and what it computes.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smolvla_edge.cli import output
from smolvla_edge.eval.episode import EpisodeResult
from smolvla_edge.eval.runner import Setting, evaluate
from smolvla_edge.eval.sides import Side
from smolvla_edge.eval.summary import compare, summarize
from smolvla_edge.eval.tasks import TASKS
from smolvla_edge.plan import Plan
from smolvla_edge.plan_words import read_plan
from smolvla_edge.source import open_source
from smolvla_edge.tune.judge import Judge, Runner, exact_actions
from smolvla_edge.tune.streams import read_streams
from tools.demo_policy.tables import settings_cells, table

# Everywhere: the rows that are executed alone. Exact, and half of the time.
EXACT = "horizon=4"
CACHE = "cache.threshold"
# The demo's frames are 4 x 4 blocks, so that the neighbours of a changed one are most of a frame.
ALONE = "cache.dilate=0"
TECHNIQUES = (
    *(f"steps={n}" for n in (1, 2, 3, 4)),
    *(f"{CACHE}={value},{ALONE}" for value in (0.005, 0.01, 0.02, 0.03, 0.05)),
    f"steps=2,{CACHE}=0.02,{ALONE}",
    f"{CACHE}=0.02,cache.dilate=1",
    *(f"skip.vision={layer}" for layer in range(6)),
    *(f"steps={n},solver=ab2" for n in (2, 3, 4)),
    "steps=2,schedule=1+0.7+0",
    "steps=2,schedule=1+0.3+0",
    "adaptive=0.99+0.9",
    "stop=0.01",
    "stop=0.03",
    *(f"skip.vlm={layer}" for layer in range(5)),
    *(f"skip.expert={layer}" for layer in range(6)),
    "steps=2,skip.reuse=/0+1+2+3+4+5",
)
FAST = f"steps=2,{CACHE}=0.02,{ALONE},cache.keyframe_every=20,cache.max_age=16"
# A warm start begins from rows that were not executed, so that they have to be computed.
LINES = (
    FAST,
    *(f"{EXACT},{words}" for words in TECHNIQUES),
    *(f"steps={n},warm_start={start}" for n, start in ((2, 0.7), (2, 0.4), (1, 0.4))),
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo_policy.plans", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("policy", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--episodes", type=int, default=50, help="initial states of each task")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", help="lines that match this pattern")
    parser.add_argument("--plan", action="append", default=[], help="one more line")
    parser.add_argument("--data", type=Path, help="recordings to measure the error of actions on")
    parser.add_argument("--streams", type=int, default=20, help="episodes of --data")
    options = parser.parse_args(arguments)
    judge = None if options.data is None else OpenLoop(options.policy, options)
    lines: dict[str, dict[str, Any]] = {}
    exact: Sequence[EpisodeResult] = ()
    most = 0  # episodes of every task: nothing is compared with more than the exact plan played
    for words in dict.fromkeys((EXACT, *LINES, *options.plan)):
        file = options.out / f"{words.replace(',', '_')}.jsonl"
        wanted = words in (EXACT, *options.plan) or re.search(options.only, words)
        # What was played of a line that is not asked for now is shown, not gone on with.
        episodes = max(options.episodes if wanted else 0, _played(file))
        most = most or episodes
        episodes = min(episodes, most)
        if not episodes:
            continue
        jobs = [(task, seed) for task in TASKS for seed in range(episodes)]
        side = Side(str(options.policy), words)
        with output.progress(words, unit_bytes=False) as report:
            results = evaluate(side, jobs, Setting(), workers=options.workers, file=file,
                               progress=report)  # fmt: skip
        exact = exact or results
        lines[words] = _line(side, exact, results)
        if judge is not None:
            lines[words]["open_loop"] = judge(words)
        print(*settings_cells(lines[words]), words, sep="  ", flush=True)
    (options.out / "plans.json").write_text(json.dumps(lines, indent=1) + "\n")
    (options.out / "plans.md").write_text(render(lines))


class OpenLoop:
    """Plans on recorded frames: the error of executed actions, and multiply-adds as a part of the
    exact plan's (of all rows)."""

    def __init__(self, policy: Path, options: argparse.Namespace) -> None:
        source = open_source(policy)
        self._steps = source.model.num_steps
        every = source.contract.n_action_steps
        streams = read_streams(options.data, source.contract, every, options.streams)
        every_stream = (*streams.search, *streams.held_out)
        exact = exact_actions(source, every_stream, 0, every)
        self._judge = Judge(Runner(source), every_stream, exact, 0)
        self._whole = self._judge(Plan.exact(self._steps)).work.total

    def __call__(self, words: str) -> dict[str, float] | None:
        plan = read_plan(words, self._steps)
        if plan.warm_start is not None:  # recordings do not continue from what the plan would do
            return None
        verdict = self._judge(plan)
        return {
            "rms_of_range": verdict.error.rms_of_range,
            "work": verdict.work.total / self._whole,
        }


def _played(file: Path) -> int:
    """How many episodes of every task a result file has."""
    counts = dict.fromkeys(TASKS, 0)
    if not file.is_file():
        return 0
    for line in file.read_text(encoding="utf-8").splitlines()[1:]:
        counts[json.loads(line)["task"]] += 1
    return min(counts.values())


def _line(
    side: Side, exact: Sequence[EpisodeResult], results: Sequence[EpisodeResult]
) -> dict[str, Any]:
    """One plan against the exact one over the episodes that both played."""
    if side.plan == EXACT:
        return {"side": side.facts(), **summarize(results), "against_base": None}
    jobs = {(result.task, result.seed) for result in results}
    base = [result for result in exact if (result.task, result.seed) in jobs]
    return {"side": side.facts(), **summarize(results), "against_base": compare(base, results)}


def render(lines: Mapping[str, Mapping[str, Any]]) -> str:
    head = ["plan", "solved", "less exact (95 % interval)", "only exact / only this", "McNemar p",
            "pairs", "evaluations", "tokens computed", "multiply-adds", "error of actions, rms of "
            "range"]  # fmt: skip
    rows = []
    for words, line in lines.items():
        dirty = line["dirty"]
        rows.append(
            [
                f"`{words}`",
                *settings_cells(line),
                str(line["all"]["n"]),
                f"{line['evaluations']:.1f}",
                "100 %" if dirty is None else f"{100 * dirty:.0f} %",
                *_open_loop_cells(line.get("open_loop")),
            ]
        )
    return table(head, rows)


def _open_loop_cells(found: Mapping[str, float] | None) -> list[str]:
    if found is None:
        return ["-", "-"]
    return [f"{100 * found['work']:.0f} %", f"{100 * found['rms_of_range']:.2f} %"]


if __name__ == "__main__":
    main()
