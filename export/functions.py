"""The operators of our domain as functions whose bodies are standard ONNX.

A runtime without our library inlines the bodies, and ONNX Runtime makes one MatMulNBits of the
first (1.23.2 and 1.32.0, in the body of a Loop too, if the weights are initializers of that body).
With the library (csrc/ort) the kernels run instead.
"""

from __future__ import annotations

import onnx
import onnx.parser

from smolvla_edge.export.layers import DOMAIN
from smolvla_edge.export.tracing import OPSET

_HEAD = f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>\n'

_LINEAR_W4 = """
LinearW4 <group> (x, codes, scales) => (y) {
    weight = DequantizeLinear <axis = 0, block_size: int = @group> (codes, scales)
    y = MatMul (x, weight)
}
"""

_EXPERT_ATTENTION = """
ExpertAttention <heads, kv_heads> (query, key, value, mask) => (mixed) {
    mixed = Attention <q_num_heads: int = @heads, kv_num_heads: int = @kv_heads>
        (query, key, value, mask)
}
"""

# LeRobot's guidance: the chunk that is expected at time 0, x - time v, is pulled.
_DENOISE_STEP = """
DenoiseStep (x, v, last, row, pull_target, pull_weights) => (after, pulled) {
    time, dt, now, before, gain = Split <axis = 0, num_outputs = 5> (row)
    way = Mul (time, v)
    expected = Sub (x, way)
    missing = Sub (pull_target, expected)
    axis = Constant <value = int64[1] {1}> ()
    weights = Unsqueeze (pull_weights, axis)
    error = Mul (missing, weights)
    pull = Mul (gain, error)
    pulled = Sub (v, pull)
    now_part = Mul (now, pulled)
    before_part = Mul (before, last)
    slope = Add (now_part, before_part)
    step = Mul (dt, slope)
    after = Add (x, step)
}
"""


def functions() -> list[onnx.FunctionProto]:
    """All of them; a graph takes along what it calls."""
    texts = (_LINEAR_W4, _EXPERT_ATTENTION, _DENOISE_STEP)
    return [onnx.parser.parse_function(_HEAD + text) for text in texts]
