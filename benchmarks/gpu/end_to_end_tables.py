"""The tables that an end-to-end result has only on a GPU: memory, and the aims one by one."""

from __future__ import annotations

from typing import Any

from benchmarks.report import Section, milliseconds, number, table

Entry = dict[str, Any]
# What was asked for, with 2 cameras and 10 steps (docs/limits.md lists what was not measured).
COMPILED, EAGER = 2.0, 30.0  # times as fast as the rival, bfloat16 with the expert in 4 bits
WHOLE_MS, WHOLE_ON = 5.0, "H200"
TAIL = 1.10  # p99 over the median
WEIGHTS_MB = {"balanced": 340.0, "expert4": 600.0}


def memory(run: dict[str, Any]) -> Section:
    """What each process took of the GPU's memory."""
    rows = []
    for name, engine in run["engines"].items():
        used = [r for r in run["results"] if r["engine"] == name]
        after = max((r["device_mib"] for r in used if r["device_mib"] is not None), default=None)
        given = max((r["allocated_mib"] or 0.0 for r in used), default=0.0)
        info = engine.get("info", {})
        rows.append(
            [
                name, number(engine.get("device_mib")), number(after),
                number(given) if given else "-",
                number(info["weights_bytes"] / 1e6, 1) if "weights_bytes" in info else "-",
            ]
        )  # fmt: skip
    about = (
        "MiB of the device as NVML counts them: what it grew by while the process loaded, and by "
        "all it did; the CUDA context (400 MiB and more) is in it. torch: "
        "torch.cuda.max_memory_allocated. Weights: MB (10^6) that ours keeps on the device."
    )
    header = ["engine", "after loading", "after running", "torch, peak", "weights MB"]
    return Section("Memory of the GPU", table(header, rows), about)


def _line(what: str, asked: str, got: str, reached: bool | None) -> list[str]:
    text = {True: "reached", False: "**missed**", None: "**not measured**"}[reached]
    return [what, asked, got, text]


def _against(run: dict[str, Any], ours: Entry, rival: str, asked: float) -> list[str]:
    """A ratio to the bfloat16 rival of that kind, whoever plays it in this run."""
    found = [
        r for r in run["results"]
        if not r["engine"].startswith("smolvla-edge") and r["precision"] == "bfloat16"
        and r["cameras"] == ours["cameras"] and r["language"] == ours["language"]
        and r["engine"].endswith("compiled") == (rival == "compiled")
    ]  # fmt: skip
    what = f"{ours['engine']}, {ours['language']}: times as fast as {rival} torch, bfloat16"
    if not found:
        return _line(what, f"{asked:g}", "-", None)
    ratio = found[0]["p50_ms"] / ours["p50_ms"]
    return _line(f"{what} ({found[0]['engine']})", f"{asked:g}", f"{ratio:.2f}", ratio >= asked)


def aims(run: dict[str, Any]) -> Section:
    """Each aim with what this run says of it."""
    mine = [r for r in run["results"] if r["engine"].startswith("smolvla-edge")]
    two = [r for r in mine if r["cameras"] == 2]
    rows = []
    for ours in (r for r in two if r["precision"] == "expert4"):
        rows += [_against(run, ours, "compiled", COMPILED), _against(run, ours, "eager", EAGER)]
    for ours in two:
        what = f"{ours['engine']}, {ours['language']}: "
        if WHOLE_ON in run["gpu"]["name"] and ours["precision"] != "float32":
            got = ours["p50_ms"]
            rows.append(_line(what + "whole policy, ms", f"{WHOLE_MS:g}", milliseconds(got),
                              got <= WHOLE_MS))  # fmt: skip
        tail = ours["p99_ms"] / ours["p50_ms"] if ours["p99_ms"] is not None else None
        rows.append(_line(what + "p99 over median", f"{TAIL:g}", number(tail, 3),
                          None if tail is None else tail <= TAIL))  # fmt: skip
    for precision, asked in WEIGHTS_MB.items():
        info = run["engines"].get(f"smolvla-edge {precision}", {}).get("info", {})
        got = info["weights_bytes"] / 1e6 if "weights_bytes" in info else None
        rows.append(_line(f"{precision}: weights on the device, MB", f"{asked:g}", number(got, 1),
                          None if got is None else got <= asked))  # fmt: skip
    skipped = [
        f"{p['engine']} gave up CUDA graphs {p['cudagraph_skips']} times"
        for p in run["prepared"]
        if p.get("cudagraph_skips")
    ]
    about = "With 2 cameras. Who plays torch is named; only LeRobot is LeRobot."
    return Section("Against the aims", table(["what", "asked", "got", ""], rows),
                   " ".join([about, *(f"**{text}.**" for text in skipped)]))  # fmt: skip


def machine(run: dict[str, Any]) -> Section:
    rows = [[name, str(value)] for name, value in run["gpu"].items() if name != "smi"]
    rows += [[f"nvidia-smi: {name}", value] for name, value in run["gpu"]["smi"].items()]
    return Section("The GPU", table(["what", "value"], rows))
