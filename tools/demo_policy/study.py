"""Everything that docs/evaluation.md publishes, from one command; resumable.

    python -m tools.demo_policy.study POLICY OUT --episodes 50 --workers 2 --data RECORDINGS

Each line is the same paired protocol: the exact policy at its default against one change; rounded
weights against the exact ones that execute as many actions. With --data the bundles of the shipped
recipes, fitted to these recordings, are played too. OUT/study.json has everything,
OUT/study.md the tables; --only adds to what is there.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from smolvla_edge.bundle import is_bundle
from smolvla_edge.checkpoint import read_checkpoint
from smolvla_edge.cli import output
from smolvla_edge.compress.observations import find_observations
from smolvla_edge.compress.quantize import quantize
from smolvla_edge.compress.recipe import RECIPES
from smolvla_edge.eval.episode import EpisodeResult
from smolvla_edge.eval.runner import Setting, evaluate, fingerprint
from smolvla_edge.eval.sides import LEROBOT, OTHER, Side
from smolvla_edge.eval.summary import compare, summarize
from smolvla_edge.eval.tasks import TASKS
from smolvla_edge.names import lerobot_name
from smolvla_edge.safetensors_file import SafetensorsWriter, TensorLayout, read_tensor
from smolvla_edge.source import open_source
from tools.demo_policy import tables
from tools.demo_policy.tables import (
    ACTION_STEPS,
    BITS,
    DENOISE_STEPS,
    EXACT,
    REPLANNED,
    bundle_of,
    denoising,
    executing,
    weights_of,
)

Change = Callable[[str, np.ndarray], np.ndarray]
OBSERVATIONS = 256


def rounded(bits: int) -> Change:
    """Matrices of the three transformers to symmetric integers of `bits`, one scale a row."""

    def change(name: str, weight: np.ndarray) -> np.ndarray:
        part = name.split(".")[0]
        if weight.ndim != 2 or part not in ("vision", "text", "expert") or ".layers." not in name:
            return weight
        most = 2 ** (bits - 1) - 1
        scale = np.maximum(np.abs(weight).max(1, keepdims=True) / most, 1e-12)
        return np.clip(np.round(weight / scale), -most, most) * scale

    return change


def shuffled(name: str, weight: np.ndarray) -> np.ndarray:
    """The same numbers in another order: a policy that knows nothing."""
    random = np.random.default_rng(len(name))
    return random.permutation(weight.ravel()).reshape(weight.shape)


def changed(policy: Path, folder: Path, change: Change) -> Path:
    """A copy of a checkpoint with changed weights, stored in float32."""
    if folder.is_dir():
        return folder
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(policy, partial)
    tensors = read_checkpoint(policy).tensors
    layouts = [TensorLayout(name, "F32", entry.shape) for name, entry in tensors.items()]
    named = [replace(layout, name=lerobot_name(layout.name)) for layout in layouts]
    back = {new.name: old.name for new, old in zip(named, layouts, strict=True)}
    with SafetensorsWriter(partial / "model.safetensors", named, {"format": "pt"}) as writer:
        for layout in writer.order:
            entry = tensors[back[layout.name]]
            values = read_tensor(entry)
            if entry.dtype == "BF16":
                values = (values.astype(np.uint32) << 16).view(np.float32)
            new = change(back[layout.name], values.astype(np.float32))
            writer.write(layout.name, np.ascontiguousarray(new, np.float32))
    partial.rename(folder)
    return folder


def fitted(policy: Path, folder: Path, recipe: str, data: str) -> Path:
    """The bundle that `smolvla-edge quantize --recipe --data` makes of the policy."""
    if not is_bundle(folder):
        source = open_source(policy)
        with output.stages() as report:
            quantize(source, folder, RECIPES[recipe], find_observations(source, data, OBSERVATIONS),
                     progress=report)  # fmt: skip
    return folder


def sides(
    policy: Path, scratch: Path, data: str | None = None
) -> dict[str, tuple[Side, str | None]]:
    """Each published line by its name, with the earlier line that it is compared with."""
    own = Side(str(policy))
    _, count_of_its_own = own.open()
    scratch = scratch / fingerprint(str(policy))[:12]
    scratch.mkdir(parents=True, exist_ok=True)
    found: dict[str, tuple[Side, str | None]] = {EXACT: (own, None)}

    def add(name: str, against: str = EXACT, **changes: Any) -> None:
        found[name] = (replace(own, **changes), against)

    add("blank picture", blank=True)
    add("another task's words", instruction=OTHER)
    add("LeRobot's words", instruction=LEROBOT)
    add("shuffled weights", policy=str(changed(policy, scratch / "x", shuffled)))
    for count in ACTION_STEPS:
        if count != count_of_its_own:
            add(executing(count, count_of_its_own), n_action_steps=count)
    for steps in DENOISE_STEPS:
        add(denoising(steps), plan=f"steps={steps}")
    for recipe in () if data is None else tables.RECIPES:
        folder = fitted(policy, scratch / recipe, recipe, str(data))
        add(bundle_of(recipe), policy=str(folder))
    for bits in BITS:
        copy = str(changed(policy, scratch / f"w{bits}", rounded(bits)))
        for count in REPLANNED:
            base = executing(count, count_of_its_own)
            add(weights_of(bits, count), base, policy=copy, n_action_steps=count)
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo_policy.study", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("policy", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--episodes", type=int, default=50, help="initial states of each task")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data", help="recordings to fit the bundles of the recipes to")
    parser.add_argument("--only", default="", help="lines whose name matches this pattern")
    options = parser.parse_args(arguments)
    jobs = [(name, seed) for name in TASKS for seed in range(options.episodes)]
    planned = sides(options.policy, options.out / "weights", options.data)
    wanted = {name for name in planned if re.search(options.only, name)}
    wanted |= {base for name in wanted if (base := planned[name][1]) is not None} | {EXACT}
    lines: dict[str, dict[str, Any]] = {}
    done: dict[str, list[EpisodeResult]] = {}
    for name, (side, base) in planned.items():
        file = options.out / f"{name.replace(' ', '-').replace(',', '')}.jsonl"
        if name not in wanted and not file.is_file():
            continue
        with output.progress(name, unit_bytes=False) as report:
            played = evaluate(side, jobs, Setting(), workers=options.workers, file=file,
                              progress=report)  # fmt: skip
        done[name] = played
        summary = summarize(played)
        pairs = compare(done[base], played) if base in done else None
        lines[name] = {"side": side.facts(), **summary, "base": base, "against_base": pairs}
        everything = summary["all"]
        words = "" if pairs is None else (
            f"  {pairs['difference']:+.1%} ({pairs['low']:+.1%} to {pairs['high']:+.1%}), "
            f"p = {pairs['p_value']:.2g}")  # fmt: skip
        print(f"{name:32s} {everything['rate']:6.1%} of {everything['n']}{words}", flush=True)
    (options.out / "study.json").write_text(json.dumps(lines, indent=1) + "\n")
    (options.out / "study.md").write_text(tables.render(lines))


if __name__ == "__main__":
    main()
