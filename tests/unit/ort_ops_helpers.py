"""Small ONNX models of the operators of the domain `smolvla_edge`, and sessions of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from needs import needs

from smolvla_edge import _core
from smolvla_edge.codes import CodeFormat, Codes, round_rows
from smolvla_edge.ort_ops import library_path

with needs("onnx", "onnxruntime"):
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    from smolvla_edge.export.functions import DOMAIN, OPSET, VERSION, functions

RUNTIME = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
RUNS_BODIES = RUNTIME >= (1, 23)  # the oldest that knows opset 23
needs_bodies = pytest.mark.skipif(not RUNS_BODIES, reason="this ONNX Runtime knows no opset 23")
EPS = 2.0**-24
FLOAT, BOOL, INT4, INT64 = (
    TensorProto.FLOAT,
    TensorProto.BOOL,
    TensorProto.INT4,
    TensorProto.INT64,
)
value = helper.make_tensor_value_info


def int4(name: str, codes: np.ndarray) -> TensorProto:
    """int8 codes in [-8, 7] as ONNX packs them: in row-major order, the first in the low half."""
    flat = codes.reshape(-1)
    halves = np.append(flat, np.zeros(flat.size % 2, np.int8)).astype(np.uint8) & 15
    packed = (halves[::2] | halves[1::2] << 4).tobytes()
    return TensorProto(name=name, data_type=INT4, dims=codes.shape, raw_data=packed)


def constant(name: str, array: np.ndarray) -> TensorProto:
    return numpy_helper.from_array(array.copy(order="C"), name)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[str],
    constants: Sequence[TensorProto] = (),
    *,
    bodies: bool = False,
) -> bytes:
    """Outputs are float32 of any shape."""
    graph = helper.make_graph(
        nodes, "test", inputs, [value(name, FLOAT, None) for name in outputs], constants
    )
    # Without bodies the oldest runtime that loads the library is enough.
    imports = [
        helper.make_opsetid("", OPSET if bodies else 21),
        helper.make_opsetid(DOMAIN, VERSION),
    ]
    made = helper.make_model(
        graph,
        opset_imports=imports,
        functions=functions() if bodies else [],
        ir_version=10,
    )
    return made.SerializeToString()


def session(
    content: bytes,
    *,
    library: bool = True,
    threads: int = 1,
    profile: Path | None = None,
    optimized: Path | None = None,
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # refusals are expected: they come as exceptions too
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    if library:
        options.register_custom_ops_library(str(library_path()))
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    if optimized:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def operators_run(content: bytes, feeds: dict[str, np.ndarray], folder: Path) -> set[str]:
    """The operators that a session with the library really ran, by its own profile."""
    made = session(content, profile=folder / "profile")
    made.run(None, feeds)
    events = json.loads(Path(made.end_profiling()).read_text())
    return {event["args"]["op_name"] for event in events if "op_name" in event.get("args", {})}


def operators_of(path: Path) -> list[str]:
    """The operators of a model file, those of its Loops' bodies too."""
    found = []
    graphs = [onnx.load(path).graph]
    for graph in graphs:
        for node in graph.node:
            found.append(node.op_type)
            graphs += [attribute.g for attribute in node.attribute if attribute.g.node]
    return found


def some_codes(random: np.random.Generator, depth: int, out: int, group: int | None) -> Codes:
    """Of four bits, or without a group of eight."""
    if group is None:
        scales = random.uniform(2.0**-9, 2.0**-6, (out, 1)).astype(np.float32)
        codes = random.integers(-127, 128, (out, depth)).astype(np.int8)
        return Codes(CodeFormat(8), codes, scales)
    form = CodeFormat(4, group)
    scales = random.uniform(2.0**-9, 2.0**-6, (out, form.groups(depth))).astype(np.float16)
    codes = random.integers(-8, 8, (out, depth)).astype(np.int8)
    return Codes(form, codes, scales.astype(np.float32))


def rounded_linear(codes: Codes, x: np.ndarray) -> np.ndarray:
    """The arithmetic itself: integers of round_rows, exact sums of a group, groups added in order
    with one rounding each (a float64 holds the product and the sum before it). Of eight bits the
    one sum may be too long for a float32: it is rounded before it meets the scale."""
    rows, row_scales = round_rows(x)
    size = codes.format.group_size
    if size is None:
        sums = rows.astype(np.int64) @ codes.codes.T.astype(np.int64)
        return sums.astype(np.float32) * codes.scales[:, 0] * row_scales[:, None]
    total = np.zeros((len(x), len(codes.codes)), np.float32)
    for g in range(codes.scales.shape[1]):
        at = slice(g * size, (g + 1) * size)
        sums = rows[:, at].astype(np.int64) @ codes.codes[:, at].astype(np.int64).T
        total = (total + sums * codes.scales[:, g].astype(np.float64)).astype(np.float32)
    return total * row_scales[:, None]


def native_linear(codes: Codes, x: np.ndarray, folder: Path) -> np.ndarray:
    """What the engine makes of codes that were stored."""
    out, depth = codes.codes.shape
    stored, scales = codes.stored()
    path = folder / "codes.bin"
    path.write_bytes(stored.tobytes() + scales.tobytes())
    ops = _core.CpuOps(1)
    dtype = "U8" if codes.format.bits == 4 else "I8"
    weight = ops.load_codes(str(path), dtype, out, depth, codes.scales.shape[1])
    y = np.empty((len(x), out), np.float32)
    ops.linear(weight, ops.make_activation(x), y)
    return y


