"""The tables of an export result: a row for each way, and the ratios that were aimed at."""

from __future__ import annotations

from typing import Any

from benchmarks.report import Section, milliseconds, table

# At least; how many times longer the second of a pair takes.
TARGETS = {
    ("ONNX float32", "LeRobot float32"): 1.6,
    ("ONNX int8 integer", "ONNX float32"): 1.25,
    ("ONNX small qdq", "ONNX float32"): 1.25,
    ("native float32", "ONNX float32"): 1.0,
    ("native balanced", None): 1.5,
}


def sections(run: dict[str, Any]) -> list[Section]:
    found = []
    for cameras in sorted({result["cameras"] for result in run["results"]}):
        entries = [result for result in run["results"] if result["cameras"] == cameras]
        title = f"{cameras} camera" + ("s" if cameras > 1 else "")
        found.append(Section(title, table(_HEADER, [_row(entry) for entry in entries]), _ABOUT))
        rows = [_ratio(item) for item in run["ratios"] if item["cameras"] == cameras]
        found.append(Section(f"{title}: ratios", table(_RATIOS, rows), ""))
    return found


_HEADER = [
    "way", "p50 ms", "p90", "vision / prefix / flow", "peak RSS MiB", "on disk MiB",
    "actions, largest difference", "mean",
]  # fmt: skip
_RATIOS = ["faster", "than", "times", "p10 to p90", "aim"]
_ABOUT = (
    "RSS: peak while running, after loading. On disk: a bundle or checkpoint, or the graphs, "
    "weights and tokenizer of an export without the graph `policy`. Differences are from LeRobot's "
    "float32 in the same run (from native float32 without it), as a part of its largest action; "
    "weights are untrained."
)


def _row(entry: dict[str, Any]) -> list[str]:
    stages, gap = entry["stages_ms"], entry["action_difference"]
    parts = [stages.get(name) for name in ("vision", "prefix", "flow")]
    return [
        entry["engine"],
        milliseconds(entry["p50_ms"]),
        milliseconds(entry["p90_ms"]),
        "" if None in parts else " / ".join(milliseconds(part) for part in parts),
        f"{entry['peak_rss_mib']:.0f}",
        f"{entry['mib']:.0f}",
        f"{gap['max_abs'] / gap['largest_action']:.1e}",
        f"{gap['mean_abs'] / gap['largest_action']:.1e}",
    ]


def _ratio(item: dict[str, Any]) -> list[str]:
    pair = item["engine"], item["rival"]
    target = TARGETS.get(pair, TARGETS.get((item["engine"], None)))
    verdict = ""
    if target is not None:
        verdict = f"{'at' if item['ratio'] >= target else 'MISSED'} >= {target}"
    return [*pair, f"{item['ratio']:.2f}", f"{item['low']:.2f} to {item['high']:.2f}", verdict]
