"""Markdown from stored results: every kind of table, the verdicts, what is refused."""

from __future__ import annotations

import copy

import benchmark_helpers  # noqa: F401  (puts the repository on the path)
import pytest

from benchmarks import conditions, report
from benchmarks.end_to_end_tables import _tail
from benchmarks.libraries_tables import chunk_seconds, judge

CONDITIONS = {
    "date": "2026-01-02T03:04:05+00:00",
    "command": "python -m benchmarks.end_to_end --cameras 1",
    "commit": "abc123",
    "uncommitted_changes": False,
    "cpu": {
        "model": "Some CPU", "vendor": "V", "family": "6", "model_number": "7", "stepping": "1",
        "features": ["fma"], "hypervisor": True,
    },
    "cores": 2,
    "affinity": [0, 1],
    "cgroup_cpu_quota": "max",
    "governor": "not exposed",
    "memory_mib": 24000.0,
    "load_average_before": [0.1, 0.2, 0.3],
    "kernel": "6.1",
    "system": "Debian",
    "python": "3.11.7",
}  # fmt: skip


def engine(**extra):
    return {
        "versions": {"x": "1"}, "info": {"isa": "avx512"}, "load_seconds": 2.0,
        "rss_after_load_mib": 700.0, "peak_rss_load_mib": 720.0, **extra,
    }  # fmt: skip


def entry(name, precision, p50, **extra):
    return {
        "engine": name, "precision": precision, "cameras": 1, "language": "max_length", "slots": 48,
        "p50_ms": p50, "p10_ms": p50 - 1, "p90_ms": p50 + 2, "p99_ms": None, "min_ms": p50 - 2,
        "max_ms": p50 + 9, "stages_ms": {"vision": p50 / 2, "flow": p50 / 4}, "samples": 7,
        "samples_used": 7, "disturbed": 0, "disturbed_used": False, "spread": 0.01,
        "peak_rss_mib": 800.0, "all_stolen": [0.0],
        "gflop": {"vision": 200.0, "prefix": 20.0, "flow": 80.0, "total": 300.0},
        "action_difference": {"max_abs": 1.5e-6, "mean_abs": 2e-7, "largest_action": 3.875},
        **extra,
    }  # fmt: skip


def end_to_end():
    return {
        "format": 2, "kind": "end_to_end", "title": "End to end on Some CPU", "about": "One chunk.",
        "conditions": CONDITIONS, "settings": {"threads": 2},
        "engines": {"smolvla-edge float32": engine(), "lerobot float32": engine(),
                    "lerobot float32 compiled": engine()},
        "reference": "lerobot float32", "ceilings": {"float32": 500.0, "bfloat16": None},
        "prepared": [{"engine": "lerobot float32 compiled", "cameras": 1, "language": "max_length",
                      "seconds": 301.0, "peak_rss_mib": 3300.0}],
        "results": [entry("smolvla-edge float32", "float32", 750.0),
                    entry("lerobot float32", "float32", 2250.0),
                    entry("lerobot float32 compiled", "float32", 2000.0, stages_ms={},
                          action_difference=None)],
        "ratios": [{"engine": "smolvla-edge float32", "rival": "lerobot float32", "cameras": 1,
                    "language": "max_length", "ratio": 3.0, "low": 2.9, "high": 3.1}],
        "noise": [], "quiet": True,
    }  # fmt: skip


