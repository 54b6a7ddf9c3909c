"""The simulator as a robot: the same episode every time, and errors that say what to do."""

from __future__ import annotations

import builtins
import sys

import numpy as np
import pytest
from eval_helpers import need_simulator

from smolvla_edge.errors import MissingExtraError, SimulatorError
from smolvla_edge.eval import metaworld
from smolvla_edge.eval.metaworld import STEP_LIMIT, Metaworld
from smolvla_edge.eval.tasks import TASKS, find_tasks

NAMES = list(TASKS)


@pytest.fixture(scope="module")
def worlds():
    need_simulator()
    opened: dict[str, Metaworld] = {}

    def world(name: str) -> Metaworld:
        if name not in opened:
            opened[name] = Metaworld(TASKS[name], 64, 64)
        return opened[name]

    yield world
    for made in opened.values():
        made.close()


def played(world: Metaworld, seed: int, steps: int = 12):
    """Pictures, states and everything else of an episode under fixed actions."""
    world.reset(seed)
    random = np.random.default_rng(7)
    found = [(world.picture(), world.state, world.everything.copy())]
    for _ in range(steps):
        world.step(random.uniform(-1, 1, 4).astype(np.float32))
        found.append((world.picture(), world.state, world.everything.copy()))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_an_episode_is_the_same_whatever_was_before_it(worlds, name):
    world = worlds(name)
    first = played(world, 3)
    played(world, 8, steps=40)
    again = played(world, 3)
    fresh = Metaworld(TASKS[name], 64, 64)
    other = played(fresh, 3)
    fresh.close()
    for one, two, three in zip(first, again, other, strict=True):
        for a, b, c in zip(one, two, three, strict=True):
            assert np.array_equal(a, b) and np.array_equal(a, c)


@pytest.mark.parametrize("name", NAMES)
def test_the_scripted_expert_solves_the_task_from_what_it_is_told(worlds, name):
    """The layouts are solvable in time, also where they are wider than Meta-World's own."""
    from metaworld.policies import ENV_POLICY_MAP

    world = worlds(name)
    solved = 0
    for seed in range(5):
        world.reset(seed)
        expert = ENV_POLICY_MAP[TASKS[name].environment]()
        solved += any(world.step(expert.get_action(world.everything)) for _ in range(STEP_LIMIT))
    assert solved >= 4


@pytest.mark.parametrize("name", NAMES)
def test_layouts_differ_and_show(worlds, name):
    world = worlds(name)
    pictures, objects = [], []
    for seed in range(4):
        world.reset(seed)
        pictures.append(world.picture().astype(int))
        objects.append(np.concatenate([world.everything[4:7], world.everything[36:39]]))
    for i in range(3):
        assert np.abs(objects[i] - objects[i + 1]).max() > 1e-3
        assert (np.abs(pictures[i] - pictures[i + 1]).max(2) > 20).sum() > 5


@pytest.mark.parametrize("name", ["drawer-open", "window-open", "window-close", "faucet-open"])
def test_the_first_moment_is_of_this_layout_and_not_the_one_before(worlds, name):
    """The tasks in which Meta-World's own is not: objects 8 to 11 cm and 47 to 153 pixels off."""
    world = worlds(name)
    world.reset(8)
    world.reset(2)
    picture, objects = world.picture().astype(int), world.everything[4:7].copy()
    world.step(np.zeros(4, np.float32))
    assert np.abs(world.everything[4:7] - objects).max() < 0.01
    assert (np.abs(world.picture() - picture).max(2) > 20).sum() < 25


@pytest.mark.parametrize("open_it, close_it", [(NAMES[i], NAMES[i + 1]) for i in (2, 4)])
def test_pairs_start_from_places_that_overlap(worlds, open_it, close_it):
    """What tells the two apart is the instruction: their joints start in overlapping ranges."""
    starts = []
    for name in (open_it, close_it):
        world, joint = worlds(name), TASKS[name].joint
        values = []
        for seed in range(24):
            world.reset(seed)
            if joint is None:
                values.append(world.picture().astype(int))
            else:
                address = world._env.model.joint(joint.name).qposadr[0]
                values.append(float(world._env.data.qpos[address]))
        starts.append(values)
    if TASKS[open_it].joint is None:  # the faucet: the very same pictures
        for one, other in zip(*starts, strict=True):
            assert np.abs(one - other).max() <= 8
        return
    low, high = max(map(min, starts)), min(map(max, starts))
    assert sum(low < value < high for value in starts[0]) >= 2
    assert sum(low < value < high for value in starts[1]) >= 2


def test_marks_are_hidden_where_words_must_tell(worlds):
    """No site is drawn in a task whose goal is more than a mark."""
    for name in NAMES:
        world = worlds(name)
        assert bool(world._options.sitegroup.any()) == TASKS[name].marked


def test_wrong_sizes_and_seeds_are_refused(worlds):
    with pytest.raises(SimulatorError, match="width: expected 16 to 4096 pixels, got 4"):
        Metaworld(TASKS["push"], 4, 64)
    with pytest.raises(SimulatorError, match="seed: expected 0 or more"):
        worlds("push").reset(-1)


@pytest.mark.parametrize("names", ["", " , ", "drawer-open,levitate"])
def test_unknown_tasks_are_refused(names):
    with pytest.raises(SimulatorError, match="tasks: expected some of drawer-open"):
        find_tasks(names)


def test_tasks_are_found_once_and_in_order():
    assert [t.name for t in find_tasks("push, drawer-open,push")] == ["push", "drawer-open"]
    assert [t.name for t in find_tasks(None)] == NAMES


def broken_import(monkeypatch, module: str, error: Exception) -> None:
    real = builtins.__import__

    def fake(name, *args, **kwargs):
        if name.split(".")[0] == module:
            raise error
        return real(name, *args, **kwargs)

    for loaded in [m for m in sys.modules if m.split(".")[0] in ("mujoco", "metaworld")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setattr(builtins, "__import__", fake)


def test_a_missing_simulator_names_the_extra(monkeypatch):
    broken_import(monkeypatch, "metaworld", ModuleNotFoundError("No module named 'metaworld'"))
    with pytest.raises(MissingExtraError, match=r"pip install 'smolvla-edge\[sim\]'"):
        metaworld.require_simulator()


def test_missing_libraries_name_the_apt_line(monkeypatch):
    """What mujoco raises without libEGL: an attribute of a library that is None."""
    error = AttributeError("'NoneType' object has no attribute 'eglQueryString'")
    broken_import(monkeypatch, "metaworld", error)
    with pytest.raises(SimulatorError, match="sudo apt-get install -y libegl1"):
        metaworld.require_simulator()
