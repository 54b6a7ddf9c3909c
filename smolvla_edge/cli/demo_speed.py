"""`smolvla-edge demo --size full`: a call of SmolVLA's own size on this machine."""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smolvla_edge.cli import output
from smolvla_edge.cli.loading import load_policy
from smolvla_edge.cli.run import chunk_json, provenance_facts
from smolvla_edge.errors import CheckpointError, MissingExtraError, SmolVLAEdgeError
from smolvla_edge.paths import user_cache
from smolvla_edge.version import __version__

if TYPE_CHECKING:
    from smolvla_edge.chunk import ActionChunk
    from smolvla_edge.policy import Policy

UNTRAINED = "untrained weights: speed and plumbing are real, the behaviour is not"
PHOTOGRAPHS = ("coffee.ppm", "cat.ppm")
TASK = "grab the cup"  # 13 tokens with its newline: as long as a usual instruction
_WARM_CALLS = {"full": 5, "tiny": 20}
_NEEDED_BYTES = {"full": 1_000_000_000, "tiny": 10_000_000}


def run_speed(
    size: str,
    *,
    plot: Path | None,
    seed: int,
    device: str,
    threads: int | None,
    keep: Path | None,
    packed_cache: bool,
    as_json: bool,
) -> None:
    """Photographs in, actions out, with untrained weights; `size` is "full" or "tiny"."""
    output.note(f"smolvla-edge {__version__} demo, {UNTRAINED}")
    picture = _plot_target(plot)
    folder = _checkpoint(size, keep)
    if packed_cache:
        folder = _bundle(folder)
    started = time.perf_counter()
    policy = load_policy(folder, device=device, threads=threads, packed_cache=packed_cache)
    load_seconds = time.perf_counter() - started
    images = _photographs(policy)
    state = _rest_state(policy)
    calls = _calls(policy, images, state, seed, _WARM_CALLS[size])
    first, warm = calls[0], calls[1:]
    medians = {
        stage: statistics.median(call.timings[stage] for call in warm) for stage in first.timings
    }
    if picture is not None:
        from smolvla_edge.plot import plot_chunk

        title = f"smolvla-edge demo ({size}), {UNTRAINED}"
        plot_chunk(first.actions, picture, title=title, executed=policy.contract.n_action_steps)
    same = all(np.array_equal(call.actions, first.actions) for call in warm)
    summary = {
        "note": UNTRAINED,
        "checkpoint": folder,
        "load_seconds": round(load_seconds, 3),
        "first_call_ms": dict(first.timings),
        "warm_median_ms": medians,
        "warm_calls": len(warm),
        "same_bytes_every_call": same,
        "peak_memory_mib": round(_peak_memory_mib()),
        "plot": picture,
    }
    if as_json:
        output.emit_json({**summary, **chunk_json(first)})
    else:
        _print(summary, first)


def _plot_target(plot: Path | None) -> Path | None:
    """Where to draw; without --plot a missing matplotlib or folder is no reason to stop."""
    from smolvla_edge.plot import check_plot_path, require_matplotlib

    try:
        require_matplotlib()
    except MissingExtraError:
        if plot is not None:
            raise
        output.note("no plot: it needs matplotlib, pip install 'smolvla-edge[viz]'")
        return None
    target = check_plot_path(plot or Path("actions.png"))
    if not os.access(target.parent, os.W_OK):
        if plot is not None:
            raise CheckpointError(f"{target}: the folder {target.parent} cannot be written to")
        output.note("no plot: this folder cannot be written to; name a file with --plot")
        return None
    return target


def cache_folder() -> Path:
    """Where the demo's checkpoint is kept for the next time."""
    return user_cache() / "demo"


