"""What the target `tensorrt` asks of an export: TensorRT 10 reads the graphs with its own parser.

Opset 20 and basic operators (tensorrt_operators.py), opset 21 where there are weights of 4 bits. It
takes weight-only codes of 4 bits in blocks of 64 or 128 alone; other codes are written as the
floats that they stand for, and counted in the manifest under provenance.dequantised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from smolvla_edge.codes import CodeFormat
from smolvla_edge.errors import ExportError
from smolvla_edge.export.layers import Arithmetic

NAME = "tensorrt"
BLOCKS = (64, 128)
PRECISIONS = ("as-stored", "float32", "float16", "int4")
SETTLED = ("steps", "solver", "schedule", "horizon", "skip", "exit")
"""Fields of a plan that the graphs hold. A warm start is a schedule of its own at every call."""

IR_VERSIONS = {20: 9, 21: 10}


def check_options(precision: str, form: str) -> None:
    """Raises ExportError for what TensorRT has no form for."""
    if precision not in PRECISIONS:
        raise ExportError(
            f"precision {precision}: expected one of {', '.join(PRECISIONS)} for target {NAME}, "
            "which knows no 8-bit weights beside float activations; take as-stored, and weights of "
            "8 bits become float16"
        )
    if form != "qdq":
        raise ExportError(
            f"form {form}: expected qdq for target {NAME}, whose parser knows no other"
        )


def arithmetic(codes: Mapping[str, CodeFormat], precision: str) -> Arithmetic:
    """codes: those that the source has and the precision asks for."""
    dtype = torch.float32 if precision == "float32" else torch.float16
    kept = {name: form for name, form in codes.items() if form.group_size in BLOCKS}
    return Arithmetic(dtype, kept, dtype, opset=21 if kept else 20)


def dequantised(codes: Mapping[str, CodeFormat], how: Arithmetic) -> dict[str, Any]:
    """How many weights of which format are floats in the graphs, for the manifest."""
    counts = Counter(form.name for name, form in codes.items() if name not in how.codes)
    return dict(sorted(counts.items()))
