"""The tables of an end-to-end result: times and memory, ratios, stages."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu import end_to_end_tables as gpu
from benchmarks.report import Section, ceiling_sentence, milliseconds, share, table

STAGES = ("preprocess", "vision", "prefix", "flow")


def _case(result: dict[str, Any]) -> list[str]:
    return [str(result["cameras"]), f"{result['language']} ({result['slots']})"]


def _tail(result: dict[str, Any]) -> str:
    """The 99th percentile, or the largest sample where there are too few for one."""
    p99 = result["p99_ms"]
    return milliseconds(p99) if p99 is not None else f"max {milliseconds(result['max_ms'])}"


def _rate(result: dict[str, Any], stage: str, ms: float) -> float | None:
    work = result["gflop"].get(stage)
    return work / ms * 1e3 if work else None


def _summary(run: dict[str, Any]) -> Section:
    rows = []
    for result in run["results"]:
        engine = run["engines"][result["engine"]]
        gap = result["action_difference"]
        ceiling = run["ceilings"].get(result["precision"])
        rate = _rate(result, "total", result["p50_ms"])
        differs = (
            f"{gap['max_abs']:.1e}, {gap['mean_abs']:.1e} (of {gap['largest_action']:.2f})"
            if gap
            else "-"
        )
        rows.append(
            [
                *_case(result),
                result["engine"],
                str(result["samples_used"]),
                milliseconds(result["p50_ms"]),
                milliseconds(result["p90_ms"]),
                _tail(result),
                f"{engine['peak_rss_load_mib']:.0f} / {result['peak_rss_mib']:.0f}",
                f"{result['gflop']['total']:.1f}",
                share(rate, ceiling),
                differs,
            ]
        )
    header = ["cameras", "language (slots)", "engine", "n", "p50 ms", "p90", "p99"]
    header += ["peak RSS MiB", "GFLOP", "share of ceiling", "actions differ: max, mean"]
    ceiling = (
        "cuBLAS's product of two matrices of 8192 x 8192 in the engine's precision"
        if run.get("gpu")
        else "a register-resident loop of the engine's precision on the same threads"
    )
    about = (
        "n: samples counted; with fewer than 100 the column p99 has the largest sample, marked "
        "max. Peak RSS: while loading / while running (VmHWM of each process, reset in between; "
        "compiling counts as neither). GFLOP: what this engine computes, a multiply and an add "
        f"being two. Ceiling: {ceiling}, measured in this run "
        f"({ceiling_sentence(run['ceilings'])}). "
    )
    if run["reference"] is None:
        about += "No rival in float32 was in this run to compare actions with."
    else:
        about += (
            "Actions differ: absolute difference of the normalised actions from those of "
            f"{run['reference']}, in this run, beside its largest action."
        )
    return Section("", table(header, rows), about)


def _ratios(run: dict[str, Any]) -> Section:
    header = ["cameras", "language", "ours", "rival", "ratio of medians", "p10/p90 to p90/p10"]
    rows = [
        [
            str(entry["cameras"]),
            entry["language"],
            entry["engine"],
            entry["rival"],
            f"{entry['ratio']:.2f}x",
            f"{entry['low']:.2f} to {entry['high']:.2f}",
        ]
        for entry in run["ratios"]
    ]
    about = (
        "How many times longer the rival takes, like with like: float32 with float32, bfloat16 "
        "with bfloat16. The last column sets the rival's p10 against our p90, and its p90 against "
        "our p10."
    )
    return Section("Ratios", table(header, rows), about)


def _stages(run: dict[str, Any], ours: bool) -> Section | None:
    rows = []
    for result in run["results"]:
        if result["engine"].startswith("smolvla-edge") != ours:
            continue
        for stage in STAGES:
            ms = result["stages_ms"].get(stage)
            if ms is None:
                continue
            work = result["gflop"].get(stage)
            rate = _rate(result, stage, ms)
            rows.append(
                [
                    *_case(result),
                    result["engine"],
                    stage,
                    milliseconds(ms),
                    share(ms, result["p50_ms"]),
                    f"{work:.1f}" if work else "-",
                    f"{rate:.0f}" if rate else "-",
                    share(rate, run["ceilings"].get(result["precision"])),
                ]
            )
    if not rows:
        return None
    header = ["cameras", "language (slots)", "engine", "stage", "p50 ms", "share of time"]
    header += ["GFLOP", "GFLOP/s", "share of ceiling"]
    if ours:
        about = "GFLOP counts the work left after the exact reductions (benchmarks/flops.py)."
        return Section("Stages of ours", table(header, rows), about)
    about = (
        "GFLOP counts what LeRobot computes, padded language slots and dead layers included. A "
        "compiled policy is one graph and has no stages."
    )
    return Section("Stages of the rival", table(header, rows), about)


def _loading(run: dict[str, Any]) -> Section:
    rows = []
    for name, engine in run["engines"].items():
        prepared = [
            f"{p['cameras']} camera(s) {p['language']}: {p['seconds']:.0f} s, "
            f"peak {p['peak_rss_mib']:.0f} MiB"
            for p in run["prepared"]
            if p["engine"] == name and name.endswith("compiled") and "failed" not in p
        ]
        rows.append(
            [
                name,
                f"{engine['load_seconds']:.1f}",
                f"{engine['rss_after_load_mib']:.0f}",
                "; ".join(prepared) or "-",
            ]
        )
    header = ["engine", "load s", "RSS after load MiB", "compiling"]
    about = (
        "Nothing is done to fill or empty the page cache before. Compiling takes minutes the first "
        "time; graphs are kept."
    )
    return Section("Loading", table(header, rows), about)


def sections(run: dict[str, Any]) -> list[Section]:
    """Every table of an end-to-end result."""
    found = [_summary(run)]
    if run["ratios"]:
        found.append(_ratios(run))
    found += [s for s in (_stages(run, ours=True), _stages(run, ours=False)) if s]
    if run.get("gpu"):
        found += [gpu.aims(run), gpu.memory(run), gpu.machine(run)]
    return [*found, _loading(run)]
