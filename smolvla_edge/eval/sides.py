"""What is judged: a policy, a plan, and how much of each chunk is executed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from smolvla_edge.errors import PlanError
from smolvla_edge.eval.tasks import Task, other_task
from smolvla_edge.policy import Policy, load

GREY = 128  # of a blank picture
OTHER = "@other"
LEROBOT = "@lerobot"


@dataclass(frozen=True)
class Side:
    """One of the (at most two) policies of an evaluation; all of it can be sent to a process.

    plan: "exact", the name of a preset of the bundle, words "steps=4,solver=ab2" that change the
    exact plan, or a .json file (plan_words.py). n_action_steps: how many actions of a chunk are
    executed before the next one is computed; None is the checkpoint's own number. blank: the policy
    sees a grey picture instead of the camera's. instruction: said in every task instead of its own;
    OTHER says each task the words of another (of the one that shares its scene, if any), LEROBOT
    what LeRobot's environment says.
    """

    policy: str
    plan: str = "exact"
    n_action_steps: int | None = None
    blank: bool = False
    instruction: str | None = None

    def open(self, threads: int | None = 1, device: str = "auto") -> tuple[Policy, int]:
        """The policy under its plan, and the actions executed of each chunk. (Of a device "auto"
        `threads` makes the CPU.)

        Raises what `load` raises; PlanError for words that are no plan, and for more actions than
        a chunk has.
        """
        policy = load(self.policy, device=device, threads=threads, plan=self.plan)
        count = self.n_action_steps or policy.contract.n_action_steps
        rows = policy.plan.rows(policy.model.chunk_size)
        if not 1 <= count <= rows:
            raise PlanError(f"n_action_steps: expected 1 to {rows} (the chunk), got {count}")
        return policy, count

    def facts(self) -> dict[str, Any]:
        """What is judged, with every number that the policy leaves to itself; JSON-able."""
        policy, count = self.open()
        return {
            **self.to_json(),
            "n_action_steps": count,
            "steps": policy.plan.steps,
            "horizon": policy.plan.rows(policy.model.chunk_size),
            "chunk_size": policy.model.chunk_size,
            "provenance": policy.provenance,
        }

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def told(self, task: Task) -> str:
        """What this side is told in a task."""
        if self.instruction == OTHER:
            return other_task(task).instruction
        if self.instruction == LEROBOT:
            return task.lerobot
        return self.instruction or task.instruction

    def describe(self) -> str:
        """A short name for tables."""
        words = [self.plan]
        if self.n_action_steps is not None:
            words.append(f"n_action_steps={self.n_action_steps}")
        if self.blank:
            words.append("blank picture")
        if self.instruction == OTHER:
            words.append("told another task's words")
        elif self.instruction == LEROBOT:
            words.append("told LeRobot's words")
        elif self.instruction is not None:
            words.append(f'told "{self.instruction}"')
        return ", ".join(words)