def _checkpoint(size: str, keep: Path | None) -> Path:
    """The demo's checkpoint folder, made when it is not there yet."""
    # The version is in the name: another one may make other weights.
    folder = cache_folder() / f"{size}-{__version__}" if keep is None else keep
    if folder.is_dir() and any(folder.iterdir()):
        _check_ours(folder, size)
        output.note(f"using the checkpoint in {folder}")
        return folder
    from smolvla_edge.synthetic import make_checkpoint

    _check_space(folder, _NEEDED_BYTES[size])
    started = time.perf_counter()
    with output.progress(f"making a checkpoint in {folder}") as report:
        try:
            make_checkpoint(folder, size, progress=report)
        except OSError as cause:
            if not (folder / "config.json").is_file():  # else another demo was faster: use its
                raise CheckpointError(
                    f"{folder}: the checkpoint cannot be written: {cause.strerror or cause}. "
                    "Name another place with --keep DIR"
                ) from cause
    output.note(f"made {folder} in {time.perf_counter() - started:.1f} s")
    return folder


def _bundle(checkpoint: Path) -> Path:
    """The checkpoint as a bundle beside it, made when it is not there yet."""
    from smolvla_edge.bundle import is_bundle
    from smolvla_edge.bundle_writer import write_bundle
    from smolvla_edge.checkpoint import read_checkpoint

    folder = checkpoint.with_name(f"{checkpoint.name}-bundle")
    if not is_bundle(folder):
        with output.progress(f"making a bundle in {folder}") as report:
            write_bundle(read_checkpoint(checkpoint), folder, report)
    return folder


def _check_ours(folder: Path, size: str) -> None:
    """Refuse a folder that holds something else, or a damaged checkpoint."""
    from smolvla_edge.checkpoint import read_checkpoint

    try:
        read_checkpoint(folder)
    except SmolVLAEdgeError as cause:
        raise CheckpointError(
            f"{folder} holds no checkpoint of this demo ({size}): {cause}. Remove it with: "
            f"rm -r {shlex.quote(str(folder))}"
        ) from cause


def _check_space(folder: Path, needed: int) -> None:
    parent = next(p for p in folder.absolute().parents if p.is_dir())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise CheckpointError(
            f"the demo's checkpoint needs {needed // 10**6} MB, {parent} has {free // 10**6} MB "
            "free. Free some, name another place with --keep DIR, or try --size tiny"
        )


def _photographs(policy: Policy) -> dict[str, np.ndarray]:
    """The two photographs that come with the package, one for each camera in turn."""
    from smolvla_edge.image_file import read_image

    frames = []
    for name in PHOTOGRAPHS:
        with as_file(files("smolvla_edge") / "assets" / name) as path:
            frames.append(read_image(path))
    cameras = policy.contract.robot_names().values()
    return {name: frames[i % len(frames)] for i, name in enumerate(cameras)}


def _rest_state(policy: Policy) -> np.ndarray:
    """The state in the middle of the statistics: where a robot of this policy would rest."""
    from smolvla_edge.preprocess import unnormalize

    middle = np.zeros(policy.contract.state_dim, np.float32)
    return unnormalize(middle, policy.contract.state)


def _calls(
    policy: Policy,
    images: Mapping[str, np.ndarray],
    state: np.ndarray,
    seed: int,
    warm: int,
) -> list[ActionChunk]:
    """The first call and `warm` more, all of the same observation and seed."""
    calls = []
    with output.progress("predicting", unit_bytes=False) as report:
        for i in range(1 + warm):
            report(i, 1 + warm)
            calls.append(policy.predict(images, state, TASK, seed=seed))
    return calls


def _peak_memory_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)  # bytes there, KiB here


def _print(summary: Mapping[str, Any], first: ActionChunk) -> None:
    warm = f"warm (median of {summary['warm_calls']})"
    output.print_actions(first.actions, "robot units")
    output.print_timings({"first call": summary["first_call_ms"], warm: summary["warm_median_ms"]})
    facts = [
        ("task", repr(TASK)),
        *provenance_facts(first.provenance),
        ("load time", f"{summary['load_seconds']} s"),
        ("peak memory", f"{summary['peak_memory_mib']} MiB of this process"),
        ("same bytes each call", "yes" if summary["same_bytes_every_call"] else "NO"),
        ("plot", summary["plot"] or "none"),
    ]
    output.print_facts("computed", facts)
    output.say(f"note: {UNTRAINED}.")
    output.say("next: smolvla-edge run --help, and smolvla-edge inspect with a policy of your own")
