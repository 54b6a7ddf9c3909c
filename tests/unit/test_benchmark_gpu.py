"""The GPU benchmarks without a GPU: verdicts, tables, sets of operands, and a trial on the CPU."""

from __future__ import annotations

import json

import benchmark_helpers  # noqa: F401  (puts the repository on the path)
import pytest
from test_benchmark_report import CONDITIONS, end_to_end, engine, entry, rows_of

from benchmarks import report
from benchmarks.gpu import end_to_end_tables, machine, micro_tables


def timing(us, how="graph"):
    return {"median_us": us, "p90_us": us * 1.1, "replays": 20, "calls": 32, "how": how, "why": ""}


def contestant(case, op, by, precision, cold, warm=None, **extra):
    ours = by.startswith("smolvla-edge")
    found = {"case": case, "op": op, "shape": "s", "calls_in_chunk": 1, "mflop": 100.0, "mb": 2.0,
             "by": by, "precision": precision, "ours": ours, "error": 1e-3}  # fmt: skip
    if cold:
        found |= {"cold": timing(cold), "warm": timing(warm or cold)}
    return found | extra


def micro():
    return {
        "format": 2, "kind": "gpu_micro", "title": "Single operations on Some GPU", "about": "A.",
        "conditions": CONDITIONS, "settings": {}, "engines": {},
        "gpu": {"name": "Some GPU", "sm": 90, "smi": {"driver_version": "580"}, "smi_after": {}},
        "ceilings": {"gbps": 1000.0, "float32": 10.0, "bfloat16": 100.0, "int8": 200.0},
        "results": [
            contestant("up", "linear", "cuBLAS bfloat16", "bfloat16", 8.0, 4.0),
            contestant("up", "linear", "smolvla-edge", "bfloat16", 10.0, 4.0),
            contestant("up", "linear", "torch._int_mm", "int8", None, skipped="too few rows"),
            contestant("up", "linear", "smolvla-edge", "int8", 5.0),
            contestant("att", "attention", "SDPA flash", "bfloat16", 9.0),
            contestant("att", "attention", "SDPA math", "bfloat16", 20.0),
            contestant("att", "attention", "smolvla-edge", "bfloat16", 10.0),
            contestant("step", "step", "cuBLAS bfloat16", "bfloat16", 500.0),
            contestant("step", "step", "smolvla-edge bfloat16", "bfloat16", 400.0),
            contestant("step", "step", "smolvla-edge W4A16", "int4", 390.0),
            contestant("norm", "rows", "smolvla-edge", "", 4.0, mflop=0.0),
        ],
        "noise": [], "quiet": True,
    }  # fmt: skip


def verdicts(run):
    return {(v.case, v.aim.precision): v for v in micro_tables.judge(run["results"])}


def test_ours_is_judged_against_the_best_rival_of_its_aim():
    found = verdicts(micro())
    up = found["up", "bfloat16"]
    assert (up.ratio, up.text) == (0.8, "**missed**")
    assert found["up", "int8"].text == "no rival"
    attention = found["att", "bfloat16"]
    assert attention.rival["by"] == "SDPA flash"
    assert (attention.ratio, attention.text) == (0.9, "reached")
    step = found["step", "int4"]  # our own bfloat16 is the faster of the two
    assert step.rival["by"] == "smolvla-edge bfloat16" and step.text == "reached"
    assert len(found) == 4


def test_a_wrong_result_has_no_time_and_a_missing_one_is_said():
    run = micro()
    run["results"][1]["error"] = 0.5
    assert verdicts(run)["up", "bfloat16"].text == "**not measured**"
    run["results"][1] = contestant("up", "linear", "smolvla-edge", "bfloat16", None, failed="boom")
    assert verdicts(run)["up", "bfloat16"].text == "**not measured**"
    run = micro()
    run["results"][4]["error"] = float("inf")  # a rival that is wrong is none
    assert verdicts(run)["att", "bfloat16"].rival["by"] == "SDPA math"


