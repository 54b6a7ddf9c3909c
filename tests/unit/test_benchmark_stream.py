"""Plans over a stream of frames: what is timed, left out and compared. No time is looked at."""

from __future__ import annotations

import functools
import json

import benchmark_helpers  # noqa: F401  (puts the repository on the path)
import numpy as np
import pytest
from eval_helpers import need_simulator

from benchmarks import frames, report, stream

PLANS = ["steps=2", "cache.threshold=0.02,cache.dilate=0,cache.check=0"]


@pytest.fixture
def streams(monkeypatch):
    """Two episodes of three frames: nothing moves in the first, everything in the second."""
    random = np.random.default_rng(0)
    still = np.repeat(random.integers(0, 256, (1, 48, 64, 3), np.uint8), 3, 0)
    moving = random.integers(0, 256, (3, 48, 64, 3), np.uint8)
    made = [dict.fromkeys(frames.CAMERAS, still), dict.fromkeys(frames.CAMERAS, moving)]
    monkeypatch.setattr(stream, "closed_loop", lambda kept, every: made)


def test_every_frame_meets_every_plan_and_streams_begin_anew(
    streams, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "out.json"
    words = f"--config tiny --rival-every 0 --patience 0 --threads 1 --no-save --json {path}"
    monkeypatch.setattr("sys.argv", ["x", *words.split(), "--cameras", "2", "--plan", *PLANS])
    assert stream.main() == 0
    run = json.loads(path.read_text())
    found = {result["engine"]: result for result in run["results"]}
    assert list(found) == ["exact", *PLANS]
    assert all(result["samples"] == 6 for result in found.values())
    assert found["exact"]["dirty"] is None
    # A keyframe and twice nothing, then three frames that are all new; of both cameras.
    assert found[PLANS[1]]["dirty"] == pytest.approx(4 / 6)
    markdown = capsys.readouterr().out
    assert f"| `{PLANS[1]}` |" in markdown and "| 67% | " in markdown
    assert "largest difference" not in markdown and "6 of 3 episodes" in markdown


def call(ms, foreign=0.0, frame=0, actions=((0.0, 0.5),), dirty=(None,)):
    return {"episode": 0, "frame": frame, "ms": ms, "stages": {"vision": ms / 2}, "dirty": dirty,
            "actions": actions, "foreign": foreign, "stolen": 0.0}  # fmt: skip


def test_disturbed_calls_are_left_out_while_most_remain():
    found = stream.summarise("x", [call(10.0), call(20.0), call(90.0, foreign=0.4)])
    assert (found["mean_ms"], found["samples_used"], found["disturbed_used"]) == (15.0, 2, False)
    found = stream.summarise("x", [call(10.0), call(20.0, 0.4), call(90.0, 0.4)])
    assert (found["mean_ms"], found["samples_used"], found["disturbed_used"]) == (40.0, 3, True)


def test_actions_are_compared_on_frames_that_both_saw():
    ours = [call(1.0, frame=0), call(1.0, frame=1, actions=((9.0, 9.0),))]
    rival = [call(1.0, frame=0, actions=((0.0, 0.75),))]
    assert stream.differences({"ours": ours, "rival": rival}, "rival") == {
        "ours": 0.25, "rival": 0.0
    }  # fmt: skip


def test_ratios_are_of_means():
    entries = {"exact": [call(100.0)], "steps=2": [call(50.0), call(30.0, dirty=(0.25,))],
               "lerobot float32": [call(400.0)]}  # fmt: skip
    results = [
        {"cameras": 1, "language": "", **stream.summarise(name, calls)}
        for name, calls in entries.items()
    ]
    differences = dict.fromkeys(entries, 0.0) | {"steps=2": 0.125}
    run = {"format": report.FORMAT, "kind": "stream", "results": results,
           "rivals": ["lerobot float32"], "differences": differences}  # fmt: skip
    (section,) = report.sections_of(run)
    cells = [line.split(" | ") for line in section.table.splitlines()]
    assert cells[0][6:8] == ["x `exact`", "x lerobot float32"]
    assert cells[3][0].strip("| ") == "`steps=2`" and cells[3][1] == "40.0"
    assert cells[3][5:] == ["25%", "2.50", "10.00", "0.125 |"]
    assert cells[4][6:8] == ["", ""]


def test_streams_are_what_a_closed_loop_shows_and_are_kept(tmp_path, monkeypatch):
    need_simulator()
    from smolvla_edge.eval import episode

    short = functools.partial(episode.run_episode, step_limit=10)
    monkeypatch.setattr(episode, "run_episode", short)
    monkeypatch.setattr(frames, "EPISODES", (("push", 3),))
    (found,) = frames.closed_loop(tmp_path / "kept", 4)
    static, gripper = found["static"], found["gripper"]
    assert static.shape == gripper.shape == (3, 480, 640, 3)
    moved = [(np.abs(np.diff(x.astype(int), axis=0)) > 5).mean() for x in (static, gripper)]
    assert 0 < moved[0] < moved[1]
    monkeypatch.setattr(frames, "_played", None)  # not played again
    (again,) = frames.closed_loop(tmp_path / "kept", 4)
    assert (again["static"] == static).all()
