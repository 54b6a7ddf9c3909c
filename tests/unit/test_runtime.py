"""What a robot rests on: no torch, no network, the same bytes every time, memory that is flat."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import smolvla_edge
from smolvla_edge import synthetic

TASK = "push the cube"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("runtime") / "checkpoint"
    synthetic.make_checkpoint(path, "tiny")
    return path


def observation(policy) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(11)
    images = {name: rng.integers(0, 256, (48, 64, 3), np.uint8) for name in policy.contract.cameras}
    return images, rng.standard_normal(policy.contract.state_dim).astype(np.float32)


def predict(policy, **options):
    images, state = observation(policy)
    return policy.predict(images, state, TASK, **options)


def test_the_same_seed_gives_the_same_bytes(folder):
    reference = None
    for threads in (1, 2):
        policy = smolvla_edge.load(folder, threads=threads)
        for _ in range(20):
            chunk = predict(policy, seed=3)
            reference = chunk if reference is None else reference
            assert chunk.actions.tobytes() == reference.actions.tobytes()
            assert chunk.normalized.tobytes() == reference.normalized.tobytes()
        assert predict(policy, seed=4).actions.tobytes() != reference.actions.tobytes()


def test_a_reset_seed_repeats_the_whole_sequence(folder):
    policy = smolvla_edge.load(folder)
    runs = []
    for _ in range(2):
        policy.reset(seed=9)
        runs.append([predict(policy).actions.tobytes() for _ in range(3)])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 3


def test_a_horizon_is_the_first_rows_of_the_chunk(folder):
    whole = predict(smolvla_edge.load(folder), seed=3).actions
    steps = smolvla_edge.load(folder).plan.steps
    for rows in range(1, len(whole)):
        plan = smolvla_edge.Plan(steps=steps, horizon=rows)
        short = predict(smolvla_edge.load(folder, plan=plan), seed=3).actions
        assert short.tobytes() == whole[:rows].tobytes()


def resident_kib() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.real_cpu  # qemu: its own memory grows with the code it translates
def test_memory_is_flat_over_200_calls(folder):
    policy = smolvla_edge.load(folder, threads=2)
    for _ in range(20):
        predict(policy, seed=1)
    before = resident_kib()
    for call in range(200):
        predict(policy, seed=call)
    assert resident_kib() - before < 512, "KiB grown in 200 calls"


def child(code: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a new interpreter that finds the package where this one does."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=os.path.sep,
        env={**os.environ, "PYTHONPATH": path},
    )


@pytest.mark.parametrize("flags", [(), ("-O",)])
def test_runs_without_torch_and_with_sockets_blocked(folder, tmp_path, flags):
    """Convert, load and predict: none of the optional packages, and no network."""
    forbidden = {"torch", "transformers", "huggingface_hub", "matplotlib", "PIL", "triton", "onnx"}
    result = child(
        f"""
        import importlib.abc, socket, sys

        class Refuse(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {forbidden!r}:
                    raise ImportError(name + " is not installed here")

        def no_network(*args, **kwargs):
            raise AssertionError("a socket was opened")

        sys.meta_path.insert(0, Refuse())
        socket.socket.connect = socket.socket.connect_ex = no_network
        socket.getaddrinfo = socket.create_connection = no_network

        import numpy as np
        import smolvla_edge as se
        se.write_bundle(se.read_checkpoint({str(folder)!r}), {str(tmp_path / "bundle")!r})
        digests = set()
        for path in ({str(folder)!r}, {str(tmp_path / "bundle")!r}):
            policy = se.load(path)
            images = {{n: np.full((30, 40, 3), 90, np.uint8) for n in policy.contract.cameras}}
            state = np.zeros(policy.contract.state_dim, np.float32)
            digests.add(policy.predict(images, state, "go", seed=1).actions.tobytes())
        assert len(digests) == 1 or sys.exit("the bundle gives other actions")
        if "torch" in sys.modules:
            sys.exit("torch was imported")
        print("ran", len(digests))
        """,
        *flags,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["ran", "1"]


def test_importing_is_quiet_and_light(folder):
    result = child(
        """
        import logging, sys
        before = list(logging.root.handlers)
        import smolvla_edge
        heavy = {"torch", "numpy", "tokenizers", "safetensors"} & set(sys.modules)
        print(sorted(heavy), logging.root.handlers == before)
        """
    )
    assert result.returncode == 0, result.stderr
    assert (result.stdout + result.stderr).strip() == "[] True"


@pytest.mark.real_cpu  # qemu: 3 minutes
def test_ctrl_c_stops_a_call_and_the_policy_lives_on(folder):
    """SIGINT arrives while the engine computes; the next call works."""
    result = child(
        f"""
        import os, signal, sys, threading, time, numpy as np
        import smolvla_edge as se
        # A shell's background jobs ignore SIGINT, and their children inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        policy = se.load({str(folder)!r}, plan=se.Plan(steps=1000))
        images = {{n: np.full((64, 64, 3), 90, np.uint8) for n in policy.contract.cameras}}
        state = np.zeros(policy.contract.state_dim, np.float32)
        policy.predict(images, state, "go", seed=1)
        deadline = time.monotonic() + 60
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            while time.monotonic() < deadline:
                policy.predict(images, state, "go", seed=1)
            sys.exit("no call was interrupted")
        except KeyboardInterrupt:
            pass
        policy.predict(images, state, "go", seed=1)
        print("alive")
        """
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "alive"
