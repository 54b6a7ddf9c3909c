"""The search from the command line on a tiny policy, and what it measures with."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from cli_helpers import refused
from needs import needs

with needs("optuna", "matplotlib", "pyarrow", "PIL"):
    from tune_helpers import CAMERA, ROWS, bundle, recording

from smolvla_edge.compress.evidence import ActionError
from smolvla_edge.errors import DatasetError, InputError, MissingExtraError
from smolvla_edge.plan import Cache, Plan
from smolvla_edge.policy import load
from smolvla_edge.presets import Preset, known_of
from smolvla_edge.source import open_source
from smolvla_edge.tune import heat_map
from smolvla_edge.tune.finalists import Candidate, Latency, time_all
from smolvla_edge.tune.judge import Judge, Runner, exact_actions
from smolvla_edge.tune.search import BATCH
from smolvla_edge.tune.streams import read_streams, spread
from smolvla_edge.tune.workers import Bench, Workers

CACHED = Plan(
    steps=4, horizon=ROWS, cache=Cache(0.02, keyframe_every=10, max_age=8, dilate=0, check=0)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tune")
    bundle(path)
    recording(path / "frames")
    return path


@pytest.fixture(scope="module")
def source(folder):
    return open_source(folder / "bundle")


@pytest.fixture(scope="module")
def streams(folder, source):
    return read_streams(folder / "frames", source.contract, ROWS, 4)


@pytest.fixture(scope="module")
def exact(source, streams):
    return exact_actions(source, (*streams.search, *streams.held_out), 0, ROWS, threads=1)


class TestStreams:
    def test_what_a_closed_loop_would_see(self, folder, streams):
        from smolvla_edge.dataset import read_dataset

        assert [s.episode for s in streams.search] == [0, 1, 2]
        assert [s.episode for s in streams.held_out] == [3]
        assert [len(s) for s in (*streams.search, *streams.held_out)] == [3, 3, 3, 4]
        assert [s.first for s in (*streams.search, *streams.held_out)] == [0, 3, 6, 9]
        frames = list(read_dataset(folder / "frames").frames(1))
        for seen, frame in zip(streams.search[1].frames, frames[::ROWS], strict=True):
            assert np.array_equal(seen.images[CAMERA], frame.images[CAMERA])
            assert np.array_equal(seen.state, frame.state) and seen.task == frame.task
        assert "3 streams of 9 frames to search on, 1 of 4 held out" in streams.describe()

    def test_the_digest_is_of_everything(self, folder, source, streams):
        again = read_streams(folder / "frames", source.contract, ROWS, 4)
        other = read_streams(folder / "frames", source.contract, ROWS, 3)
        moved = replace(streams, search=streams.search[:2], held_out=streams.held_out * 2)
        digests = {s.digest() for s in (streams, again, other, moved)}
        assert len(digests) == 3 and streams.evidence()["sha256"] == again.digest()

    def test_few_episodes(self, folder, source, tmp_path):
        two = read_streams(folder / "frames", source.contract, ROWS, 2)
        assert (len(two.search), len(two.held_out)) == (1, 1)
        with pytest.raises(DatasetError, match="expected 2 episodes or more"):
            read_streams(recording(tmp_path / "one", (4,)), source.contract, ROWS, 4)
        assert spread(60, 4) == [0, 20, 39, 59] and spread(3, 9) == [0, 1, 2]

    def test_frames_to_rank_layers_on(self, streams):
        few = streams.observations(4)
        assert len(list(few)) == len(few) == 4 and len(streams.observations(99)) == 9


class TestJudge:
    def test_the_exact_plan_has_no_error(self, source, streams, exact):
        judge = Judge(Runner(source, threads=1), streams.search, exact[:9], 0)
        verdict = judge(Plan(steps=source.model.num_steps, horizon=ROWS))
        assert verdict.error.rms_of_range == 0 and verdict.error.range.shape == (4,)

    def test_each_frame_has_its_noise_and_each_stream_a_new_cache(self, source, streams, exact):
        once = streams.search[0]
        twice = (once, replace(once, first=3))  # a cache that was not reset would know it
        verdict = Judge(Runner(source, threads=1), twice, exact[:6], 0)(CACHED)
        policy = load(source.bundle.path, plan=CACHED, threads=1)
        actions, parts = [], []
        for stream in twice:
            policy.reset()
            for seen in stream.frames:
                seed = len(actions)
                chunk = policy.predict(seen.images, seen.state, seen.task, seed=seed)
                actions.append(chunk.actions)
                parts.append(chunk.provenance["cache"][CAMERA]["dirty"])
        error = ActionError.between(np.stack(actions), exact[:6])
        assert verdict.error.rms_of_range == error.rms_of_range > 0
        assert parts.count(1.0) == 2 and min(parts) < 1  # a keyframe a stream
        whole = Judge(Runner(source, threads=1), twice, exact[:6], 0)(replace(CACHED, cache=None))
        assert verdict.work.vision == pytest.approx(whole.work.vision * np.mean(parts))
        assert verdict.work.flow == whole.work.flow

    def test_processes_give_the_numbers_of_this_one(self, folder, streams, exact):
        bench = Bench(str(folder / "bundle"), streams.search, exact[:9], 0)
        plans = [CACHED, Plan(steps=2, horizon=ROWS), Plan(steps=1, horizon=ROWS)]
        ticks = []
        with Workers(bench, 1, 1, lambda: ticks.append(1)) as here:
            want = list(here.evaluate(plans))
        with Workers(bench, 2, None, lambda: None) as there:
            assert list(there.evaluate(plans)) == want
        assert len(ticks) == 3 * 9 and len(set(want)) == 3


class TestFinalists:
    def test_every_candidate_is_called_once_a_turn(self, source, streams):
        calls = [Candidate(0, plan) for plan in (Plan(steps=4), CACHED, Plan(steps=1), CACHED)]
        found, ran = time_all([source], calls, streams.held_out, 6, 0, threads=1)
        assert [one.calls for one in found] == [8] * 4  # whole streams of 4
        assert all(0 < one.median_ms <= one.p90_ms for one in found)
        assert ran["backend"] == "native" and ran["threads"] == 1

    def test_percentiles(self):
        assert Latency.of([k / 1e3 for k in range(11)]) == Latency(5.0, 9.0, 11)


class TestHeatMap:
    def test_it_shows_what_the_engine_computes(self, source, streams):
        stream = streams.held_out[0]
        seen = heat_map.computed(source, CACHED, stream.frames, CAMERA)
        policy = load(source.bundle.path, plan=CACHED, threads=1)
        for frame, choice in zip(stream.frames, seen.choices, strict=True):
            chunk = policy.predict(frame.images, frame.state, frame.task, seed=0)
            report = chunk.provenance["cache"][CAMERA]
            assert (report["keyframe"], report["why"]) == (choice.keyframe, choice.why)
            assert (report["dirty"], report["oldest"]) == (choice.dirty, choice.oldest)
        share = seen.share()
        assert share.shape == (seen.side, seen.side) and share.max() > share.min() == 1 / 4

    def test_the_change_of_a_block_is_the_torch_models(self, source):
        torch = pytest.importorskip("torch")
        from smolvla_edge.model.token_cache import block_change

        random = np.random.default_rng(0)
        a, b = random.uniform(-1, 1, (2, 3, 64, 64)).astype(np.float32)
        model = source.model
        theirs = block_change(
            torch.from_numpy(a[None]), torch.from_numpy(b[None]), model.patch_size,
            model.scale_factor,
        )  # fmt: skip
        ours = heat_map.block_change(a, b, model)
        assert ours == pytest.approx(theirs.numpy(), rel=1e-6)

    def test_a_picture_of_nothing_is_refused(self, source, streams):
        frames = streams.held_out[0].frames
        for plan, shown in ((Plan(), frames), (CACHED, ())):
            with pytest.raises(InputError, match="a plan with a cache"):
                heat_map.computed(source, plan, shown, CAMERA)
        for more in ({"padding": True}, {"attended": 2}):
            plan = replace(CACHED, cache=replace(CACHED.cache, **more))
            with pytest.raises(InputError, match="what the pixels decide"):
                heat_map.computed(source, plan, frames, CAMERA)

    def test_the_picture_is_the_same_each_time(self, source, streams):
        seen = heat_map.computed(source, CACHED, streams.held_out[0].frames, CAMERA)
        drawn = heat_map.draw(seen, "a title")
        assert drawn == heat_map.draw(seen, "a title")
        assert drawn.startswith("<svg") and "</svg>" in drawn
        assert not re.search(r'(?:href|src)="(?!data:|#)', drawn)


def run(cli, folder, *words, frames="frames", bundle="bundle"):
    return cli(
        "tune", folder / bundle, "--frames", folder / frames, "--trials", 1, "--streams", 4,
        "--calls", 1, "--threads", 1, "--workers", 1, *words,
    )  # fmt: skip


@pytest.fixture
def own(folder, tmp_path):
    """A copy of the bundle for one test to write beside."""
    shutil.copytree(folder / "bundle", tmp_path / "bundle")
    (tmp_path / "frames").symlink_to(folder / "frames")
    return tmp_path


class TestCommand:
    def test_a_preset_with_its_evidence_and_a_page(self, cli, own):
        found = run(cli, own, "--budget", "action_error=50%", "--report", own / "t.html", "--json")
        assert found.code == 0, found.err
        result = found.json
        assert len(result["trials"][0]) == BATCH
        source = open_source(own / "bundle")
        preset = source.presets["fast"]
        chosen = result["finalists"][result["chosen"]]
        assert preset.plan.to_json() == chosen["plan"]
        held = preset.evidence["action_error"]
        assert held == chosen["action_error"] and held["rms_of_range"] <= 0.5
        assert len(held["mean"]) == 4
        assert preset.evidence["action_error_on_search"] == result["action_error_on_search"]
        assert preset.evidence["observations"]["count"] == 9
        assert preset.evidence["observations"]["held_out_count"] == 4
        assert preset.evidence["trials"] == BATCH and preset.evidence["closed_loop"] is None
        assert preset.evidence["latency_ms"]["exact"]["median_ms"] > 0
        exact = result["finalists"][0]
        assert exact["words"] == "exact" and exact["speedup"] == 1
        # What was searched is what a policy under the preset gives.
        assert load(own / "bundle", plan="fast", threads=1).plan == preset.plan
        page = (own / "t.html").read_text()
        assert page.count("<svg") >= 2 and not re.search(r'(?:href|src)="(?!data:|#)', page)
        assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"|<!DOCTYPE[^>]*>', "", page)
        shown = cli("inspect", own / "bundle")
        assert "preset fast" in shown.out and "times as fast as exact" in shown.out
        assert cli("inspect", own / "bundle", "--json").json["presets"][0]["name"] == "fast"

        again = run(cli, own, "--budget", "action_error=50%", "--json").json
        assert again["trials"] == result["trials"] and again["influence"] == result["influence"]
        (own / "bundle.tune.journal").unlink()
        several = run(cli, own, "--only", "steps,cache", "--workers", 2, "--no-write", "--json")
        assert several.code == 0, several.err
        (own / "bundle.tune.journal").unlink()
        one = run(cli, own, "--only", "steps,cache", "--no-write", "--json").json
        assert several.json["trials"] == one["trials"] and one["preset"] is None

    def test_nothing_fits(self, cli, own):
        found = run(cli, own, "--only", "steps", "--budget", "latency=0.0001ms")
        assert found.code == 1, found.err
        assert "nothing fits the budget (90 % of calls within 0.0001 ms). Nearest: " in found.out
        assert not (own / "bundle" / "presets.json").exists()

    def test_other_frames_seeds_and_spaces_are_refused(self, cli, own):
        assert run(cli, own, "--only", "steps", "--no-write").code == 0
        refused(run(cli, own, "--only", "steps", "--seed", 1), "another search", "seed: 0, now 1")
        refused(run(cli, own, "--only", "cache"), "another search", "knobs")
        refused(run(cli, own, "--only", "steps", "--streams", 3), "another search", "frames")

    def test_two_bundles(self, cli, own):
        from smolvla_edge.compress.quantize import quantize
        from smolvla_edge.compress.recipe import RECIPES

        quantize(open_source(own / "bundle"), own / "int8", RECIPES["int8"])
        found = run(cli, own, own / "int8", "--only", "steps", "--budget", "action_error=99%")
        assert found.code == 0, found.err
        assert "int8" in found.out and "bundle" in found.out and "trials" in found.out
        refused(run(cli, own, own / "bundle"), "one of them twice")

    def test_refused_before_the_search(self, cli, folder, own, tmp_path):
        refused(run(cli, own, "--name", "exact"), "cannot be a preset's name")
        refused(run(cli, own, "--budget", "speed=2"), "--budget: expected")
        refused(run(cli, own, "--only", "speed"), "--only: expected")
        refused(run(cli, folder, bundle="checkpoint"), "expected a bundle", "--no-write")
        refused(run(cli, own, "--report", tmp_path / "no" / "t.html"), "a folder that exists")
        refused(run(cli, own, "--storage", tmp_path / "no" / "t"), "does not exist")

    def test_help_teaches(self, cli):
        shown = " ".join(cli("tune", "--help").out.split())
        assert "trials are then not reproducible" in shown and "Examples:" in shown


def test_without_optuna(cli, own, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    refused(run(cli, own), "pip install 'smolvla-edge[tune]'")
    from smolvla_edge.tune.storage import need_optuna

    with pytest.raises(MissingExtraError):
        need_optuna()


def test_importing_costs_nothing():
    """Neither the package, nor its commands, nor what a search computes with."""
    code = (
        "import sys, smolvla_edge, smolvla_edge.cli.app, smolvla_edge.tune.tuning; "
        "print([m for m in ('optuna', 'matplotlib', 'torch', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_words_about_evidence_of_anybody():
    played = {"difference": -0.01, "low": -0.03, "high": 0.01}
    full = {
        "action_error": {"rms_of_range": 0.0123},
        "latency_ms": {"median_ms": 12.5, "p90_ms": 20.0},
        "speedup": 2.0,
        "device": "board",
        "closed_loop": played,
    }
    words = dict(known_of(Preset("a", Plan(), full)))
    assert words["error"] == "1.23% of the actions' range, rms"
    assert words["time"] == "12.5 ms (median), 20 ms (p90), 2.00 times as fast as exact, on board"
    assert words["closed loop"] == "-1.0% against exact (-3.0% to +1.0%)"
    odd = {"action_error": 3, "latency_ms": {"median_ms": "x"}, "closed_loop": [played]}
    assert known_of(Preset("a", Plan(), odd)) == [("closed loop", "unmeasured")]
    assert json.dumps(known_of(Preset("a", Plan(), None)))
