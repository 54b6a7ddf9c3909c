"""What outlives a call of the C++ core: memory, files, threads, forks, the end of the process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
from core_helpers import arguments, make, plan_of, tensors_of

from smolvla_edge import _core, synthetic
from smolvla_edge.errors import BackendError, CheckpointError
from smolvla_edge.source import open_source


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("refusals") / "checkpoint"
    synthetic.make_checkpoint(path, "tiny")
    return path


@pytest.fixture(scope="module")
def source(folder):
    return open_source(folder)


@pytest.fixture(scope="module")
def engine(source):
    return make(source)


def test_a_refusal_leaves_no_file_open(source):
    tensors = tensors_of(source)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(CheckpointError, match="twice"):
            make(source, tensors=[*tensors, tensors[0]])
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.real_cpu  # qemu: 2 minutes
def test_every_count_of_steps_in_one_engine(engine):
    """The table of time vectors is made once; it used to fill the arena."""
    call = arguments(frames=[None, None], rows=1)
    first = engine.predict(**call)["actions"].tobytes()
    for steps in range(1, 200):
        engine.predict(**{**call, "plan": plan_of(1, steps)})
    assert engine.predict(**{**call, "plan": plan_of(1, 1000)})["actions"].shape == (1, 6)
    assert engine.predict(**call)["actions"].tobytes() == first


def test_threads_share_an_engine_that_nobody_else_holds(source):
    engines = [make(source, threads=3)]
    expected = engines[0].predict(**arguments())["actions"].tobytes()
    results: list[bytes] = []

    def work(engine):
        for _ in range(5):
            results.append(engine.predict(**arguments())["actions"].tobytes())

    threads = [threading.Thread(target=work, args=(engines[0],)) for _ in range(4)]
    for thread in threads:
        thread.start()
    engines.clear()  # the calls under way keep it alive
    for thread in threads:
        thread.join()
    assert results == [expected] * 20


def test_an_object_whose_init_never_ran(engine):
    """pybind11 hands its methods fresh memory; it used to end the process."""
    Engine = _core.Engine
    methods = [name for name in dir(Engine) if not name.startswith("_")]
    assert "info" in methods and "predict" in methods
    for name in methods:
        with pytest.raises((BackendError, TypeError)):  # TypeError: arguments are missing
            getattr(Engine.__new__(Engine), name)()
    for call in (
        lambda: Engine.__new__(Engine).info(),
        lambda: Engine.__new__(Engine).predict(**arguments()),
        lambda: _core.CpuOps.__new__(_core.CpuOps).make_kv(1, 1, 1),
        lambda: _core.CpuOps.linear(_core.CpuOps.__new__(_core.CpuOps), 0, None, None),
    ):
        with pytest.raises(BackendError, match="__init__ never ran"):
            call()
    before = engine.predict(**arguments())["actions"].tobytes()
    engine.__init__({}, [], {})  # of a made object: ignored
    assert engine.predict(**arguments())["actions"].tobytes() == before


def test_threads_share_single_operations():
    ops = _core.CpuOps(2)
    kv = ops.make_kv(1, 32, 512)
    keys = np.ones((512, 32), np.float32)
    lengths = np.full(512, 512, np.int32)

    def work():
        for capacity in range(600, 4000, 200):
            ops.store_kv(kv, keys, keys, 0)
            out = np.empty_like(keys)
            ops.attention(kv, keys, lengths, out, 1, 1)
            results.append(bool(np.allclose(out, 1)))
            ops.make_kv(1, 1, capacity)  # moves the scores

    results: list[bool] = []
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * len(results) and len(results) == 51


def child(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    start = f"""
        import os, sys, threading, time
        sys.path[:0] = {[entry for entry in sys.path if entry]!r}
        from core_helpers import arguments, make
        from smolvla_edge.source import open_source
        source = open_source({str(folder)!r})
        """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(start) + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )


@pytest.mark.real_cpu  # qemu: does not apply RLIMIT_AS to its guest
def test_threads_that_the_system_refuses(folder):
    result = child(
        folder,
        """
        import resource
        make(source).predict(**arguments())
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + (700 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            make(source, threads=256)
        except Exception as error:
            print(type(error).__name__, error)
        """,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("BackendError expected to start 256 threads"), result.stdout


def test_a_forked_child_may_drop_the_engine(folder):
    result = child(
        folder,
        """
        engine = make(source, threads=3)
        engine.predict(**arguments())
        time.sleep(0.2)  # until the workers wait on their condition variable
        pid = os.fork()
        if pid == 0:
            try:
                engine.predict(**arguments())
            except Exception as error:
                print(type(error).__name__, flush=True)
            del engine
            os._exit(0)
        print(os.waitpid(pid, 0)[1])
        """,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["BackendError", "0"]


def test_the_interpreter_may_exit_while_daemon_threads_predict(folder):
    result = child(
        folder,
        """
        engine = make(source, threads=2)
        def forever():
            while True:
                engine.predict(**arguments(steps=200))
        for _ in range(3):
            threading.Thread(target=forever, daemon=True).start()
        time.sleep(0.3)
        print("leaving")
        """,
    )
    assert (result.returncode, result.stdout.strip()) == (0, "leaving"), result.stderr
