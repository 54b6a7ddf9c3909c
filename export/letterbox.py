"""The graph `letterbox`: frames of any size to the pixels that the vision tower reads.

Written in ONNX's own syntax: sizes are computed from the frame, in float64 as the reference does,
so that the rows and columns of padding are the same.
"""

from __future__ import annotations

import onnx
import onnx.parser
import onnx_ir as ir

from smolvla_edge.export.tracing import IR_VERSION, OPSET

_TEXT = """
<ir_version: {ir}, opset_import: ["" : {opset}]>
letterbox (uint8[cameras, height, width, 3] frames) => (float[cameras, 3, {rows}, {columns}] pixels)
<
    float most = {{255.0}}, float two = {{2.0}}, float one = {{1.0}},
    double[2] box = {{{rows}.0, {columns}.0}}, int64[2] sides = {{{rows}, {columns}}},
    int64[2] before = {{0, 0}}, int64[4] after = {{0, 0, 0, 0}}
>
{{
    values = Cast <to = 1> (frames)
    unit = Div (values, most)
    planes = Transpose <perm = [0, 3, 1, 2]> (unit)
    given = Shape <start = 1, end = 3> (frames)
    given_wide = Cast <to = 11> (given)
    ratios = Div (given_wide, box)
    ratio = ReduceMax <keepdims = 1> (ratios)
    inner_wide = Div (given_wide, ratio)
    inner = Cast <to = 7> (inner_wide)
    head = Shape <start = 0, end = 2> (planes)
    sizes = Concat <axis = 0> (head, inner)
    scaled = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel">
        (planes, , , sizes)
    space = Sub (sides, inner)
    pads = Concat <axis = 0> (before, space, after)
    padded = Pad (scaled, pads)
    doubled = Mul (padded, two)
    pixels = Sub (doubled, one)
}}
"""


def letterbox_graph(resize: tuple[int, int]) -> ir.Model:
    """resize: width, height."""
    text = _TEXT.format(ir=IR_VERSION, opset=OPSET, columns=resize[0], rows=resize[1])
    return ir.from_proto(onnx.parser.parse_model(text))
