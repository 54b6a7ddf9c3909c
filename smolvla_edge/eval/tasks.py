"""The ten Meta-World tasks of the demo policy.

Four of them come in pairs that share a scene (window, faucet): only the instruction says which of
the two to do, because the joint may start anywhere between its ends. Layouts are wider than
Meta-World's own where its range is so narrow that a policy without eyes solves it
(docs/evaluation.md has the blind scores). Meta-World's own layouts are among ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from smolvla_edge.errors import SimulatorError


@dataclass(frozen=True)
class Joint:
    """Where a joint starts: between `usual` (Meta-World's own start) and `far`.

    Both are positions in the joint's own unit. A third of the starts are `usual` itself.
    """

    name: str
    usual: float
    far: float


@dataclass(frozen=True)
class Task:
    """A task: Meta-World's environment, how one may ask for it, and how its layout is drawn.

    `instructions[0]` is the one that evaluations use unless told otherwise, `lerobot` what the
    environment of LeRobot says in this task. `region` replaces Meta-World's range (low, high) in
    metres of some of the numbers that an initial state is drawn from. `marked`: the goal is a
    coloured mark and nothing else, so it is drawn; elsewhere marks are hidden, because they would
    say what to do in place of the instruction.
    """

    name: str
    environment: str
    instructions: tuple[str, ...]
    lerobot: str
    region: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    joint: Joint | None = None
    marked: bool = False

    @property
    def instruction(self) -> str:
        return self.instructions[0]


_WINDOW = {0: (-0.4, 0.3), 1: (0.62, 0.93), 2: (0.16, 0.3)}
_FAUCET = {0: (-0.36, 0.36), 1: (0.62, 0.92), 2: (0.0, 0.12)}

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "drawer-open", "drawer-open-v3",
            ("open the drawer", "pull the drawer open", "slide the drawer out"),
            "Open a drawer",
            {0: (-0.35, 0.35), 1: (0.8, 0.92)}, Joint("goal_slidey", 0.0, -0.1),
        ),
        Task(
            "button-front", "button-press-v3",
            ("push the red button from the front", "push the button in",
             "press the button inwards"),
            "Press a button",
            {0: (-0.35, 0.35), 1: (0.8, 0.9)},
        ),
        Task(
            "window-open", "window-open-v3",
            ("open the window", "slide the window open", "push the window handle to the right"),
            "Push and open a window",
            _WINDOW, Joint("window_slide", 0.0, 0.12),
        ),
        Task(
            "window-close", "window-close-v3",
            ("close the window", "slide the window shut", "push the window handle to the left"),
            "Push and close a window",
            _WINDOW, Joint("window_slide", 0.2, 0.08),
        ),
        Task(
            "faucet-open", "faucet-open-v3",
            ("open the faucet", "turn the faucet on", "rotate the faucet counterclockwise"),
            "Rotate the faucet counter-clockwise",
            _FAUCET,
        ),
        Task(
            "faucet-close", "faucet-close-v3",
            ("close the faucet", "turn the faucet off", "rotate the faucet clockwise"),
            "Rotate the faucet clockwise",
            _FAUCET,
        ),
        Task(
            "push", "push-v3",
            ("push the puck to the green mark", "slide the puck to the goal on the table"),
            "Push the puck to a goal",
            marked=True,
        ),
        Task(
            "pick-place", "pick-place-v3",
            ("lift the puck to the blue mark", "pick up the puck and bring it to the goal"),
            "Pick and place a puck to a goal",
            marked=True,
        ),
        Task(
            "button-press", "button-press-topdown-v3",
            ("push the red button from above", "press the button down", "press the red button"),
            "Press a button from the top",
            {0: (-0.35, 0.35), 1: (0.72, 0.92)},
        ),
        Task(
            "hammer", "hammer-v3",
            ("hammer in the nail", "hit the nail with the hammer", "drive the nail into the block"),
            "Hammer a screw on the wall",
            {0: (-0.15, 0.15), 1: (0.38, 0.52)},
        ),
    )
}  # fmt: skip


_SHARING = (
    ("drawer-open", "hammer"),
    ("window-open", "window-close"),
    ("faucet-open", "faucet-close"),
    ("push", "pick-place"),
    ("button-press", "button-front"),
)


def other_task(task: Task) -> Task:
    """The task whose instruction shows whether words count: the one of the same scene, if any."""
    for one, other in _SHARING:
        if task.name in (one, other):
            return TASKS[other if task.name == one else one]
    raise SimulatorError(f"{task.name}: expected one of {', '.join(TASKS)}")


def find_tasks(names: str | None) -> list[Task]:
    """The tasks of a comma-separated list, in its order; all of them for None.

    Raises SimulatorError for a name that is no task.
    """
    if names is None:
        return list(TASKS.values())
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in chosen if name not in TASKS]
    if unknown or not chosen:
        raise SimulatorError(
            f"tasks: expected some of {', '.join(TASKS)}, got {', '.join(unknown) or 'none'}"
        )
    return [TASKS[name] for name in dict.fromkeys(chosen)]
