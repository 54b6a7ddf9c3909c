"""Loading a policy while a person waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smolvla_edge.cli import output

if TYPE_CHECKING:
    from smolvla_edge.policy import Policy


def load_policy(path: Any, **options: Any) -> Policy:
    """`smolvla_edge.load`, with a spinner, and a bar for what a GPU needs before its first call."""
    from smolvla_edge.policy import load

    with output.busy(f"loading {path}"), output.warnings_as_lines():
        policy = load(path, warm_up=False, **options)
    if not policy.engine.info()["ready"]:
        with output.progress("warming the GPU up", unit_bytes=False) as report:
            policy.warm_up(progress=report)
    return policy