def rows_of(markdown, heading):
    """The cells of the table under a heading."""
    part = markdown.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_end_to_end_report_holds_the_numbers_of_the_result():
    text = report.render(end_to_end())
    assert text.startswith("# End to end on Some CPU\n\nOne chunk. The machine was quiet.\n")
    assert "$" not in text
    assert (
        "| 1 | max_length (48) | smolvla-edge float32 | 7 | 750 | 752 | max 759 | 720 / 800 | "
        "300.0 | 80% | 1.5e-06, 2.0e-07 (of 3.88) |"
    ) in text
    assert "| 1 | max_length (48) | lerobot float32 compiled | 7 | 2000 |" in text
    assert rows_of(text, "Ratios")[1][-2:] == ["3.00x", "2.90 to 3.10"]
    ours = rows_of(text, "Stages of ours")
    assert [row[3] for row in ours[1:]] == ["vision", "flow"]
    assert ours[1][4:] == ["375", "50%", "200.0", "533", "107%"]
    assert {row[2] for row in rows_of(text, "Stages of the rival")[1:]} == {"lerobot float32"}
    assert rows_of(text, "Loading")[3][-1] == "1 camera(s) max_length: 301 s, peak 3300 MiB"
    assert "float32 500 GFLOP/s" in text and "bfloat16" not in text.split("## Conditions")[0][:900]
    assert "Reproduce: `python -m benchmarks.end_to_end --cameras 1`" in text


def test_the_column_p99_says_when_it_is_the_largest_sample():
    assert _tail({"p99_ms": None, "max_ms": 812.4}) == "max 812"
    assert _tail({"p99_ms": 790.6, "max_ms": 812.4}) == "791"


def test_a_run_that_was_disturbed_says_so():
    noisy = end_to_end() | {"quiet": False, "noise": ["load average 2.00 before the run"]}
    text = report.render(noisy)
    assert "**The machine was not quiet" in text
    assert "Not quiet:\n\n- load average 2.00" in text
    worse = copy.deepcopy(noisy)
    worse["results"][0]["disturbed_used"] = True
    assert "not to be quoted" in report.render(worse)


def test_another_format_or_kind_is_refused():
    with pytest.raises(ValueError, match="format 2, got 1"):
        report.render(end_to_end() | {"format": 1})
    with pytest.raises(ValueError, match=r"kind: expected one of .*, got 'other'"):
        report.render(end_to_end() | {"kind": "other"})


def test_a_cell_may_hold_a_bar():
    assert report.table(["a|b"], [["c"]]) == "| a\\|b |\n|---|\n| c |"


@pytest.mark.parametrize(
    "value, text", [(1234.5, "1234"), (99.96, "100.0"), (1.26, "1.3"), (0.0123, "0.012")]
)
def test_milliseconds(value, text):
    assert report.milliseconds(value) == text


def variant(worker, name, precision, us, gflop):
    return {"worker": worker, "variant": name, "precision": precision, "median_us": us,
            "gflops": gflop / us * 1e6}  # fmt: skip


def operation(name, op, calls, ours, torch, onnx, gflop=1.0):
    """An operation whose variants take so many microseconds; ours: (float32, bfloat16)."""
    return {
        "threads": 2, "op": op, "name": name, "shape": "shape", "calls": calls, "gflop": gflop,
        "bf16": True, "disturbed": 0, "disturbed_used": False,
        "variants": [
            variant("smolvla-edge", "float32", "float32", ours[0], gflop),
            variant("smolvla-edge", "bfloat16", "bfloat16", ours[1], gflop),
            variant("libraries", "torch float32", "float32", torch[0], gflop),
            variant("libraries", "oneDNN packed bfloat16", "bfloat16", torch[1], gflop),
            variant("libraries", "onnxruntime float32", "float32", onnx, gflop),
        ],
    }  # fmt: skip


def libraries():
    return {
        "format": 2, "kind": "libraries", "title": "Single operations", "about": "Ours beside.",
        "conditions": CONDITIONS, "settings": {}, "engines": {},
        "ceilings": {"2": {"float32": 2000.0, "bfloat16": 4000.0}},
        "results": [
            operation("vision up", "linear", 10, (1000, 600), (900, 500), 800),
            operation("vision attention", "attention", 10, (1000, 500), (1200, 1250), 100),
            operation("expert down", "linear", 10, (1000, 500), (500, 300), 900),
            operation("action in", "linear", 1, (10, 10), (1, 1), 1),
        ],
        "noise": [], "quiet": True,
    }  # fmt: skip


