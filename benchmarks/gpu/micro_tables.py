"""The tables of a GPU microbenchmark: what everybody took, and ours against the aims."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.report import Section, number, share, table

Entry = dict[str, Any]
WRONG = 0.05  # relative error from which on a result is a mistake


@dataclass(frozen=True)
class Aim:
    """Ours of a precision against the best of the rivals that `against` names, cold.

    ratio: the rival's time over ours, at least.
    """

    op: str
    precision: str
    ratio: float
    what: str
    against: Callable[[Entry], bool]


AIMS = (
    Aim("linear", "bfloat16", 0.85, "GEMM in bfloat16: 0.85 of cuBLAS",
        lambda e: e["by"] == "cuBLAS bfloat16"),
    Aim("linear", "int8", 0.85, "GEMM in int8: 0.85 of torch._int_mm (cuBLAS)",
        lambda e: e["by"] == "torch._int_mm"),
    Aim("attention", "bfloat16", 0.90, "attention: 0.90 of torch's best",
        lambda e: e["by"].startswith("SDPA")),
    Aim("step", "int4", 1.0, "a denoise step's GEMMs in W4A16: no slower than in bfloat16",
        lambda e: e["precision"] == "bfloat16"),
)  # fmt: skip


def counts(entry: Entry) -> bool:
    """Whether an entry has times of a right result."""
    return "cold" in entry and entry.get("error", 0.0) <= WRONG


@dataclass(frozen=True)
class Verdict:
    """ratio: the rival's time over ours; None without both."""

    aim: Aim
    case: str
    ours: Entry | None
    rival: Entry | None
    l2: str = "cold"

    @property
    def ratio(self) -> float | None:
        if not self.ours or not self.rival:
            return None
        return float(self.rival[self.l2]["median_us"] / self.ours[self.l2]["median_us"])

    @property
    def text(self) -> str:
        if self.ours is None:
            return "**not measured**"
        if self.ratio is None:
            return "no rival"
        return "reached" if self.ratio >= self.aim.ratio else "**missed**"


def judge(entries: list[Entry]) -> list[Verdict]:
    """One verdict for each aim and case that it speaks of."""
    found = []
    names = list(dict.fromkeys((e["op"], e["case"]) for e in entries))
    for aim in AIMS:
        for op, case in names:
            mine = [e for e in entries if (e["op"], e["case"]) == (op, case)]
            asked = [e for e in mine if e["ours"] and e["precision"] == aim.precision]
            if op != aim.op or not asked:
                continue
            ours = next((e for e in asked if counts(e)), None)
            rivals = [e for e in mine if e is not ours and counts(e) and aim.against(e)]
            best = min(rivals, key=lambda e: e["cold"]["median_us"], default=None)
            found.append(Verdict(aim, case, ours, best))
    return found


def _us(entry: Entry, l2: str) -> str:
    if l2 not in entry:
        return "-"
    timing = entry[l2]
    mark = "" if timing["how"] == "graph" else " (no graph)"
    return f"{timing['median_us']:.2f}, {timing['p90_us']:.2f}{mark}"


def _rates(entry: Entry, ceilings: dict[str, float]) -> list[str]:
    """GB/s and TFLOP/s of the cold calls with their shares of the run's ceilings."""
    if "cold" not in entry:
        return ["-", "-", "-", "-"]
    us = entry["cold"]["median_us"]
    gbps, tflops = entry["mb"] / us * 1e3, entry["mflop"] / us
    # 4-bit weights are multiplied in bfloat16.
    unit = {"int4": "bfloat16"}.get(entry["precision"], entry["precision"])
    return [
        number(gbps), share(gbps, ceilings.get("gbps")),
        number(tflops, 1) if tflops else "-", share(tflops, ceilings.get(unit)),
    ]  # fmt: skip


def _verdicts(run: dict[str, Any]) -> Section:
    rows = []
    for v in judge(run["results"]):
        warm = Verdict(v.aim, v.case, v.ours, v.rival, "warm").ratio
        rows.append(
            [
                v.aim.what, v.case, _us(v.ours, "cold") if v.ours else "-",
                f"{v.rival['by']}: {_us(v.rival, 'cold')}" if v.rival else "-",
                number(v.ratio, 2), number(warm, 2), f"{v.aim.ratio:.2f}", v.text,
            ]
        )  # fmt: skip
    about = (
        "Microseconds: median, p90 of the replays, cold L2. Ratio: how many times longer the rival "
        "takes; the aim is judged by the cold one. A contestant whose result is off by more than "
        f"{WRONG:g} of the norm has no time here."
    )
    header = ["aim", "case", "ours us", "best rival us", "ratio, cold", "ratio, warm", "aim", ""]
    return Section("Against the aims", table(header, rows), about)


def _entries(run: dict[str, Any], op: str, heading: str) -> Section | None:
    rows = []
    for e in (e for e in run["results"] if e["op"] == op):
        if "cold" not in e:
            reason = e.get("failed") or e.get("skipped", "")
            rows.append([e["case"], e.get("shape", "-"), e["by"], reason, *["-"] * 6])
            continue
        error = e.get("error")
        rows.append(
            [e["case"], e["shape"], e["by"], _us(e, "cold"), _us(e, "warm"),
             *_rates(e, run["ceilings"]), "-" if error is None else f"{error:.1e}"]
        )  # fmt: skip
    if not rows:
        return None
    header = ["case", "shape", "by", "cold us: median, p90", "warm us", "GB/s", "of the copy",
              "TFLOP/s", "of the product", "error"]  # fmt: skip
    return Section(heading, table(header, rows))


def _machine(run: dict[str, Any]) -> Section:
    gpu = run["gpu"]
    rows = [[name, str(value)] for name, value in gpu.items() if not isinstance(value, dict)]
    for when in ("smi", "smi_after"):
        said = ", ".join(f"{k} {v}" for k, v in gpu.get(when, {}).items())
        rows.append(["nvidia-smi " + ("before" if when == "smi" else "after"), said or "-"])
    rows.append(["copy", f"{run['ceilings']['gbps']:.0f} GB/s, read and written"])
    for unit in ("float32", "bfloat16", "int8"):
        rows.append([f"product of {unit}", f"{run['ceilings'][unit]:.1f} TFLOP/s"])
    return Section("The GPU", table(["what", "value"], rows))


def sections(run: dict[str, Any]) -> list[Section]:
    found = [_verdicts(run)]
    for op, heading in (
        ("step", "A denoise step's linear layers in one graph"),
        ("linear", "Linear layers"),
        ("attention", "Attention"),
        ("rows", "Operations on rows"),
    ):
        found += [s for s in [_entries(run, op, heading)] if s]
    return [*found, _machine(run)]
