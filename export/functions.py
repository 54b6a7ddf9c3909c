"""The custom operators as model-local functions: what each computes, in standard ONNX.

A model that holds these functions runs wherever opset 23 does: a runtime that does not know the
domain takes the body. Where ONNX Runtime was given the library of `smolvla_edge.ort_ops`, its
kernels are used in place of the bodies.

What ONNX Runtime makes of them on a CPU (1.23.2 and 1.32.0, held by tests/unit/test_ort_*.py):

- `group` may be an attribute reference, `block_size = @group`: one function serves all groups.
- It inlines LinearW4 and fuses the two nodes to com.microsoft::MatMulNBits, the last group of
  codes short or not: in the main graph, and in the body of a Loop whose codes and scales are
  initializers *of that body*.
- **Codes that are initializers of the outer graph and used inside a Loop make it refuse the model**
  ("Missing required weight"): its fusion looks for them in the body alone. With the library they
  run, but before 1.32 as weights that may change: packed anew in every call. So keep codes and
  scales of a Loop's body in the body.
- The fused form rounds x to int8 in groups of the weight unless the session says
  "session.qdq_matmulnbits_accuracy_level" = "0"; then products are float32. The library's kernel
  rounds each row of x once, as the native backend does (smolvla_edge/codes.py).
- The body of LinearW8 has the bits of its kernel. 19 nodes of it run, of which seven pass over x,
  three over y, and one is the product (benchmarks/micro/test_onnx.py measures body, kernel and a
  product of floats):
  - Rows are uint8 about 128 because MatMulInteger multiplies *unsigned* rows with signed codes by
    the CPU's own instructions: int8 rows run 20 times and more slower on x86 (a plain loop, but for
    AVX-VNNI-INT8). On ARM, by reading, both have a fast path (UDOT and SDOT). Codes stay as they
    are stored: 1.32 takes nearly 3 times as long for uint8 ones (AVX-512 VNNI).
  - **On x86 without VNNI the runtime adds two such products in 16 bits, and saturates**: more than
    half of the outputs wrong, by up to 18 % of the largest (emulated Haswell, both versions). Its
    option "session.x64quantprecision" mends that where a session sets it, and makes 1.23.2 abort
    on a product without a zero point of the codes. The body asks instead: see _integer_product.
  - Highest and lowest of a row cost half of Abs and ReduceMax, which writes a copy of x. ReduceMax
    loses nearly every NaN: the sum of the scaled row (at most 127 an element, so
    that it cannot overflow) finds all.
  - QuantizeLinear would do Round, Add and Cast in one pass. 1.23.2 has none of opset 23, and by
    row (axis 0) it divides where the kernels multiply: not their bits. DequantizeLinear in place of
    Cast and Mul is slower, by column.
  - Casting a NaN to uint8 gives some number, whose row becomes NaN by its scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from smolvla_edge.errors import MissingExtraError

try:
    from onnx import AttributeProto, FunctionProto, NodeProto, TensorProto, helper
except ImportError as error:
    raise MissingExtraError(
        "smolvla_edge.export needs onnx, and it is not installed; run: "
        "pip install 'smolvla-edge[export]'"
    ) from error

DOMAIN = "smolvla_edge"
VERSION = 1
OPSET = 23  # of the bodies, and so of a model that holds them


def linear_w4() -> FunctionProto:
    """x float32 [..., in], codes int4 [in, out], scales float32 [groups of in, out] ->
    float32 [..., out]: x times (codes times the scale of their group)."""
    return _function(
        "LinearW4",
        ["x", "codes", "scales"],
        ["y"],
        [
            _node("DequantizeLinear", "codes scales", "weight", {"block_size": "group"}, axis=0),
            _node("MatMul", "x weight", "y"),
        ],
        ["group"],
    )


def linear_w8() -> FunctionProto:
    """x float32 [..., in], codes int8 [in, out] in [-127, 127], scales float32 [out] -> float32
    [..., out]: each row of x rounded to int8 (`round_rows` of smolvla_edge/codes.py), exact sums of
    integers, times the scale of the column, times that of the row. (A dead row has codes 0, so that
    its scale does not matter.)
    """
    return _function(
        "LinearW8",
        ["x", "codes", "scales"],
        ["y"],
        [
            _node("Constant", "", "columns", value_ints=[-1]),
            _node("Constant", "", "nothing", value_float=0.0),
            _node("Constant", "", "everything", value_float=math.inf),
            _node("Constant", "", "least", value_float=2.0**-100),
            _node("Constant", "", "most", value_float=127.0),
            _node("Constant", "", "middle", value_float=128.0),
            _node("Cast", "middle", "zero_point", to=TensorProto.UINT8),
            _node("ReduceMax", "x columns", "highest"),
            _node("ReduceMin", "x columns", "lowest"),
            _node("Neg", "lowest", "below"),
            _node("Max", "highest below", "largest"),
            _node("Less", "largest least", "dead"),
            _node("Where", "dead everything largest", "span"),
            _node("Div", "most span", "factor"),
            _node("Mul", "x factor", "scaled"),
            _node("Round", "scaled", "whole"),
            _node("Add", "whole middle", "raised"),
            _node("Cast", "raised", "rows", to=TensorProto.UINT8),
            *_integer_product(),
            _node("Cast", "sums", "products", to=TensorProto.FLOAT),
            _node("Mul", "products scales", "of_columns"),
            # 0 for a row of numbers, NaN for any other.
            _node("ReduceSum", "scaled columns", "total"),
            _node("Mul", "total nothing", "fault"),
            _node("Div", "largest most", "row_scale"),
            _node("Add", "row_scale fault", "row_scale_or_nan"),
            _node("Mul", "of_columns row_scale_or_nan", "y"),
        ],
        [],
    )


def _integer_product() -> list[NodeProto]:
    """rows uint8 about zero_point, codes int8 -> sums int32, exact on every CPU (see above).

    Sums of 64 products of 255 and 127 say whether this CPU's are exact; if not, codes are made
    unsigned too, whose products are. All of this but the product is constant: ONNX Runtime folds it
    while it loads the model, and keeps one branch. A file of a model that it optimised holds the
    answer of that machine.
    """
    signed = [_node("MatMulInteger", "rows codes zero_point", "signed_sums")]
    unsigned = [
        _node("Cast", "codes", "wide", to=TensorProto.FLOAT),
        _node("Add", "wide middle", "wide_raised"),
        _node("Cast", "wide_raised", "unsigned", to=TensorProto.UINT8),
        _node("MatMulInteger", "rows unsigned zero_point zero_point", "unsigned_sums"),
    ]
    high_row = helper.make_tensor("", TensorProto.UINT8, [1], [255])
    high_code = helper.make_tensor("", TensorProto.INT8, [1], [127])
    branches = {
        name: helper.make_graph(
            nodes, name, [], [helper.make_tensor_value_info(output, TensorProto.INT32, None)]
        )
        for name, nodes, output in (
            ("then_branch", signed, "signed_sums"),
            ("else_branch", unsigned, "unsigned_sums"),
        )
    }
    return [
        _node("Constant", "", "square", value_ints=[64, 64]),
        helper.make_node("ConstantOfShape", ["square"], ["high_rows"], value=high_row),
        helper.make_node("ConstantOfShape", ["square"], ["high_codes"], value=high_code),
        _node("MatMulInteger", "high_rows high_codes", "high_sums"),
        _node("ReduceMin", "high_sums", "high_sum", keepdims=0),
        _node("Constant", "", "right_sum_wide", value_int=64 * 255 * 127),
        _node("Cast", "right_sum_wide", "right_sum", to=TensorProto.INT32),
        _node("Equal", "high_sum right_sum", "exact"),
        helper.make_node("If", ["exact"], ["sums"], **branches),
    ]


def expert_attention() -> FunctionProto:
    """query float32 [1, rows, heads * d], key and value float32 [1, columns, kv_heads * d], mask
    bool [rows, columns], true where a row may read -> float32 [1, rows, heads * d].

    A row that may read nothing has no softmax: the kernel refuses it; of the body, runtimes make
    NaN or a mean of all columns.
    """
    return _function(
        "ExpertAttention",
        ["query", "key", "value", "mask"],
        ["y"],
        [
            _node(
                "Attention",
                "query key value mask",
                "y",
                {"q_num_heads": "heads", "kv_num_heads": "kv_heads"},
            )
        ],
        ["heads", "kv_heads"],
    )


def denoise_step() -> FunctionProto:
    """x, v, last float32 [rows, dims], row float32 [5] (time, dt, now, before, gain), pull_target
    float32 [rows or 1, dims], pull_weights float32 [rows or 1] -> x of the next step, and v after
    the pull, which is `last` of the next step.

    In the order of operations of the native backend: the two are equal bit for bit.
    """
    return _function(
        "DenoiseStep",
        ["x", "v", "last", "row", "pull_target", "pull_weights"],
        ["x_next", "v_pulled"],
        [
            _node("Split", "row", "time dt now before gain", axis=0, num_outputs=5),
            _node("Mul", "time v", "way"),
            _node("Sub", "x way", "clean"),
            _node("Sub", "pull_target clean", "missing"),
            _node("Constant", "", "columns", value_ints=[1]),
            _node("Unsqueeze", "pull_weights columns", "weights"),
            _node("Mul", "missing weights", "weighted"),
            _node("Mul", "gain weighted", "pull"),
            _node("Sub", "v pull", "v_pulled"),
            _node("Mul", "now v_pulled", "of_now"),
            _node("Mul", "before last", "of_before"),
            _node("Add", "of_now of_before", "joined"),
            _node("Mul", "dt joined", "step"),
            _node("Add", "x step", "x_next"),
        ],
        [],
    )


def functions() -> list[FunctionProto]:
    """All of them, for ModelProto.functions. A model without such nodes may hold them too."""
    return [linear_w4(), linear_w8(), expert_attention(), denoise_step()]


def _function(
    name: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    nodes: Sequence[NodeProto],
    attributes: Sequence[str],
) -> FunctionProto:
    imports = [helper.make_opsetid("", OPSET)]
    return helper.make_function(DOMAIN, name, inputs, outputs, nodes, imports, attributes)


def _node(
    op: str,
    inputs: str,
    outputs: str,
    given: Mapping[str, str] | None = None,
    **attributes: int | float | list[int],
) -> NodeProto:
    """`given`: attributes of the node that are attributes of the function, all of them integers."""
    node = helper.make_node(op, inputs.split(), outputs.split(), **attributes)
    for name, source in (given or {}).items():
        node.attribute.append(
            AttributeProto(name=name, ref_attr_name=source, type=AttributeProto.INT)
        )
    return node
