"""The same episodes on a Ray cluster: a local one of two workers."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from eval_helpers import arm_policy, need_simulator

from smolvla_edge.errors import SimulatorError
from smolvla_edge.eval.ray_cluster import connect
from smolvla_edge.eval.runner import Setting, evaluate
from smolvla_edge.eval.sides import Side

ray = pytest.importorskip("ray")
SETTING = Setting(64, 64, step_limit=16)
JOBS = [("push", seed) for seed in range(3)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    need_simulator()
    # Its processes begin where we stand, and would find the source tree before what is installed.
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("cluster"))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield "local"
    ray.shutdown()
    os.chdir(before)


def test_a_cluster_plays_the_same_episodes(cluster, tmp_path):
    side = Side(str(arm_policy(tmp_path / "p")), n_action_steps=4)
    here = evaluate(side, JOBS, SETTING)
    play, count = connect("auto", 8)
    assert count == 2  # one a free CPU: more would wait for ever
    there = evaluate(side, JOBS, SETTING, play=play, file=tmp_path / "e.jsonl")
    assert [replace(r, latency_ms=()) for r in here] == [replace(r, latency_ms=()) for r in there]
    assert len((tmp_path / "e.jsonl").read_text().splitlines()) == 1 + len(JOBS)


def test_what_fails_there_is_told_here(cluster, tmp_path):
    side = Side(str(tmp_path / "nowhere"))
    with pytest.raises(
        SimulatorError, match=r"(?s)failed on the cluster.*same path on every machine"
    ):
        evaluate(side, JOBS[:1], SETTING, play=connect("auto", 1)[0])


def test_no_cluster_is_refused_by_its_address():
    with pytest.raises(SimulatorError, match=r"--ray 127\.0\.0\.1:1: no cluster answers there"):
        connect("127.0.0.1:1", 1)


def test_an_actor_that_cannot_start_holds_no_job(cluster, tmp_path):
    """Another user took a CPU between connecting and playing."""
    play, count = connect("auto", None)
    assert count == 2

    class Idle:  # in here, or the workers would look for this module
        def wait(self):
            return True

    taken = ray.remote(num_cpus=1)(Idle).remote()
    ray.get(taken.wait.remote())
    try:
        side = Side(str(arm_policy(tmp_path / "p")), n_action_steps=4)
        found = evaluate(side, JOBS, SETTING, play=play)
        assert [(r.task, r.seed) for r in found] == JOBS
    finally:
        ray.kill(taken)
