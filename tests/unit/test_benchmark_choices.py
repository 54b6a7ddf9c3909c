"""Which engines are compared with which, what the commands accept, comparing two micro runs."""

from __future__ import annotations

import json
import os

import benchmark_helpers  # noqa: F401  (puts the repository on the path)
import pytest

from benchmarks import end_to_end, engines, inputs
from benchmarks.ceilings import LOOPS, merge
from benchmarks.engines import Engine, choose_engines, rivals_of
from benchmarks.micro import compare
from benchmarks.micro.variants import TIMED_BY, forms, isas
from smolvla_edge import _core
from smolvla_edge.bundle import read_bundle
from smolvla_edge.checkpoint import read_checkpoint


def test_like_is_compared_with_like():
    chosen = choose_engines(["float32", "bfloat16"], rival="lerobot", compiled=["bfloat16"])
    assert [e.name for e in chosen] == [
        "smolvla-edge float32", "smolvla-edge bfloat16", "lerobot float32", "lerobot bfloat16",
        "lerobot bfloat16 compiled",
    ]  # fmt: skip
    rivals = {e.name: [r.name for r in rivals_of(e, chosen)] for e in chosen if e.is_ours}
    assert rivals == {
        "smolvla-edge float32": ["lerobot float32"],
        "smolvla-edge bfloat16": ["lerobot bfloat16", "lerobot bfloat16 compiled"],
    }
    assert engines.reference_of(chosen) == Engine("lerobot", "float32")
    chosen = choose_engines(["bfloat16"], rival="lerobot", compiled=[], recipes=["balanced"])
    assert engines.reference_of(chosen) is None
    assert [e.name for e in chosen] == [
        "smolvla-edge bfloat16", "smolvla-edge balanced", "lerobot bfloat16",
    ]  # fmt: skip
    assert [e.name for e in rivals_of(chosen[1], chosen)] == [
        "smolvla-edge bfloat16", "lerobot bfloat16",
    ]  # fmt: skip
    assert choose_engines(["float32"], rival="none", compiled=[]) == [Engine("ours", "float32")]


def test_a_stand_in_never_goes_by_lerobots_name():
    chosen = choose_engines(["float32", "bfloat16"], rival="reference", compiled=["bfloat16"])
    rivals = [e for e in chosen if not e.is_ours]
    assert [e.name for e in rivals] == [
        "our torch reference float32", "our torch reference bfloat16",
        "our torch reference bfloat16 compiled",
    ]  # fmt: skip
    assert engines.reference_of(chosen) == rivals[0]
    assert rivals_of(Engine("ours", "bfloat16"), chosen) == rivals[1:]


def test_workers_are_started_on_the_device_that_was_asked_for(pristine, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "bundle_of", lambda checkpoint, precision: tmp_path / precision)
    start = engines.Start(2, device="cuda", rival_python="/bin/sh")
    lines = {}
    for engine in choose_engines(["bfloat16"], "lerobot", ["bfloat16"], recipes=["expert4"]):
        command, environment = engines.command_of(engine, pristine, start)
        lines[engine.name] = " ".join(command[1:])
        assert command[command.index("--device") + 1] == "cuda"
        assert engine.compiled == ("--compile" in command) == bool(environment)
        assert engine.is_ours or command[0] == "/bin/sh"
    # A bundle of integers computes what is no integer in bfloat16.
    assert "expert4 --precision bfloat16 --backend native" in lines["smolvla-edge expert4"]


@pytest.mark.parametrize(
    "arguments",
    [["--cameras", "0"], ["--repeats", "0"], ["--valid-tokens", "49"], ["--language", "short"]],
)
def test_impossible_options_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        end_to_end.parse(arguments)
    assert arguments[0].removeprefix("--") in capsys.readouterr().err


def test_options():
    assert end_to_end.parse([]).compile is None
    assert end_to_end.parse(["--compile"]).compile == ["bfloat16"]
    assert end_to_end.parse(["--compile", "float32", "bfloat16"]).compile == ["float32", "bfloat16"]
    options = end_to_end.parse(["--repeats", "3"])
    assert options.retries == 3 and options.frame_size == "640x480"


