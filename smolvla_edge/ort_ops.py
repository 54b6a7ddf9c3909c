"""The operators of the domain `smolvla_edge` for ONNX Runtime: where their library is.

    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library_path()))

It holds the kernels of the native backend for the CPU, runs on the session's own threads, and
loads in ONNX Runtime 1.20 to the newest. What the operators compute is in export/functions.py.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from smolvla_edge.errors import BackendError

LIBRARY = "smolvla_edge_ort.so"


def library_path() -> Path:
    """The library beside the extension module. Raises BackendError where there is none."""
    spec = find_spec("smolvla_edge._core")
    folder = Path(spec.origin).parent if spec and spec.origin else Path(__file__).parent
    path = folder / LIBRARY
    if not path.is_file():
        raise BackendError(
            f"expected the operators for ONNX Runtime in {path}, found no such file: this "
            "installation was built without them; build the package again (pip install .), or load "
            "the export without custom operators, which computes the same in standard ONNX"
        )
    return path
