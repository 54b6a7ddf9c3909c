"""A wheel that was installed: its place, its metadata, its command.

Not collected by default (the name has no `test_`): a source tree is no installation. Run by
`make test-wheel` and `make test-aarch64` from a copy of tests/ outside the tree.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import sysconfig
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import smolvla_edge
from smolvla_edge import _core
from smolvla_edge.image_file import read_image
from smolvla_edge.ort_ops import library_path
from smolvla_edge.synthetic import make_checkpoint

PLACE = Path(sysconfig.get_path("platlib"))
COMMAND = Path(sysconfig.get_path("scripts")) / "smolvla-edge"
ASSETS = Path(smolvla_edge.__file__).parent / "assets"
ARGUMENTS = [
    *("--image", f"observation.images.camera1={ASSETS / 'coffee.ppm'}"),
    *("--image", f"observation.images.camera2={ASSETS / 'cat.ppm'}"),
    *("--state", "1,-2,3,4,5,6", "--task", "pick it up", "--seed", "7", "--json"),
]


def run(*command: object, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_the_installed_one() -> None:
    for module in (smolvla_edge, _core):
        assert Path(module.__file__).is_relative_to(PLACE / "smolvla_edge"), module.__file__
    # Only an installation from a folder, editable or not, has this file.
    assert '"dir_info"' not in (distribution("smolvla-edge").read_text("direct_url.json") or "")


def test_the_operators_for_onnx_runtime_are_there() -> None:
    library = library_path()
    assert library.parent == PLACE / "smolvla_edge"
    ctypes.CDLL(str(library)).RegisterCustomOps  # noqa: B018  (raises where there is none)
    assert (library.parent / "export" / "functions.py").is_file()


def test_one_version() -> None:
    assert distribution("smolvla-edge").version == smolvla_edge.__version__


def test_types_and_licences_are_there() -> None:
    assert (PLACE / "smolvla_edge" / "py.typed").is_file()
    metadata = distribution("smolvla-edge").metadata
    assert metadata["License-Expression"] == "Apache-2.0 AND BSD-3-Clause AND CC0-1.0"
    names = metadata.get_all("License-File")
    texts = [distribution("smolvla-edge").read_text(f"licenses/{name}") or "" for name in names]
    for phrase in ("Apache License", "LeRobot", "Wenzel Jakob", "CC0 1.0"):
        assert any(phrase in text for text in texts), phrase


def test_optimum_finds_its_command_where_it_looks() -> None:
    """In a folder of a namespace: a file named __init__ there would hide everybody else's."""
    ours = [str(path) for path in distribution("smolvla-edge").files or ()]
    assert [path for path in ours if path.startswith("optimum/")] == [
        "optimum/commands/register/smolvla_edge.py"
    ]
    assert (PLACE / "optimum/commands/register/smolvla_edge.py").is_file()


def test_nothing_optional_is_needed(tmp_path: Path) -> None:
    """Torch is not installed here, so what follows cannot have used it."""
    for name in ("torch", "transformers", "lerobot", "onnxruntime"):
        assert find_spec(name) is None, f"{name} is installed: this environment proves nothing"
    run(sys.executable, "-c", "import smolvla_edge, smolvla_edge._core", folder=tmp_path)


@pytest.mark.skipif("QEMU_CPU" not in os.environ, reason="not emulated")
def test_the_emulator_plays_the_cpu_it_was_asked_for() -> None:
    has = {
        "cortex-a72": {"dotprod": False, "fp16": False, "bf16": False},
        "cortex-a76": {"dotprod": True, "fp16": True, "bf16": False},
        "max": {"dotprod": True, "fp16": True, "bf16": True},
    }[os.environ["QEMU_CPU"]]
    assert {name: _core.cpu_info()[name] for name in has} == has


def test_help_and_version(tmp_path: Path) -> None:
    text = run(COMMAND, "--help", folder=tmp_path, COLUMNS="100")
    assert all(verb in text for verb in ("inspect", "convert", "run", "verify", "demo"))
    assert smolvla_edge.__version__ in run(COMMAND, "--version", folder=tmp_path)


def test_convert_and_run(tmp_path: Path) -> None:
    """The command gives what the library gives, from the checkpoint and from the bundle."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "tiny", dtypes="F32")
    run(COMMAND, "convert", checkpoint, tmp_path / "bundle", folder=tmp_path)
    policy = smolvla_edge.load(checkpoint)
    frames = [read_image(ASSETS / name) for name in ("coffee.ppm", "cat.ppm")]
    images = dict(zip(policy.contract.cameras, frames, strict=True))
    state = np.array([1, -2, 3, 4, 5, 6], np.float32)
    expected = policy.predict(images, state, "pick it up", seed=7).actions
    assert np.isfinite(expected).all() and np.ptp(expected) > 0
    for path in (checkpoint, tmp_path / "bundle"):
        printed = json.loads(run(COMMAND, "run", path, *ARGUMENTS, folder=tmp_path))
        assert np.array_equal(np.array(printed["actions"], np.float32), expected)