def test_a_bundle_is_made_once_and_again_when_its_checkpoint_is_newer(
    pristine, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = []
    real = engines.convert
    monkeypatch.setattr(engines, "convert", lambda *a: (made.append(a[2]), real(*a)))
    first = engines.bundle_of(pristine, "float32")
    assert engines.bundle_of(pristine, "float32") == first
    assert made == ["float32"]
    later = first.stat().st_mtime + 10
    os.utime(pristine / "config.json", (later, later))
    engines.bundle_of(pristine, "float32")
    assert made == ["float32", "float32"]
    os.truncate(first / "bundle.json", 10)  # a bundle that cannot be read is made again
    os.utime(pristine / "config.json", (later - 100, later - 100))
    engines.bundle_of(pristine, "float32")
    assert len(made) == 3
    small = engines.bundle_of(pristine, "small")
    assert read_bundle(small).provenance["quantized"]["recipe"] == "small"
    assert made[-1] == "bfloat16"  # which it is made from


def test_a_conversion_that_fails_is_told(tmp_path):
    with pytest.raises(engines.WorkerError, match=r"smolvla-edge convert: .*nowhere"):
        engines.convert(tmp_path / "nowhere", tmp_path / "bundle", "float32")


def test_an_observation_depends_on_its_seed_alone(pristine, tmp_path):
    import numpy as np

    model = read_checkpoint(pristine, allow_unnormalized=True).model
    arrays = []
    for name, seed in (("a", 20), ("b", 20), ("c", 21)):
        inputs.write_inputs(tmp_path / f"{name}.npz", model, 2, "640x480", 48, 12, seed)
        with np.load(tmp_path / f"{name}.npz") as archive:
            arrays.append({key: archive[key] for key in archive.files})
    a, b, c = arrays
    assert a["frame0"].shape == (480, 640, 3) and a["frame0"].dtype == np.uint8
    assert (a["tokens"][12:] == inputs.PAD_ID).all() and int(a["valid_tokens"]) == 12
    for key in a:
        assert np.array_equal(a[key], b[key])
        assert key == "valid_tokens" or not np.array_equal(a[key], c[key])
    assert not np.array_equal(a["frame0"], a["frame1"])


def test_ceilings_keep_the_best_burst_and_the_absence_of_a_loop():
    bursts = [{"float32": 10.0, "bfloat16": None}, {"float32": 12.0, "bfloat16": None}]
    assert merge(bursts) == {**dict.fromkeys(LOOPS), "float32": 12.0}


def test_every_kernel_of_the_dispatch_table_is_timed_by_something():
    ops = {row["op"] for row in _core.kernel_table()}
    assert ops <= TIMED_BY.keys(), f"not timed: {sorted(ops - TIMED_BY.keys())}"
    assert isas("gemm_f32")[-1] == "scalar"
    # Every ISA that multiplies is timed in every precision that it computes.
    assert {isa for isa, _ in forms()} == {*isas("gemm_f32"), *isas("gemm_words")}
    assert ("scalar", "float32") in forms() and ("scalar", "bfloat16") in forms()


def micro_run(medians):
    return {
        "machine_info": {"cpu": {"brand_raw": "Some CPU"}},
        "commit_info": {"id": "abc", "dirty": False},
        "datetime": "2026-01-02",
        "benchmarks": [
            {"name": name, "stats": {"median": us * 1e-6}, "extra_info": {"gflops": 1e3 / us}}
            for name, us in medians.items()
        ],
    }


@pytest.mark.parametrize("slower, status", [("1.3", 0), ("1.1", 1)])
def test_two_micro_runs_are_compared_case_by_case(slower, status, tmp_path, monkeypatch, capsys):
    before, after = tmp_path / "a.json", tmp_path / "b.json"
    before.write_text(json.dumps(micro_run({"up": 100.0, "down": 50.0, "gone": 1.0})))
    after.write_text(json.dumps(micro_run({"up": 90.0, "down": 60.0, "new": 1.0})))
    monkeypatch.setattr("sys.argv", ["x", str(before), str(after), "--slower", slower])
    assert compare.main() == status
    out = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in out[5:7]] == ["down", "up"]
    assert "| down | 50.0 | 60.0 | 1.200 | 20.0 GFLOP/s | 16.7 GFLOP/s |" in out
    assert out[-2:] == ["only in one of them: gone", "only in one of them: new"]


def test_a_file_that_is_no_micro_run_is_refused(tmp_path, monkeypatch, capsys):
    path = tmp_path / "a.json"
    path.write_text("{}")
    monkeypatch.setattr("sys.argv", ["x", str(path), str(path)])
    assert compare.main() == 2
    assert "expected the JSON of pytest" in capsys.readouterr().err
