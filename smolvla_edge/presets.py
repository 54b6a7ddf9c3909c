"""Named plans and what is known about them: `presets.json` beside a bundle.

    {"format": "smolvla-edge presets", "version": 1, "bundle": "<digest>",
     "presets": {"fast": {"plan": {"steps": 4}, "evidence": {...} or null}}}

The file stands outside the bundle's digest and names it: evidence measured on other weights is
refused, not applied. A preset without evidence is usable and says "unmeasured".

`fast` comes with the package, for every policy that has no preset of that name. Its evidence is of
the demo policy (task success) and of a full-size model without training (times), and it says so:
what it costs another policy is to be measured, with `smolvla-edge eval` or `tune`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from smolvla_edge.errors import PlanError
from smolvla_edge.plan import Plan
from smolvla_edge.plan_words import is_words, read_plan
from smolvla_edge.strict_json import read_json_object

PRESETS_FILE = "presets.json"
_FORMAT = "smolvla-edge presets"
_VERSION = 1
EXACT = "exact"


@dataclass(frozen=True)
class Preset:
    """A plan and its evidence: action error, task success, latency, device; None: unmeasured.

    elsewhere: whether the evidence is of another policy.
    """

    name: str
    plan: Plan
    evidence: Mapping[str, Any] | None = None
    elsewhere: bool = False

    def __str__(self) -> str:
        if self.elsewhere:
            return f"{self.name} (measured on another policy)"
        return f"{self.name} ({'measured' if self.evidence else 'unmeasured'})"


def known_of(preset: Preset) -> list[tuple[str, str]]:
    """(fact, words) of a preset's evidence, for people; what it does not hold is left out. Evidence
    is anybody's JSON: nothing in it is relied on."""
    evidence = preset.evidence or {}
    found = []
    for name, key in (("error", "action_error"), ("error on the search", "action_error_on_search")):
        rms = _number(evidence.get(key), "rms_of_range")
        if rms is not None:
            found.append((name, f"{rms:.2%} of the actions' range, rms"))
    median, p90 = (_number(evidence.get("latency_ms"), name) for name in ("median_ms", "p90_ms"))
    speed = _number(evidence, "speedup")
    if median is not None:
        words = [f"{median:.4g} ms (median)"]
        words += [] if p90 is None else [f"{p90:.4g} ms (p90)"]
        words += [] if speed is None else [f"{speed:.2f} times as fast as exact"]
        found.append(("time", f"{', '.join(words)}, on {evidence.get('device')!s:.80}"))
    played = evidence.get("closed_loop")
    gain, low, high = (_number(played, name) for name in ("difference", "low", "high"))
    if gain is not None and low is not None and high is not None:
        found.append(("closed loop", f"{gain:+.1%} against exact ({low:+.1%} to {high:+.1%})"))
    else:
        found.append(("closed loop", "unmeasured"))
    return found


def _number(data: object, name: str) -> float | None:
    value = data.get(name) if isinstance(data, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value)


def read_presets(folder: Path, digest: str) -> dict[str, Preset]:
    """The presets beside the bundle of that digest; none when there is no file. PlanError."""
    path = folder / PRESETS_FILE
    if not path.exists():
        return {}
    data = read_json_object(path, PlanError)
    if data.keys() != {"format", "version", "bundle", "presets"} or data["format"] != _FORMAT:
        raise PlanError(f"{path}: expected format {_FORMAT!r} with version, bundle and presets")
    if data["version"] != _VERSION:
        raise PlanError(f"{path}: expected version {_VERSION}, got {data['version']!r:.40}")
    if data["bundle"] != digest:
        raise PlanError(
            f"{path} belongs to the bundle {data['bundle']!r:.80}, this one is {digest!r}: its "
            "evidence was measured on other weights. Remove the file or measure again"
        )
    if not isinstance(data["presets"], dict):
        raise PlanError(f"{path}: expected an object under 'presets'")
    return {name: _preset(path, name, item) for name, item in data["presets"].items()}


@cache
def built_in_presets() -> Mapping[str, Preset]:
    """Those that come with the package, by name."""
    text = (files("smolvla_edge") / "assets" / PRESETS_FILE).read_text(encoding="utf-8")
    return {
        name: Preset(name, Plan.from_json(item["plan"]), item["evidence"], elsewhere=True)
        for name, item in json.loads(text)["presets"].items()
    }


def write_preset(folder: Path, digest: str, preset: Preset) -> Path:
    """Add a preset to those beside the bundle of that digest, or replace the one of its name.

    Raises PlanError for the name exact, and when the file there is of another bundle or broken.
    """
    if preset.name == EXACT:
        raise PlanError("'exact' is the reference and cannot be a preset's name")
    found = read_presets(folder, digest)
    found[preset.name] = preset
    path = folder / PRESETS_FILE
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "bundle": digest,
        "presets": {
            name: {"plan": item.plan.to_json(), "evidence": item.evidence}
            for name, item in sorted(found.items())
        },
    }
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
    return path


def resolve_plan(plan: Plan | str, num_steps: int, presets: Mapping[str, Preset]) -> Plan:
    """A Plan from what the user gave: a Plan, "exact", a preset's name (of the bundle or built in),
    words, or a file of one (plan_words.py). A built-in one takes no more steps than the checkpoint.
    Raises PlanError."""
    if isinstance(plan, Plan):
        return plan
    if plan == EXACT:
        return Plan.exact(num_steps)
    if isinstance(plan, str) and plan in presets:
        return presets[plan].plan
    if isinstance(plan, str) and plan in built_in_presets():
        shipped = built_in_presets()[plan].plan
        return replace(shipped, steps=min(shipped.steps, num_steps))
    if isinstance(plan, str) and is_words(plan):
        return read_plan(plan, num_steps)
    known = ", ".join([EXACT, *map(str, {**built_in_presets(), **presets}.values())])
    raise PlanError(f"plan must be a Plan or one of: {known}; got {plan!r}")


def _preset(path: Path, name: str, item: object) -> Preset:
    if not isinstance(item, dict) or not {"plan"} <= item.keys() <= {"plan", "evidence"}:
        raise PlanError(f"{path}: preset {name!r}: expected an object of plan and evidence")
    evidence = item.get("evidence")
    if evidence is not None and not isinstance(evidence, dict):
        raise PlanError(f"{path}: preset {name!r}: evidence must be an object or null")
    if name == EXACT:
        raise PlanError(f"{path}: 'exact' is the reference and cannot be a preset's name")
    try:
        return Preset(name, Plan.from_json(item["plan"]), evidence)
    except PlanError as cause:
        raise PlanError(f"{path}: preset {name!r}: {cause}") from cause