def weights_of(codes: Codes) -> list[TensorProto]:
    if codes.format.bits == 8:
        return [constant("codes", codes.codes.T), constant("scales", codes.scales[:, 0])]
    return [int4("codes", codes.codes.T), constant("scales", codes.scales.T)]


def linear_node(
    group: int | None, x: str = "x", y: str = "y", op: str = "LinearW4"
) -> onnx.NodeProto:
    attributes = {} if group is None else {"group": group}
    return helper.make_node(op, [x, "codes", "scales"], [y], domain=DOMAIN, **attributes)


def node_of(codes: Codes, x: str = "x", y: str = "y") -> onnx.NodeProto:
    return linear_node(codes.format.group_size, x, y, f"LinearW{codes.format.bits}")


def shaped(
    content: bytes, feeds: dict[str, np.ndarray], shapes: dict[str, Sequence[int]]
) -> onnx.ModelProto:
    """The model with the shapes of these inputs and outputs."""
    made = onnx.load_from_string(content)
    types = {np.dtype(np.float32): FLOAT, np.dtype(bool): BOOL}
    del made.graph.input[:], made.graph.output[:]
    made.graph.input.extend(value(n, types[a.dtype], a.shape) for n, a in feeds.items())
    made.graph.output.extend(value(name, FLOAT, shape) for name, shape in shapes.items())
    return made


def linear_model(codes: Codes, *, bodies: bool = False) -> bytes:
    return model(
        [node_of(codes)], [value("x", FLOAT, None)], ["y"], weights_of(codes), bodies=bodies
    )


def looped_linear(codes: Codes, *, inside: bool, bodies: bool) -> bytes:
    """Two rounds of x <- LinearW4(x), or LinearW8; its codes are the Loop body's own, or not."""
    square = codes.codes.shape[0]
    body = helper.make_graph(
        [
            node_of(codes, "before", "after"),
            helper.make_node("Identity", ["goes_on"], ["still"]),
        ],
        "body",
        [
            value("step", INT64, []),
            value("goes_on", BOOL, []),
            value("before", FLOAT, [None, square]),
        ],
        [value("still", BOOL, []), value("after", FLOAT, [None, square])],
        weights_of(codes) if inside else [],
    )
    # onnx.reference runs no round of a Loop that is given no condition.
    loop = helper.make_node("Loop", ["rounds", "always", "x"], ["y"], body=body)
    rounds = [constant("rounds", np.array(2, np.int64)), constant("always", np.array(True))]
    outer = [] if inside else weights_of(codes)
    x = value("x", FLOAT, [None, square])
    return model([loop], [x], ["y"], [*rounds, *outer], bodies=bodies)


def attention_model(heads: int, kv_heads: int, *, bodies: bool = False) -> bytes:
    node = helper.make_node(
        "ExpertAttention",
        ["query", "key", "value", "mask"],
        ["y"],
        domain=DOMAIN,
        heads=heads,
        kv_heads=kv_heads,
    )
    # Ranks are the body's to know: Attention reads them before it runs.
    inputs = [value(name, FLOAT, [None] * 3) for name in ("query", "key", "value")]
    return model([node], [*inputs, value("mask", BOOL, [None] * 2)], ["y"], bodies=bodies)


def reference_attention(q, k, v, mask, heads, kv_heads):
    """In float64, and the error that float32 may make (as tests/unit/test_cpu_ops.py counts it)."""
    (rows, width), columns = q.shape, len(k)
    dim, group = width // heads, heads // kv_heads
    out, allowed = np.empty((rows, width)), np.empty((rows, width))
    for h in range(heads):
        at = slice(h * dim, (h + 1) * dim)
        kv_at = slice(h // group * dim, (h // group + 1) * dim)
        scores = q[:, at].astype(np.float64) @ k[:, kv_at].T.astype(np.float64) / np.sqrt(dim)
        scores[~mask] = -np.inf
        p = np.exp(scores - scores.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        size = np.where(mask, np.abs(q[:, at]) @ np.abs(k[:, kv_at]).T, 0).max(1) / np.sqrt(dim)
        moved = (min(dim, 256) + dim // 256 + 4) * EPS * 1.01 * size
        roundings = (2 * columns / 16 + min(columns, 256) + 32) * EPS
        out[:, at] = p @ v[:, kv_at]
        allowed[:, at] = (2 * moved + roundings)[:, None] * (p @ np.abs(v[:, kv_at])) * 1.01
    return out, allowed


def any_mask(random, columns: int, rows: int) -> np.ndarray:
    mask = random.random((rows, columns)) < 0.5
    mask[np.arange(rows), random.integers(0, columns, rows)] = True
    return mask


STEP_INPUTS = ("x", "v", "last", "row", "pull_target", "pull_weights")


def step_model(*, bodies: bool = False) -> bytes:
    node = helper.make_node("DenoiseStep", STEP_INPUTS, ["x_next", "v_pulled"], domain=DOMAIN)
    inputs = [value(name, FLOAT, None) for name in STEP_INPUTS]
    return model([node], inputs, ["x_next", "v_pulled"], bodies=bodies)
