"""One-node ONNX models, run by ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

HEAD_DIM = 64


def _session(model: Any, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Its threads would spin through the turn of the next library.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _model(nodes: Any, inputs: Any, output: str, initializers: Any) -> Any:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "one",
        [info(name, TensorProto.FLOAT, array.shape) for name, array in inputs.items()],
        [info(output, TensorProto.FLOAT, None)],
        initializers,
    )
    domains = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=10)


def matmul(x: np.ndarray, weight: np.ndarray, threads: int) -> Callable[[], np.ndarray]:
    """y = x times the transpose of weight, which is a constant and is packed by the runtime."""
    constant = numpy_helper.from_array(np.ascontiguousarray(weight.T), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    session = _session(_model([node], {"x": x}, "y", [constant]), threads)
    return lambda: session.run(None, {"x": x})[0]


def dynamic_int8(x: np.ndarray, weight: np.ndarray, threads: int) -> Callable[[], np.ndarray]:
    """What onnxruntime.quantization.quantize_dynamic makes of a MatMul: int8 weights with a scale
    for each column, the input rounded by one scale while it runs."""
    scale = np.abs(weight).max(axis=1) / 127
    codes = np.round(weight / scale[:, None]).astype(np.int8)
    constants = [
        numpy_helper.from_array(np.ascontiguousarray(codes.T), "w"),
        numpy_helper.from_array(scale.astype(np.float32), "scale"),
        numpy_helper.from_array(np.zeros(len(scale), np.int8), "zero"),
    ]
    node = helper.make_node(
        "DynamicQuantizeMatMul", ["x", "w", "scale", "zero"], ["y"], domain="com.microsoft"
    )
    session = _session(_model([node], {"x": x}, "y", constants), threads)
    return lambda: session.run(None, {"x": x})[0]


def matmul_nbits(
    x: np.ndarray, weight: np.ndarray, bits: int, block: int, level: int, threads: int
) -> Callable[[], np.ndarray]:
    """com.microsoft.MatMulNBits: codes of 4 or 8 bits with a scale for each block of inputs.

    level: ONNX Runtime's accuracy_level; 4 rounds the inputs to int8 while it runs.
    """
    out, depth = weight.shape
    blocks = -(-depth // block)
    padded = np.pad(weight, ((0, 0), (0, blocks * block - depth))).reshape(out, blocks, block)
    most = 2 ** (bits - 1)
    scale = np.maximum(np.abs(padded).max(axis=2) / (most - 1), 1e-12).astype(np.float32)
    codes = (np.round(padded / scale[:, :, None]) + most).astype(np.uint8)
    stored = codes if bits == 8 else codes[:, :, ::2] | codes[:, :, 1::2] << 4
    constants = [
        numpy_helper.from_array(np.ascontiguousarray(stored), "w"),
        numpy_helper.from_array(scale, "scale"),
    ]
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "scale"], ["y"], domain="com.microsoft",
        K=depth, N=out, bits=bits, block_size=block, accuracy_level=level,
    )  # fmt: skip
    session = _session(_model([node], {"x": x}, "y", constants), threads)
    return lambda: session.run(None, {"x": x})[0]


def integers(x: np.ndarray, weight: np.ndarray, threads: int) -> dict[str, Any]:
    """Every way in which ONNX Runtime multiplies integer weights, faster at level 4 than at 0."""
    found: dict[str, Any] = {
        "onnxruntime dynamic int8": ("int8", dynamic_int8(x, weight, threads)),
        "onnxruntime MatMulNBits 8 bits": ("int8", matmul_nbits(x, weight, 8, 128, 4, threads)),
    }
    for block in (32, 64, 128):
        name = f"onnxruntime MatMulNBits 4 bits, blocks of {block}"
        found[name] = ("int4", matmul_nbits(x, weight, 4, block, 4, threads))
    return found


def attention(q: Any, k: Any, v: Any, mask: Any, threads: int) -> Callable[[], np.ndarray]:
    """com.microsoft.MultiHeadAttention -> [heads, rows, 64]; a mask is an additive bias."""
    heads = q.shape[1]

    def flat(tensor: Any) -> np.ndarray:
        """[1, heads, n, 64] -> [1, n, heads * 64]"""
        array = tensor.numpy().transpose(0, 2, 1, 3)
        return np.ascontiguousarray(array.reshape(1, array.shape[1], heads * HEAD_DIM))

    inputs = {"q": flat(q), "k": flat(k), "v": flat(v)}
    names = ["q", "k", "v"]
    if mask is not None:
        bias = np.where(mask.numpy(), np.float32(0), np.float32(-1e30)).astype(np.float32)
        inputs["bias"] = bias[None, None]
        names += ["", "", "bias"]  # no packed bias, no padding mask
    node = helper.make_node(
        "MultiHeadAttention", names, ["y"], domain="com.microsoft", num_heads=heads
    )
    session = _session(_model([node], inputs, "y", []), threads)
    rows = q.shape[2]

    def call() -> np.ndarray:
        # A view of the result in torch's order of axes; nothing is copied.
        flat_result = session.run(None, inputs)[0]
        return flat_result.reshape(rows, heads, HEAD_DIM).transpose(1, 0, 2)

    return call
