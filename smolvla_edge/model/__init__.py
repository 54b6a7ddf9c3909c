"""SmolVLA in PyTorch: the oracle that everything else is compared with. Needs the extra `torch`.

Read in this order: smolvla.py (the whole), vision.py, prefix.py, expert.py, flow.py, layers.py.
Plans add solver.py and token_cache.py.
"""

from __future__ import annotations

from smolvla_edge.errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise MissingExtraError(
        "the reference model needs PyTorch, which is not installed; "
        "run: pip install 'smolvla-edge[torch]'"
    ) from error

from smolvla_edge.model.smolvla import SmolVLA
from smolvla_edge.model.vision import letterbox
from smolvla_edge.model.weights import load_model

__all__ = ["SmolVLA", "letterbox", "load_model"]
