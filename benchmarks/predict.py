"""Predicted times on GPUs that nobody here has run: docs/predictions.md, and tables of one device.

python -m benchmarks.predict                     the whole of docs/predictions.md
python -m benchmarks.predict --write             writes it
python -m benchmarks.predict --device orin       every operation on one device
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from string import Template
from typing import Any

from benchmarks.devices import DEVICES, Device
from benchmarks.operations import PRECISIONS, STAGES, Operation, Precision, operations
from benchmarks.report import milliseconds, table
from benchmarks.roofline import ASSUMED, REASONS, Times, floor_us, predicted_us, times_of

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "predictions.md"
WORDS = 12  # valid tokens of the prompt, as benchmarks.end_to_end has them
CAMERAS = (1, 2, 3)
_TEMPLATE = Path(__file__).with_name("PREDICTIONS.md")
_LISTED = ("Jetson AGX Orin 64 GB", "H100 SXM 80 GB")


def graphs_of(stage: str, model: Any, cameras: int) -> int:
    """How many graphs a chunk starts in a stage."""
    return {"preprocess": 0, "vision": cameras, "prefix": 1, "flow": model.num_steps}[stage]


def stages(model: Any, cameras: int, precision: Precision, device: Device) -> dict[str, Times]:
    """Each stage, and "total"."""
    listed = operations(model, cameras, WORDS, precision)
    found = {
        stage: times_of(
            (o for o in listed if o.stage == stage), device, graphs_of(stage, model, cameras)
        )
        for stage in STAGES
    }
    return {**found, "total": sum(found.values(), Times(0.0, 0.0, 0))}


def totals_table(model: Any) -> str:
    """Every device, precision and number of cameras: predicted, beside the floor."""
    rows = []
    for device in DEVICES:
        for precision in PRECISIONS.values():
            if precision.name == "float32":  # the exact path; nobody would run a robot on it
                continue
            totals = [stages(model, n, precision, device)["total"] for n in CAMERAS]
            cells = [f"{milliseconds(t.predicted)} ({milliseconds(t.floor)})" for t in totals]
            rows.append([device.name, precision.name, *cells])
    return table(["device", "bundle", *(f"{n} camera(s), predicted ms (floor)" for n in CAMERAS)],
                 rows)  # fmt: skip


def stages_table(model: Any, cameras: int) -> str:
    """Where the predicted time of `balanced` goes."""
    rows = []
    for device in DEVICES:
        found = stages(model, cameras, PRECISIONS["balanced"], device)
        kernels = found["total"].launches * device.node_us * 1e-3
        cells = [
            f"{milliseconds(found[name].predicted)} ({milliseconds(found[name].floor)})"
            for name in ("vision", "prefix", "flow", "total")
        ]
        rows.append([device.name, *cells, str(found["total"].launches), milliseconds(kernels)])
    return table(
        ["device", "vision", "prefix", "flow", "total", "kernels", "between kernels, ms"], rows
    )


def operations_table(listed: list[Operation], device: Device, least: float = 0.0) -> str:
    """Operations that take more than `least` of the predicted time, in the model's order."""
    whole = sum(o.calls * predicted_us(o, device) for o in listed)
    rows = []
    for o in listed:
        us = predicted_us(o, device)
        if o.calls * us < least * whole:
            continue
        rows.append(
            [
                o.stage, o.name, str(o.calls), f"{o.flops * 1e-6:.1f}", f"{o.nbytes * 1e-6:.3f}",
                f"{floor_us(o, device):.2f}", f"{us:.2f}", milliseconds(o.calls * us * 1e-3),
                f"{o.calls * us / whole:.1%}",
            ]
        )  # fmt: skip
    header = [
        "stage",
        "operation",
        "calls",
        "MFLOP",
        "MB",
        "floor us",
        "predicted us",
        "ms a chunk",
    ]
    return table([*header, "of the chunk"], rows)


def devices_table() -> str:
    rows = []
    for number, d in enumerate(DEVICES, 1):
        rates = "/".join(f"{d.tflops[unit]:g}" for unit in ("float32", "bfloat16", "int8"))
        rows.append(
            [f"{number}. {d.name}", f"sm_{d.sm}, {d.processors}", rates, f"{d.mma_share:g}",
             f"{d.gbps:g}", f"{d.l2_mb:g}", f"{d.node_us:g}", "; ".join(d.sources)]
        )  # fmt: skip
    return table(
        ["device", "SM, processors", "TFLOP/s float32/bfloat16/int8", "mma.sync", "GB/s",
         "L2 MB", "node us", "sources"], rows,
    )  # fmt: skip


def assumptions_table() -> str:
    rows = [[f.name, f"{getattr(ASSUMED, f.name):g}", REASONS[f.name]] for f in fields(ASSUMED)]
    return table(["assumption", "value", "why"], rows)


def page(model: Any) -> str:
    """The text of docs/predictions.md."""
    from benchmarks.predict_cpu import comparison_table

    balanced = operations(model, 2, WORDS, PRECISIONS["balanced"])
    listed = [
        f"### Predicted: {device.name}, `balanced`, 2 cameras\n\n"
        + operations_table(balanced, device, least=0.02)
        for device in DEVICES
        if device.name in _LISTED
    ]
    return Template(_TEMPLATE.read_text()).substitute(
        words=WORDS, totals=totals_table(model), stages=stages_table(model, 2),
        operations="\n\n".join(listed), devices=devices_table(), assumptions=assumptions_table(),
        cpu=comparison_table(model),
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.predict", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--device", help="a part of a device's name: all of its operations")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="balanced")
    parser.add_argument("--cameras", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write docs/predictions.md")
    options = parser.parse_args(arguments)
    from smolvla_edge.synthetic import reference_model

    model = reference_model()
    if options.device is None:
        text = page(model)
        if options.write:
            PAGE.write_text(text)
        else:
            print(text, end="")
        return 0
    found = [d for d in DEVICES if options.device.lower() in d.name.lower()]
    if not found:
        parser.error(f"--device: expected a part of one of {', '.join(d.name for d in DEVICES)}")
    listed = operations(model, options.cameras, WORDS, PRECISIONS[options.precision])
    for device in found:
        print(f"\nPredicted: {device.name}, {options.precision}, {options.cameras} camera(s)\n")
        print(operations_table(listed, device))
    return 0


if __name__ == "__main__":
    sys.exit(main())
