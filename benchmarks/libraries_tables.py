"""Judges ours against the best of the libraries, and makes the tables of a libraries result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.report import Section, ceiling_sentence, number, share, table

JUDGED_SHARE = 0.03  # of a chunk's time: smaller operations are shown, not judged
OTHERS_TARGET = 0.80
VISION_LINEAR_TARGET = 0.75
VISION_ATTENTION_TARGET = 2.5  # against torch's attention alone
INTEGERS = ("int8", "int4")
INTEGER_TARGET = 1.0


@dataclass(frozen=True)
class Judgement:
    """One operation in one precision: our rate, theirs, and the target if there is one.

    Rates are GFLOP/s, variants the names of the fastest; ratio: ours over the best rival's.
    """

    ours: float
    torch: float
    torch_variant: str
    onnx: float
    ratio: float
    share: float
    target: float | None

    @property
    def verdict(self) -> str:
        if self.target is None:
            return "-"
        return "reached" if self.ratio >= self.target else "**missed**"


def _rate(variants: list[dict[str, Any]]) -> tuple[float, str]:
    if not variants:
        return 0.0, "none"
    best = max(variants, key=lambda v: v["gflops"])
    return best["gflops"], best["variant"]


def _ours(result: dict[str, Any], precision: str) -> dict[str, Any]:
    """Our variant; where a bundle keeps the weight in float32, that one for both precisions."""
    wanted = precision if result["bf16"] else "float32"
    return next(
        v for v in result["variants"] if v["worker"] == "smolvla-edge" and v["precision"] == wanted
    )


def chunk_seconds(results: list[dict[str, Any]], precision: str) -> float:
    """Time of all the operations of a chunk, by our own rates."""
    return sum(r["calls"] * _ours(r, precision)["median_us"] * 1e-6 for r in results)


def judge(result: dict[str, Any], precision: str, chunk: float) -> Judgement:
    """Ours in one precision against everything that a library offers.

    Against our float32 stand the float32 ways, against our bfloat16 these and the bfloat16 ones,
    against integers those of as many bits.
    """
    rivals = ("float32", "bfloat16") if precision == "bfloat16" else (precision,)
    theirs = [
        v for v in result["variants"] if v["worker"] != "smolvla-edge" and v["precision"] in rivals
    ]
    ours = _ours(result, precision)
    torch, torch_variant = _rate([v for v in theirs if "onnx" not in v["variant"]])
    onnx, _ = _rate([v for v in theirs if "onnx" in v["variant"]])
    part = result["calls"] * ours["median_us"] * 1e-6 / chunk
    rival = max(torch, onnx)
    target: float | None = OTHERS_TARGET if part > JUDGED_SHARE else None
    if target is not None and precision in INTEGERS:
        target = INTEGER_TARGET
    elif target is not None and result["name"].startswith("vision"):
        target = VISION_LINEAR_TARGET
        if result["op"] == "attention":
            target, rival = VISION_ATTENTION_TARGET, torch
    return Judgement(
        ours["gflops"], torch, torch_variant, onnx, ours["gflops"] / rival, part, target
    )


def sections(run: dict[str, Any]) -> list[Section]:
    """A table for each precision and number of threads."""
    found = []
    for threads in sorted({r["threads"] for r in run["results"]}):
        measured = [r for r in run["results"] if r["threads"] == threads]
        ceilings = run["ceilings"][str(threads)]
        for precision in ("float32", "bfloat16", *INTEGERS):
            results = measured
            if precision in INTEGERS:
                results = [r for r in measured if r.get("codes")]
            if not results or not all(_has(r, precision) for r in results):
                continue
            loop = "int8" if precision in INTEGERS else precision
            rows = []
            chunk = chunk_seconds(results, precision)
            for result in results:
                j = judge(result, precision, chunk)
                rows.append(
                    [
                        result["name"],
                        result["shape"],
                        f"{j.share:.1%}",
                        number(j.ours),
                        share(j.ours, ceilings.get(loop if result["bf16"] else "float32")),
                        f"{j.torch:.0f} ({j.torch_variant})",
                        number(j.onnx),
                        f"{j.ratio:.2f}",
                        number(j.target, 2),
                        j.verdict,
                    ]
                )
            header = ["operation", "shape", "share of a chunk", "ours GFLOP/s", "share of loop"]
            header += ["best of torch", "ONNX Runtime", "ours / best", "target", "verdict"]
            about = (
                f"These operations of a chunk take {chunk * 1e3:.0f} ms by our rates. "
                f"Register-resident loops of this run: {ceiling_sentence(ceilings)}."
            )
            title = f"{precision}, {threads} thread{'s' if threads > 1 else ''}"
            found.append(Section(title, table(header, rows), about))
    if found:
        last = found[-1]
        found[-1] = Section(last.heading, last.table, f"{last.about}\n\n{_ABOUT}")
    return found


def _has(result: dict[str, Any], precision: str) -> bool:
    return not result["bf16"] or any(
        v["worker"] == "smolvla-edge" and v["precision"] == precision for v in result["variants"]
    )


_ABOUT = (
    "Against our float32 stand the libraries' float32 ways, against our bfloat16 these and the "
    "bfloat16 ones, against integers those of as many bits (linear layers alone; rounding the rows "
    "is part of the time). "
    f"Judged is what takes more than {JUDGED_SHARE:.0%} of a chunk: vision linears at "
    f"{VISION_LINEAR_TARGET}, vision attention at {VISION_ATTENTION_TARGET} times torch's, the "
    f"others at {OTHERS_TARGET} of the best library, integers at {INTEGER_TARGET:.0f}. No epilogue "
    "(bias, activation, residual) is in these times, on either side."
)
