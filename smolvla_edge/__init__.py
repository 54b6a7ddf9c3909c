"""SmolVLA robot policies on the robot: exact, small, without LeRobot, transformers or torch.

    import smolvla_edge as se
    policy = se.load("bundle")
    chunk = policy.predict(images, state, task)

Names are imported when they are first used, so that `import smolvla_edge` costs nothing and fails
for no missing extra.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from smolvla_edge.version import __version__

if TYPE_CHECKING:
    from smolvla_edge.bundle import Bundle, read_bundle
    from smolvla_edge.bundle_writer import write_bundle
    from smolvla_edge.checkpoint import Checkpoint, read_checkpoint
    from smolvla_edge.chunk import ActionChunk
    from smolvla_edge.contract import Contract
    from smolvla_edge.errors import SmolVLAEdgeError
    from smolvla_edge.plan import Cache, Plan, Skip
    from smolvla_edge.policy import Policy, load

__all__ = [
    "ActionChunk",
    "Bundle",
    "Cache",
    "Checkpoint",
    "Contract",
    "Plan",
    "Policy",
    "Skip",
    "SmolVLAEdgeError",
    "__version__",
    "load",
    "read_bundle",
    "read_checkpoint",
    "write_bundle",
]

_HOMES = {
    "ActionChunk": "chunk",
    "Bundle": "bundle",
    "Cache": "plan",
    "Checkpoint": "checkpoint",
    "Contract": "contract",
    "Plan": "plan",
    "Policy": "policy",
    "Skip": "plan",
    "SmolVLAEdgeError": "errors",
    "load": "policy",
    "read_bundle": "bundle",
    "read_checkpoint": "checkpoint",
    "write_bundle": "bundle_writer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