def test_the_microbenchmarks_report():
    text = report.render(micro())
    rows = rows_of(text, "Against the aims")
    assert rows[1][-4:] == ["0.80", "1.00", "0.85", "**missed**"]
    linear = rows_of(text, "Linear layers")
    # 2 MB in 10 us are 200 GB/s, a fifth of the copy; 100 MFLOP are 10 TFLOP/s of 100.
    assert linear[2][5:9] == ["200", "20%", "10.0", "10%"]
    assert linear[3][3] == "too few rows"
    assert rows_of(text, "Operations on rows")[1][7:9] == ["-", "-"]
    assert "driver_version 580" in text and "copy | 1000 GB/s" in text


def gpu_run():
    run = end_to_end()
    extra = {"device_mib": 900.0, "allocated_mib": None, "cameras": 2, "language": "longest"}
    weights = engine(info={"weights_bytes": 330e6}, device_mib=800.0)
    names = {
        "smolvla-edge expert4": ("expert4", 4.0),
        "smolvla-edge balanced": ("balanced", 6.0),
        "our torch reference bfloat16": ("bfloat16", 100.0),
        "our torch reference bfloat16 compiled": ("bfloat16", 10.0),
    }
    run["engines"] = {name: weights if "edge" in name else engine() for name in names}
    run["results"] = [
        entry(name, precision, ms, **extra) | {"p50_ms": ms, "p99_ms": ms * 1.05}
        for name, (precision, ms) in names.items()
    ]
    run["prepared"] = [{"engine": "our torch reference bfloat16 compiled", "cameras": 2,
                        "language": "longest", "seconds": 301.0, "peak_rss_mib": 1.0,
                        "cudagraph_skips": 3}]  # fmt: skip
    run["gpu"] = {"name": "NVIDIA H200", "sm": 90, "driver": "580", "smi": {"pstate": "P0"}}
    run["ratios"] = []
    return run


def test_the_aims_of_a_gpu_run_one_by_one():
    rows = end_to_end_tables.aims(gpu_run()).table.splitlines()[2:]
    cells = [[c.strip() for c in row.strip("|").split("|")] for row in rows]
    got = {row[0]: row[1:] for row in cells}
    compiled, eager = (row for row in cells if "times as fast" in row[0])
    assert compiled[1:] == ["2", "2.50", "reached"] and "reference bfloat16 compiled" in compiled[0]
    assert eager[1:] == ["30", "25.00", "**missed**"]
    assert got["smolvla-edge expert4, longest: whole policy, ms"] == ["5", "4.0", "reached"]
    assert got["smolvla-edge balanced, longest: whole policy, ms"] == ["5", "6.0", "**missed**"]
    assert got["smolvla-edge balanced, longest: p99 over median"] == ["1.1", "1.050", "reached"]
    assert got["balanced: weights on the device, MB"] == ["340", "330.0", "reached"]


def test_a_compiled_rival_without_graphs_is_pointed_at():
    assert "gave up CUDA graphs 3 times" in end_to_end_tables.aims(gpu_run()).about


def test_the_end_to_end_report_of_a_gpu_has_memory_and_no_cpu_loop():
    text = report.render(gpu_run())
    assert rows_of(text, "Memory of the GPU")[1] == [
        "smolvla-edge expert4", "800", "900", "-", "330.0",
    ]  # fmt: skip
    assert "register-resident" not in text and "cuBLAS's product" in text
    assert rows_of(text, "The GPU")[-1] == ["nvidia-smi: pstate", "P0"]


def test_names_of_files():
    assert machine.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"


def test_enough_sets_of_operands_make_every_use_a_cold_one():
    pytest.importorskip("torch")
    from benchmarks.gpu.clock import MOST_SETS, sets_for

    l2 = 50e6
    for nbytes in (1e4, 1e6, 12e6, 196e6):
        sets = sets_for(nbytes, l2)
        assert 2 <= sets <= MOST_SETS
        assert sets == MOST_SETS or sets * nbytes >= 3 * l2


def test_short_calls_share_a_graph_and_long_ones_have_their_own():
    pytest.importorskip("torch")
    from benchmarks.gpu.clock import repeats_for

    assert repeats_for(1, 5.0) == 32 and repeats_for(250, 1000.0) == 1
    assert repeats_for(1, 20000.0) == 1 and repeats_for(2, 500.0) == 4


