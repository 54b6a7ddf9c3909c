"""`smolvla-edge verify --against`: what a bundle's actions differ from those of another policy."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from smolvla_edge.cli import output
from smolvla_edge.errors import BundleError, InputError

if TYPE_CHECKING:
    from smolvla_edge.bundle import Bundle
    from smolvla_edge.source import Source

EXACT = "exact"
LEAST = 300  # observations that a preset's evidence rests on
# Added to the seed: calibration counts noises and synthetic observations from its own seed on.
_APART = 1_000_000


def verify_against(
    path: str,
    against: str,
    data: str | None,
    count: int,
    seed: int,
    threads: int | None,
    save: bool,
    as_json: bool,
    *,
    rename: Mapping[str, str] | None = None,
    allow_unnormalized: bool = False,
) -> None:
    from smolvla_edge.compress.evidence import measure
    from smolvla_edge.compress.observations import SYNTHETIC, find_observations
    from smolvla_edge.healed import least_plan
    from smolvla_edge.presets import Preset, write_preset
    from smolvla_edge.source import open_source

    if data is None:
        raise InputError(
            "--against needs observations: --frames with a LeRobotDataset folder, a folder with "
            "observations.json, or the word synthetic"
        )
    candidate = open_source(path, allow_unnormalized=allow_unnormalized)
    bundle = candidate.bundle
    if save and bundle is None:
        raise InputError(f"--save writes beside a bundle, and {path} is a checkpoint")
    if save and count < LEAST:
        raise InputError(f"--save: expected {LEAST} observations or more, got {count}")
    if save and data == SYNTHETIC:
        raise InputError("--save: evidence is of recorded observations, not of synthetic ones")
    if against == EXACT:
        reference = _source_of(candidate, allow_unnormalized)
    else:
        reference = open_source(against, allow_unnormalized=allow_unnormalized)
    seen = find_observations(candidate, data, count, rename=rename, seed=seed + _APART)
    with output.stages() as report:
        found = measure(
            candidate, reference, seen, seed=seed + _APART, threads=threads, progress=report
        )
    if save and bundle is not None:
        name = _preset_name(bundle)
        preset = Preset(name, least_plan(candidate), found)
        found = {
            **found,
            "preset": name,
            "file": str(write_preset(bundle.path, bundle.digest, preset)),
        }
    if as_json:
        output.emit_json(found)
        return
    _print(found)


def _source_of(candidate: Source, allow_unnormalized: bool) -> Source:
    """What a quantised bundle was made from, under the bundle's own contract (statistics, camera
    names, tokenizer): the weights alone differ. Raises BundleError when it is not there, or not
    what it was."""
    from smolvla_edge.compress.quantize import refuse_codes
    from smolvla_edge.source import open_source

    bundle = candidate.bundle
    if bundle is None or not bundle.codes:
        raise BundleError(
            f"--against {EXACT}: expected a quantised bundle, whose source is recorded; name the "
            "checkpoint or bundle to compare with"
        )
    made_from = str(bundle.provenance.get("source"))
    if not os.path.isdir(made_from):  # written down as it was named; perhaps beside the bundle
        made_from = str(bundle.path.parent / made_from)
    if not os.path.isdir(made_from):
        raise BundleError(
            f"--against {EXACT}: the bundle was made from {made_from}, which is not there; name "
            "the checkpoint or bundle to compare with"
        )
    found = open_source(made_from, allow_unnormalized=allow_unnormalized)
    digest = None if found.bundle is None else found.bundle.digest
    if digest != bundle.provenance.get("bundle"):
        raise BundleError(
            f"--against {EXACT}: {made_from} is not what the bundle was made from (its digest is "
            f"{digest}, expected {bundle.provenance.get('bundle')}): quantise again, or name it "
            "in place of exact to compare with it all the same"
        )
    refuse_codes(found)
    return replace(found, contract=candidate.contract, tokenizer_file=candidate.tokenizer_file)


def _preset_name(bundle: Bundle) -> str:
    quantized = bundle.provenance.get("quantized")
    name = quantized.get("recipe") if isinstance(quantized, Mapping) else None
    return name if isinstance(name, str) else bundle.compute


def _print(found: Mapping[str, Any]) -> None:
    error, own = found["action_error"], found["reference_as_it_runs"]
    seen = found["observations"]
    columns = ["action", "mean", "p95", "max", "range", "p95 of range"]
    rows = []
    for action, values in enumerate(
        zip(error["mean"], error["p95"], error["max"], error["range"], strict=True)
    ):
        mean, p95, largest, spread = values
        share = f"{p95 / spread:.2%}" if spread else "-"
        row = [str(action), f"{mean:.3g}", f"{p95:.3g}", f"{largest:.3g}", f"{spread:.4g}", share]
        rows.append(row if own is None else [*row, f"{own['p95'][action]:.3g}"])
    if own is not None:
        columns.append("bfloat16's p95")
    output.print_table(
        f"actions against {found['reference']['name']} in float32, robot units",
        [(column, "right") for column in columns],
        rows,
    )
    noise = found["signal_to_noise_db"]
    stages = [(stage, _decibels(value)) for stage, value in noise["stages"].items()]
    stages += [("x after each step", " ".join(map(_decibels, noise["denoise_steps"])))]
    output.print_facts("signal to noise, dB", stages)
    own_rms = "" if own is None else f" (the reference's own bfloat16: {own['rms_of_range']:.3%})"
    output.say(
        f"all actions: rms {error['rms_of_range']:.3%} of their range{own_rms}", style="bold"
    )
    output.say(f"{seen['count']} observations, {seen['kind']}; closed loop: "
               f"{'measured' if found['closed_loop'] else 'unmeasured'}")  # fmt: skip
    if seen["kind"] == "synthetic":
        output.warn("measured on synthetic noise: good for trying, not for a robot")
    elif seen["fitted_to_it"]:
        output.warn("the weights were fitted to observations of the same recording: measure on "
                    "another one")  # fmt: skip
    if "file" in found:
        output.note(f"kept as the evidence of preset {found['preset']!r} in {found['file']}")


def _decibels(value: float | None) -> str:
    return "same" if value is None else f"{value:.1f}"
