"""The presets that come with the package, from what was measured.

    python -m tools.demo_policy.preset STUDY/plans.json benchmarks/results/*-stream-?-camera.json

Writes smolvla_edge/assets/presets.json: `fast` is the plan of plans.py's FAST, its evidence the
paired episodes of the demo policy and the times over a closed loop's frames. No number is typed.
"""

from __future__ import annotations

import argparse
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from smolvla_edge.eval.runner import fingerprint
from smolvla_edge.plan_words import read_plan
from smolvla_edge.presets import PRESETS_FILE
from tools.demo_policy.plans import FAST

_PAIRS = ("pairs", "difference", "low", "high", "only_first", "only_second", "p_value")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo_policy.preset", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("plans", type=Path, help="plans.json of tools.demo_policy.plans")
    parser.add_argument("streams", type=Path, nargs="+", help="results of benchmarks.stream")
    options = parser.parse_args(arguments)
    line = json.loads(options.plans.read_text())[FAST]
    plan = read_plan(FAST, line["side"]["steps"])
    evidence = {
        "closed_loop": closed_loop(line),
        "latency": [latency(json.loads(file.read_text())) for file in options.streams],
    }
    content = {
        "about": "Measured on the demo policy and on untrained weights of the full size; what a "
        "plan costs another policy is not known from this.",
        "presets": {"fast": {"plan": plan.to_json(), "evidence": evidence}},
    }
    target = Path(str(files("smolvla_edge") / "assets" / PRESETS_FILE))
    target.write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote {target}")


def closed_loop(line: dict[str, Any]) -> dict[str, Any]:
    """How often the plan solved tasks, against the exact one on the same episodes."""
    side = line["side"]
    policy = Path(side["policy"])
    return {
        "policy": policy.name,
        "sha256": fingerprint(str(policy)),
        "n_action_steps": side["n_action_steps"],
        "rate": line["all"]["rate"],
        "dirty": line["dirty"],
        "against_exact": {name: line["against_base"][name] for name in _PAIRS},
    }


def latency(run: dict[str, Any]) -> dict[str, Any]:
    """The mean time of a chunk, and the times of the others in the same run."""
    found = {result["engine"]: result for result in run["results"]}
    ours = found.get("fast") or found[FAST]
    return {
        "device": run["conditions"]["cpu"]["model"],
        "cameras": ours["cameras"],
        "threads": run["settings"]["threads"],
        "weights": run["settings"]["ours"],
        **{name: ours[name] for name in ("mean_ms", "p50_ms", "p90_ms", "dirty")},
        "times_faster_than": {
            name: found[name]["mean_ms"] / ours["mean_ms"] for name in ("exact", *run["rivals"])
        },
        "command": run["conditions"]["command"],
    }


if __name__ == "__main__":
    main()