def test_a_trial_runs_every_kind_of_case_on_the_cpu(tmp_path, capsys):
    """Every rival that torch has for the CPU computes what it should; ours says why it does not."""
    pytest.importorskip("torch")
    from benchmarks.gpu import micro

    path = tmp_path / "trial.json"
    assert micro.main(["--gpu", "--try", "--json", str(path)]) == 0
    run = json.loads(path.read_text())
    entries = run["results"]
    assert {e["op"] for e in entries} == {"linear", "attention", "rows", "step"}
    assert [e for e in entries if "failed" in e] == []
    by = {(e["case"], e["by"]): e for e in entries}
    assert by["trial", "cuBLAS bfloat16"]["error"] < 5e-3
    assert by["trial", "torch._int_mm"]["error"] < 1e-6
    assert by["trial attention", "SDPA math, mask"]["error"] < 5e-3
    for e in (e for e in entries if e["ours"]):
        assert "cold" in e or e["skipped"]
    assert "Single operations" in capsys.readouterr().out


class MadeUpDevice:
    """What DeviceClock asks of torch.cuda, with a clock that calls move on by `us` each."""

    def __init__(self, torch, monkeypatch, us, capturable=True):
        self.now, self.us, self.captured, self.capturing = 0.0, us, [], False
        self.capturable = capturable
        device = self

        class Stream:
            def synchronize(self):
                pass

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self, stream):
                self.at = device.now

            def synchronize(self):
                pass

            def elapsed_time(self, end):
                return (end.at - self.at) * 1e-3

        class Graph:
            def replay(self):
                device.now += device.us * len(device.captured)

        class Capture:
            def __init__(self, graph, stream):
                pass

            def __enter__(self):
                if not device.capturable:
                    raise RuntimeError("operation not permitted when stream is capturing\nmore")
                device.capturing = True

            def __exit__(self, *_):
                device.capturing = False

        class Properties:
            L2_cache_size = 1 << 20

        import contextlib

        for name, made in (("Stream", Stream), ("Event", Event), ("CUDAGraph", Graph),
                           ("graph", Capture), ("stream", lambda s: contextlib.nullcontext()),
                           ("synchronize", lambda: None),
                           ("get_device_properties", lambda index: Properties)):  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, made)

    def call(self, name):
        def call():
            if self.capturing:
                self.captured.append(name)  # recorded, not run
            else:
                self.now += self.us

        return call


def test_a_graph_holds_the_sets_in_turn_and_a_number_is_of_one_call(monkeypatch):
    torch = pytest.importorskip("torch")
    from benchmarks.gpu.clock import DeviceClock

    device = MadeUpDevice(torch, monkeypatch, us=5.0)
    timing = DeviceClock(1.0).time([device.call("a"), device.call("b"), device.call("c")])
    assert device.captured == ["a", "b", "c"] * 11  # 33: no set is used twice in a row
    assert (timing.how, timing.calls, timing.why) == ("graph", 33, "")
    assert timing.median_us == pytest.approx(5.0) and timing.replays >= 20


def test_long_calls_are_replayed_a_few_times(monkeypatch):
    torch = pytest.importorskip("torch")
    from benchmarks.gpu.clock import DeviceClock

    device = MadeUpDevice(torch, monkeypatch, us=25000.0)
    timing = DeviceClock(0.0).time([device.call("a")])
    assert (timing.calls, timing.replays) == (1, 5) and device.captured == ["a"]


def test_what_cannot_be_captured_is_timed_without_a_graph_and_says_why(monkeypatch):
    torch = pytest.importorskip("torch")
    from benchmarks.gpu.clock import DeviceClock

    device = MadeUpDevice(torch, monkeypatch, us=5.0, capturable=False)
    timing = DeviceClock(1.0).time([device.call("a")])
    assert timing.how == "calls" and timing.median_us == pytest.approx(5.0)
    assert timing.why == "operation not permitted when stream is capturing"
