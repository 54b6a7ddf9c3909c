"""Meta-World as a robot: pictures and state out, actions in (extra `sim`).

Meta-World (Yu et al. 2019, version 3.0.0 on MuJoCo) is a Sawyer arm at a table. An observation is
what LeRobot's own environment gives: the camera "corner2" from LeRobot's place, turned upside up,
and four numbers: the hand's x, y, z in metres and the gripper's opening in [0, 1]. An action is
the hand's next displacement in units of a centimetre and the gripper's effort, each in [-1, 1].

Pictures are drawn without shadows, reflections and multisampling: 14 times faster in software.
"""

from __future__ import annotations

import os
import sys
import warnings
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.errors import MissingExtraError, SimulatorError
from smolvla_edge.eval.tasks import Task

CAMERA = "observation.image"
STEP_LIMIT = 130  # the scripted experts need up to 120
FILM_SIDE = 360  # of pictures for people
CONTROL_RATE = 80.0  # steps a second: 5 substeps of 2.5 ms
_STATIC = "corner2"
_CAMERA_PLACE = (0.75, 0.075, 0.7)
_INSTALL_GL = "sudo apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri"


def require_simulator() -> ModuleType:
    """mujoco, able to draw. Raises MissingExtraError or SimulatorError with what to install."""
    if sys.platform == "linux":
        # Software drawing without a display; a frame is too small to be shared among threads.
        os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("LP_NUM_THREADS", "1")
    try:
        import metaworld.env_dict  # noqa: F401
        import mujoco
    except ImportError as cause:
        if "mujoco" in sys.modules or isinstance(cause, ModuleNotFoundError):
            raise MissingExtraError(
                f"the simulator is not installed ({cause}): pip install 'smolvla-edge[sim]'"
            ) from cause
        raise _no_drawing(cause) from cause
    except (AttributeError, OSError, RuntimeError) as cause:  # mujoco without libEGL
        raise _no_drawing(cause) from cause
    return mujoco


class Metaworld:
    """Episodes of one task, one after the other.

    width, height: of the pictures, in pixels. The same task and seed give the same episode, bit for
    bit, whatever was run before. Not for use from several threads; `close` frees the drawing
    context.
    """

    def __init__(self, task: Task, width: int, height: int) -> None:
        for name, side in (("width", width), ("height", height)):
            if not 16 <= side <= 4096:
                raise SimulatorError(f"{name}: expected 16 to 4096 pixels, got {side}")
        self.task = task
        self._mujoco = require_simulator()
        self._env = _make(task)
        model = self._env.model
        model.vis.quality.offsamples = 0
        model.vis.global_.offwidth = max(width, FILM_SIDE)
        model.vis.global_.offheight = max(height, FILM_SIDE)
        model.camera(_STATIC).pos[:] = _CAMERA_PLACE
        self._renderers: dict[tuple[int, int], Any] = {}
        self._size = (width, height)
        self._renderer(self._size)
        self._options = self._mujoco.MjvOption()
        if not task.marked:
            self._options.sitegroup[:] = 0
        self._observation: NDArray[np.float64] = np.zeros(39)

    def reset(self, seed: int) -> None:
        """Begin the episode of this seed (>= 0)."""
        if seed < 0:
            raise SimulatorError(f"seed: expected 0 or more, got {seed}")
        env = self._env
        env.seed(seed)
        env.reset(seed=seed)
        if self.task.joint is not None:
            joint = env.model.joint(self.task.joint.name)
            env.data.qpos[joint.qposadr[0]] = _start(self.task.joint, seed)
        # Meta-World moves bodies without telling the solver (and resets twice, each time with a
        # layout of its own): until the next step observation and picture would show the first one.
        self._mujoco.mj_forward(env.model, env.data)
        for site in env._target_site_config:
            env._set_pos_site(*site)
        self._mujoco.mj_forward(env.model, env.data)
        env._prev_obs = env._get_curr_obs_combined_no_goal()
        self._observation = env._get_obs()

    def picture(
        self, size: tuple[int, int] | None = None, camera: str = _STATIC
    ) -> NDArray[np.uint8]:
        """What the camera sees, uint8 [height, width, 3]; for people in another (width, height), or
        by another of MuJoCo's cameras: "gripperPOV" moves with the hand."""
        flags = self._mujoco.mjtRndFlag
        renderer = self._renderer(size or self._size)
        renderer.update_scene(self._env.data, camera=camera, scene_option=self._options)
        for flag in (flags.mjRND_SHADOW, flags.mjRND_REFLECTION):
            renderer.scene.flags[flag] = 0
        return np.ascontiguousarray(renderer.render()[::-1, ::-1])

    @property
    def state(self) -> NDArray[np.float32]:
        """The hand's x, y, z in metres and the gripper's opening, float32 [4]."""
        return self._observation[:4].astype(np.float32)

    @property
    def everything(self) -> NDArray[np.float64]:
        """Meta-World's own observation, float64 [39], objects and goal included: for experts."""
        return self._observation

    def step(self, action: NDArray[np.floating[Any]]) -> bool:
        """Act for one step -> whether Meta-World calls the task solved in this state.

        action: float [4], cut to [-1, 1] as Meta-World does.
        """
        clipped = np.clip(np.asarray(action, np.float32), -1.0, 1.0)
        self._observation, _, _, _, info = self._env.step(clipped)
        return float(info["success"]) >= 1.0

    def close(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()

    def _renderer(self, size: tuple[int, int]) -> Any:
        if size not in self._renderers:
            width, height = size
            limits = self._env.model.vis.global_
            limits.offwidth = max(limits.offwidth, width)
            limits.offheight = max(limits.offheight, height)
            try:
                self._renderers[size] = self._mujoco.Renderer(self._env.model, height, width)
            except Exception as cause:  # mujoco raises what its GL binding raises
                raise _no_drawing(cause) from cause
        return self._renderers[size]


def _make(task: Task) -> Any:
    from gymnasium.spaces import Box
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gymnasium's, about the types of spaces
        env = ALL_V3_ENVIRONMENTS[task.environment]()
    space = env._random_reset_space
    low, high = space.low.copy(), space.high.copy()
    for axis, (least, most) in task.region.items():
        low[axis], high[axis] = least, most
    env._random_reset_space = Box(low, high, dtype=np.float64)
    # What `set_task` would do, without its pickled data: draw each layout from the seed, and show
    # the goal in Meta-World's observation, which its experts read.
    env._freeze_rand_vec, env.seeded_rand_vec, env._set_task_called = False, True, True
    env._partially_observable = False
    env.__dict__.pop("sawyer_observation_space", None)  # it was computed for a hidden goal
    env.max_path_length = 10**9  # the step limit is the caller's
    return env


def _start(joint: Any, seed: int) -> float:
    share = np.random.default_rng([seed, 0x5EED]).uniform(-0.5, 1.0)
    return float(joint.usual + max(0.0, share) * (joint.far - joint.usual))


def _no_drawing(cause: Exception) -> SimulatorError:
    return SimulatorError(
        f"the simulator cannot draw here ({type(cause).__name__}: {cause}). It draws with "
        f"MUJOCO_GL={os.environ.get('MUJOCO_GL', 'unset')}, as it was when mujoco was first "
        f"imported; egl needs {_INSTALL_GL}"
    )