def test_ours_is_judged_against_the_best_way_of_its_class():
    up, attention, down, small = libraries()["results"]
    chunk = chunk_seconds(libraries()["results"], "bfloat16")
    assert chunk == pytest.approx((6000 + 5000 + 5000 + 10) * 1e-6)
    j = judge(up, "bfloat16", chunk)
    assert (j.torch_variant, j.target, j.verdict) == ("oneDNN packed bfloat16", 0.75, "reached")
    assert j.ratio == pytest.approx(500 / 600)
    # In float32 only float32 counts, and ONNX Runtime is the best of it.
    assert judge(up, "float32", chunk).ratio == pytest.approx(0.8)
    # Vision attention is held to torch alone, at 2.5.
    j = judge(attention, "bfloat16", chunk)
    assert (j.ratio, j.target, j.verdict) == (pytest.approx(2.4), 2.5, "**missed**")
    assert judge(down, "bfloat16", chunk).verdict == "**missed**"
    # Under 3 % of the chunk there is nothing to judge.
    assert judge(small, "bfloat16", chunk).verdict == "-"


def test_integers_are_judged_against_as_many_bits():
    run = libraries()
    down = run["results"][2]
    down["codes"] = True
    down["variants"] += [
        variant("smolvla-edge", "w8a8", "int8", 250, 1.0),
        variant("smolvla-edge", "w4a8 g64", "int4", 260, 1.0),
        variant("libraries", "torch dynamic int8", "int8", 400, 1.0),
        variant("libraries", "onnxruntime MatMulNBits 8 bits", "int8", 200, 1.0),
        variant("libraries", "onnxruntime MatMulNBits 4 bits", "int4", 300, 1.0),
    ]
    # Faster than bfloat16 is not enough, and integers are no rivals of floats.
    j = judge(down, "int8", chunk_seconds([down], "int8"))
    assert (j.ratio, j.target, j.verdict) == (pytest.approx(0.8), 1.0, "**missed**")
    j = judge(down, "int4", chunk_seconds([down], "int4"))
    assert (j.torch_variant, j.torch, j.verdict) == ("none", 0.0, "reached")
    assert judge(down, "bfloat16", 1e-3).ratio == pytest.approx(0.6)
    text = report.render(run)
    assert [row[0] for row in rows_of(text, "int4, 2 threads")[1:]] == ["expert down"]


def test_the_libraries_report_has_a_table_for_each_precision():
    text = report.render(libraries())
    rows = rows_of(text, "bfloat16, 2 threads")
    assert rows[1][:4] == ["vision up", "shape", "37.5%", "1667"]
    assert rows[1][4:] == [
        "42%", "2000 (oneDNN packed bfloat16)", "1250", "0.83", "0.75", "reached",
    ]  # fmt: skip
    assert len(rows_of(text, "float32, 2 threads")) == 5


def test_a_report_without_times_claims_no_quiet():
    row = {
        "stage": "actions", "largest": 3.0, "ours_max": 0.01, "ours_mean": 0.002,
        "rival_max": 0.013, "rival_mean": 0.0032, "ratio_max": 0.77, "ratio_mean": 0.62,
    }  # fmt: skip
    run = {
        "format": 2, "kind": "precision", "title": "bfloat16 against float32", "about": "Errors.",
        "conditions": CONDITIONS, "settings": {}, "engines": {}, "limit": 1.5, "noise": None,
        "quiet": None,
        "results": [{"case": "golden case full", "stages": [row]},
                    {"case": "50 observations", "stages": [row | {"ratio_mean": 1.6}]}],
    }  # fmt: skip
    text = report.render(run)
    assert "quiet" not in text.lower()
    assert rows_of(text, "golden case full")[1][-3:] == ["0.77", "0.62", "yes"]
    assert rows_of(text, "50 observations")[1][-1] == "**no**"
    assert "Actions: within 1.5" in text and "Actions: **beyond** 1.5" in text


def test_conditions_name_the_module_that_was_run(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["x", "--only", "vision up"])
    found = conditions.collect(tmp_path, "benchmarks.libraries")
    assert found["command"] == "python -m benchmarks.libraries --only 'vision up'"
    assert conditions.device_name(CONDITIONS) == "some-cpu-family6-model7-2core"
