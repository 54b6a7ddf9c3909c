"""The custom operators in ONNX Runtime: our library, and their bodies. At the expert's shapes;
LinearW8 at those of the whole model, beside a product of floats.

Both through a session of one node, with what that costs: a denoise step is little else. A body's
product of four bits reads x as float32 (accuracy level 0) or rounds it (4, the runtime's own
choice); our kernel always rounds. Ceilings are those of the arithmetic: int8 or float32.
"""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra export)")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402  (it needs both)

from benchmarks.shapes import ATTENTIONS, CHUNK, HEAD_DIM, LINEARS  # noqa: E402
from smolvla_edge.codes import GROUP_SIZES, CodeFormat, round_to_nearest  # noqa: E402
from smolvla_edge.export.functions import DOMAIN, OPSET, VERSION, functions  # noqa: E402
from smolvla_edge.ort_ops import library_path  # noqa: E402

DIMS = 32  # of an action, padded
LEVEL = "session.qdq_matmulnbits_accuracy_level"
COMPUTED = {"library": None, "body, level 0": "0", "body, level 4": "4"}
CODED = [shape for shape in LINEARS if shape.codes]
EXPERT = [shape for shape in LINEARS if shape.rows == CHUNK and shape.codes]
EXPERT_ATTENTION = [shape for shape in ATTENTIONS if shape.rows == CHUNK]


def session(node, feeds, outputs, constants, *, threads, level=None, library=False):
    types = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(bool): TensorProto.BOOL}
    inputs = [helper.make_tensor_value_info(n, types[a.dtype], a.shape) for n, a in feeds.items()]
    results = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs]
    made = helper.make_model(
        helper.make_graph([node], "one", inputs, results, constants),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)],
        functions=functions(),
        ir_version=10,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if level:
        options.add_session_config_entry(LEVEL, level)
    if library:
        options.register_custom_ops_library(str(library_path()))
    return onnxruntime.InferenceSession(
        made.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@pytest.mark.parametrize("computed", COMPUTED)
@pytest.mark.parametrize("group", GROUP_SIZES)
@pytest.mark.parametrize("shape", EXPERT, ids=lambda s: s.name.replace(" ", "_"))
def test_linear_w4(measure, ceilings, threads, computed, group, shape):
    random = np.random.default_rng(0)
    weight = random.standard_normal((shape.out, shape.depth), np.float32)
    codes = round_to_nearest(weight, CodeFormat(4, group))
    halves = codes.codes.T.reshape(-1).astype(np.uint8) & 15
    packed = (halves[::2] | halves[1::2] << 4).tobytes()
    constants = [
        TensorProto(
            name="codes",
            data_type=TensorProto.INT4,
            dims=(shape.depth, shape.out),
            raw_data=packed,
        ),
        numpy_helper.from_array(np.ascontiguousarray(codes.scales.T), "scales"),
    ]
    feeds = {"x": random.standard_normal((shape.rows, shape.depth), np.float32)}
    node = helper.make_node("LinearW4", ["x", "codes", "scales"], ["y"], domain=DOMAIN, group=group)
    level = COMPUTED[computed]
    made = session(
        node, feeds, ["y"], constants, threads=threads, level=level, library=level is None
    )
    loop = "float32" if level == "0" else "int8"
    measure(
        lambda: made.run(None, feeds),
        {"computed": computed, "group": group, "threads": threads, "shape": shape.text},
        flops=shape.flops,
        ceiling=ceilings.loop(loop, ""),
    )


@pytest.mark.parametrize("computed", ["library", "body", "float32"])
@pytest.mark.parametrize("shape", CODED, ids=lambda s: s.name.replace(" ", "_"))
def test_linear_w8(measure, ceilings, threads, computed, shape):
    random = np.random.default_rng(0)
    weight = random.standard_normal((shape.out, shape.depth), np.float32)
    codes = round_to_nearest(weight, CodeFormat(8))
    constants = [
        numpy_helper.from_array(np.ascontiguousarray(codes.codes.T), "codes"),
        numpy_helper.from_array(codes.scales[:, 0].copy(), "scales"),
    ]
    node = helper.make_node("LinearW8", ["x", "codes", "scales"], ["y"], domain=DOMAIN)
    if computed == "float32":
        constants = [numpy_helper.from_array(np.ascontiguousarray(weight.T), "weight")]
        node = helper.make_node("MatMul", ["x", "weight"], ["y"])
    feeds = {"x": random.standard_normal((shape.rows, shape.depth), np.float32)}
    made = session(node, feeds, ["y"], constants, threads=threads, library=computed == "library")
    measure(
        lambda: made.run(None, feeds),
        {"computed": computed, "threads": threads, "shape": shape.text},
        flops=shape.flops,
        ceiling=ceilings.loop("float32" if computed == "float32" else "int8", ""),
    )


@pytest.mark.parametrize("library", [True, False], ids=["library", "body"])
@pytest.mark.parametrize("shape", EXPERT_ATTENTION, ids=lambda s: s.name.replace(" ", "_"))
def test_expert_attention(measure, ceilings, threads, library, shape):
    random = np.random.default_rng(0)
    width, kv_width = shape.heads * HEAD_DIM, shape.kv_heads * HEAD_DIM
    feeds = {
        "query": random.standard_normal((1, shape.rows, width), np.float32),
        "key": random.standard_normal((1, shape.keys, kv_width), np.float32),
        "value": random.standard_normal((1, shape.keys, kv_width), np.float32),
        "mask": np.arange(shape.keys) < np.array(shape.lengths)[:, None],
    }
    node = helper.make_node(
        "ExpertAttention",
        list(feeds),
        ["y"],
        domain=DOMAIN,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
    )
    made = session(node, feeds, ["y"], [], threads=threads, library=library)
    measure(
        lambda: made.run(None, feeds),
        {"computed": "library" if library else "body", "threads": threads, "shape": shape.text},
        flops=shape.flops,
        ceiling=ceilings.loop("float32", ""),
    )


@pytest.mark.parametrize("library", [True, False], ids=["library", "body"])
def test_denoise_step(measure, ceilings, threads, library):
    random = np.random.default_rng(0)
    shapes = dict.fromkeys(("x", "v", "last"), (CHUNK, DIMS))
    shapes |= {"row": (5,), "pull_target": (1, DIMS), "pull_weights": (1,)}
    feeds = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    node = helper.make_node("DenoiseStep", list(feeds), ["x_next", "v_pulled"], domain=DOMAIN)
    made = session(node, feeds, ["x_next", "v_pulled"], [], threads=threads, library=library)
    measure(
        lambda: made.run(None, feeds),
        {"computed": "library" if library else "body", "threads": threads},
        bytes_moved=5.0 * 4 * CHUNK * DIMS,
        ceiling=ceilings.copy(CHUNK, DIMS),
    )
