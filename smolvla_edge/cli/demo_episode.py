"""The demo's episodes: live progress, and what is printed, filmed and drawn of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smolvla_edge.cli import output
from smolvla_edge.errors import CheckpointError, MissingExtraError

if TYPE_CHECKING:
    from smolvla_edge.chunk import ActionChunk
    from smolvla_edge.eval.episode import EpisodeResult
    from smolvla_edge.eval.recording import Recording
    from smolvla_edge.eval.tasks import Task
    from smolvla_edge.policy import Policy

_RECORDED = "demo_frames.npz"
NOT_A_ROBOT = "a simulator: it says nothing about your robot"


def recorded_frames() -> Path:
    """Frames of one demonstration, with states, and the actions that followed each."""
    return Path(str(files("smolvla_edge") / "assets" / _RECORDED))


def run_episodes(
    policy_path: Path,
    task: Task,
    instruction: str | None,
    seed: int,
    episodes: int,
    plan: str,
    device: str,
    threads: int | None,
    out: Path,
    as_json: bool,
) -> dict[str, Any]:
    """Play, print, and write demo.gif and demo.html of the last episode -> a summary."""
    from smolvla_edge.eval.episode import run_episode
    from smolvla_edge.eval.metaworld import STEP_LIMIT, Metaworld
    from smolvla_edge.eval.recording import Recording
    from smolvla_edge.eval.sides import Side

    _check_folder(out)
    with output.busy("loading"):
        policy, n_action_steps = Side(str(policy_path), plan).open(threads, device)
    size = policy.model.resize or (128, 128)
    world = Metaworld(task, *size)
    words = instruction or task.instruction
    played: list[tuple[EpisodeResult, Recording]] = []
    for number in range(episodes):
        recording = Recording(world)
        name = f'seed {seed + number}: "{words}"'
        with output.progress(name, unit_bytes=False) as report:

            def watch(*moment: Any, recording: Recording = recording, report: Any = report) -> None:
                recording.watch(*moment)
                report(len(recording.hand), STEP_LIMIT)

            result = run_episode(
                policy, world, seed + number, n_action_steps, instruction=words, watch=watch
            )
        recording.finish()
        played.append((result, recording))
        verdict = "solved" if result.success else "not solved"
        output.note(f"{name}: {verdict} in {result.steps} steps, {result.chunks} chunks")
    world.close()
    chunks = [chunk for _, recording in played for _, chunk in recording.chunks]
    summary = {
        "task": task.name,
        "instruction": words,
        **_judged(policy, policy_path, plan, n_action_steps),
        "episodes": [result.to_json() for result, _ in played],
        "solved": sum(result.success for result, _ in played),
        **_latency(chunks, n_action_steps),
    }
    summary |= _write(out, played[-1], summary, n_action_steps)
    if not as_json:
        _print(summary, chunks)
    return summary


def run_recorded(
    policy_path: Path, plan: str, device: str, threads: int | None, as_json: bool
) -> dict[str, Any]:
    """Without a simulator: the policy on recorded frames, beside what was done then."""
    from smolvla_edge.eval.metaworld import CAMERA
    from smolvla_edge.eval.sides import Side

    output.note("no simulator: recorded frames instead. The loop is not closed: nothing moves")
    with np.load(recorded_frames(), allow_pickle=False) as data:
        frames, states, actions = data["frames"], data["states"], data["actions"]
        words = str(data["instruction"])
    with output.busy("loading"):
        policy, n_action_steps = Side(str(policy_path), plan).open(threads, device)
    rows = policy.plan.rows(policy.model.chunk_size)
    chunks, errors = [], []
    started = time.perf_counter()
    with output.progress(f'recorded: "{words}"', unit_bytes=False) as report:
        for number, (frame, state) in enumerate(zip(frames, states, strict=True)):
            chunk = policy.predict({CAMERA: frame}, state, words, seed=number)
            chunks.append(chunk)
            errors.append(np.abs(np.clip(chunk.actions, -1, 1) - actions[number, :rows]).mean())
            report(number + 1, len(frames))
    summary = {
        "recorded_frames": len(frames),
        "instruction": words,
        **_judged(policy, policy_path, plan, n_action_steps),
        "mean_action_error": float(np.mean(errors)),
        "seconds": round(time.perf_counter() - started, 2),
        **_latency(chunks, n_action_steps),
    }
    if not as_json:
        _print_recorded(summary, chunks)
    return summary


def _judged(policy: Policy, path: Path, plan: str, n_action_steps: int) -> dict[str, Any]:
    return {
        "policy": str(path),
        "plan": plan,
        "n_action_steps": n_action_steps,
        "steps": policy.plan.steps,
        "horizon": policy.plan.rows(policy.model.chunk_size),
    }


def _executed(summary: Mapping[str, Any]) -> str:
    return (
        f"{summary['n_action_steps']} of {summary['horizon']} actions a chunk, {summary['steps']} "
        "denoise steps"
    )


def _latency(chunks: Sequence[ActionChunk], n_action_steps: int) -> dict[str, Any]:
    from smolvla_edge.eval.metaworld import CONTROL_RATE

    total = statistics.median(chunk.timings["total"] for chunk in chunks)
    last = 1000 * n_action_steps / CONTROL_RATE
    return {
        "chunk_ms": round(total, 2),
        "chunk_lasts_ms": last,
        "control": f"a chunk takes {total:.1f} ms and its {n_action_steps} actions last {last:.0f} "
        f"ms at {CONTROL_RATE:.0f} Hz: "
        + ("it keeps up" if total < last else "the robot would wait"),
    }


def _write(
    out: Path,
    last: tuple[EpisodeResult, Recording],
    summary: Mapping[str, Any],
    n_action_steps: int,
) -> dict[str, Any]:
    from smolvla_edge.eval.demo_page import render
    from smolvla_edge.eval.recording import write_gif
    from smolvla_edge.eval.report import jumps

    result, recording = last
    try:
        with output.busy("writing the film"):
            write_gif(out / "demo.gif", recording.film, summary["instruction"], result)
    except MissingExtraError as missing:
        output.warn(str(missing))
        return {"gif": None, "page": None}
    facts = {
        "task": f"{result.task}, seed {result.seed}",
        "result": f"{'solved' if result.success else 'not solved'} in {result.steps} steps",
        "policy": summary["policy"],
        "plan": summary["plan"],
        "executed": _executed(summary),
        "control rate": summary["control"],
        "jump between actions": jumps(result.seam_jump, result.inner_jump),
    }
    title = f'smolvla-edge demo: "{summary["instruction"]}"'
    page = render(title, facts, out / "demo.gif", recording, result, n_action_steps)
    (out / "demo.html").write_text(page, encoding="utf-8")
    return {"gif": out / "demo.gif", "page": out / "demo.html"}


def _print(summary: Mapping[str, Any], chunks: Sequence[ActionChunk]) -> None:
    facts = [
        ("solved", f"{summary['solved']} of {len(summary['episodes'])}"),
        ("executed", _executed(summary)),
        ("control rate", summary["control"]),
        ("film", summary["gif"] or "none"),
        ("page", summary["page"] or "none"),
    ]
    output.print_facts("demo", facts)
    _print_stages(chunks)
    output.say(f"note: {NOT_A_ROBOT}.")
    output.say("next: smolvla-edge demo --help, and smolvla-edge inspect with a policy of your own")


def _print_recorded(summary: Mapping[str, Any], chunks: Sequence[ActionChunk]) -> None:
    facts = [
        ("task", f'"{summary["instruction"]}"'),
        ("frames", summary["recorded_frames"]),
        ("mean difference", f"{summary['mean_action_error']:.3f} of the range -1 to 1, from what "
                            "the expert did on these frames"),
        ("executed", _executed(summary)),
        ("control rate", summary["control"]),
    ]  # fmt: skip
    output.print_facts("recorded frames", facts)
    _print_stages(chunks)


def _print_stages(chunks: Sequence[ActionChunk]) -> None:
    medians = {
        stage: statistics.median(chunk.timings[stage] for chunk in chunks)
        for stage in chunks[0].timings
    }
    output.print_timings({f"median of {len(chunks)}": medians})


def _check_folder(out: Path) -> None:
    if not out.is_dir():
        raise CheckpointError(f"--out: expected a folder that exists, got {out}")
