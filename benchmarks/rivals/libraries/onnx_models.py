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
