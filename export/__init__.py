"""ONNX export: a policy as graphs that any ONNX runtime runs. Needs the extra `export`.

Read in this order: exporter.py (the whole), graphs.py (one graph each), vision.py, prefix.py,
flow.py, layers.py (what is traced), stored.py and forms.py (the weights), loop.py, joining.py.
"""

from __future__ import annotations

from smolvla_edge.errors import MissingExtraError

try:
    import onnx as _onnx  # noqa: F401
    import onnx_ir as _onnx_ir  # noqa: F401
    import onnxscript as _onnxscript  # noqa: F401
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise MissingExtraError(
        f"the export needs torch, onnx and onnxscript ({error}); "
        "run: pip install 'smolvla-edge[export]'"
    ) from error
