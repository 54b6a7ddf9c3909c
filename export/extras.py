"""What exporting needs beyond the package itself, asked for before any work."""

from __future__ import annotations

from importlib.util import find_spec

from smolvla_edge.errors import MissingExtraError

PACKAGES = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "ml_dtypes")


def require_extra() -> None:
    """Raises MissingExtraError naming what is not installed."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"exporting needs {', '.join(missing)}, which is not installed; run: "
            "pip install 'smolvla-edge[export]'"
        )
