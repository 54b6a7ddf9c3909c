"""A build with the CUDA backend works where there is no driver: in containers, on build machines.

`make test` makes its build with nvcc and sets SMOLVLA_REQUIRE_NVCC=1; other builds skip these.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from policy_helpers import tiny_checkpoint

from smolvla_edge import _core

CHILD = """
import json, sys
import numpy as np
import smolvla_edge
from smolvla_edge import _core
from smolvla_edge.errors import BackendError

said = {"cuda": _core.cuda()}
try:
    smolvla_edge.load(sys.argv[1], device="cuda")
except BackendError as error:
    said["refused"] = str(error)
policy = smolvla_edge.load(sys.argv[1])
names = policy.contract.robot_cameras()
frames = dict.fromkeys(names, np.zeros((64, 64, 3), np.uint8))
chunk = policy.predict(frames, np.zeros(policy.contract.state_dim, np.float32), "go", seed=1)
said["device"] = chunk.provenance["device"]
print(json.dumps(said))
"""


@pytest.fixture(autouse=True)
def built():
    if _core.cuda()["built"]:
        return
    if os.environ.get("SMOLVLA_REQUIRE_NVCC") == "1":
        pytest.fail("SMOLVLA_REQUIRE_NVCC=1, and this build has no CUDA backend")
    pytest.skip("this build has no CUDA backend")


def test_without_a_driver(tmp_path):
    """It imports, says what is missing, refuses device cuda, and computes on the CPU."""
    # In front of any driver that there is: what does not load is as good as none.
    (tmp_path / "libcuda.so.1").write_bytes(b"no ELF")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tiny_checkpoint(tmp_path / "checkpoint"))],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        cwd=tmp_path,  # not where a source tree would be imported
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    cuda = said["cuda"]
    assert cuda["built"] is True and cuda["architectures"] and cuda["devices"] == []
    assert cuda["driver"] is None and cuda["error"].startswith("no NVIDIA driver was found")
    assert said["refused"] == f"device='cuda': {cuda['error']}"
    assert said["device"] == "cpu"


def listing(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run(
        [*command, _core.__file__], check=True, capture_output=True, text=True
    ).stdout


def test_no_library_of_cuda_is_needed():
    needed = [line for line in listing("readelf", "-d").splitlines() if "(NEEDED)" in line]
    assert needed
    assert not [line for line in needed if "cuda" in line or "nv" in line]


def test_its_cuda_runtime_is_its_own():
    """torch loads another one with its symbols global: ours must neither take nor give any."""
    symbols = [line.split()[-1] for line in listing("nm", "-D").splitlines()]
    assert any(name.startswith("PyInit__core") for name in symbols)
    assert not [name for name in symbols if name.startswith(("cuda", "__cuda", "cu"))]
