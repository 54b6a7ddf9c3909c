"""Tests of the CUDA backend, written once for two worlds.

    pytest tests/gpu                               the installed build, on a real GPU
    pytest tests/gpu --emulated build/emulated     a build with SMOLVLA_CUDA=EMULATED, on the CPU

Without a GPU the first is skipped with the reason; SMOLVLA_REQUIRE_GPU=1 makes that an error. The
second, of a folder with a _core*.so (`make build/emulated`), leaves out full-size cases and what it
would take minutes for.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "golden"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--emulated",
        metavar="FOLDER",
        help="Run on the emulator: the folder of a _core built with SMOLVLA_CUDA=EMULATED.",
    )


def pytest_configure(config: pytest.Config) -> None:
    folder = config.getoption("--emulated")
    if folder is not None:
        _put_in_place(Path(folder))
    # Only now: it imports the package.
    config.pluginmanager.import_plugin("golden_fixtures")


def _put_in_place(folder: Path) -> None:
    """Make the _core of `folder` the one that everything imports. Raises pytest.UsageError."""
    import smolvla_edge

    found = sorted(folder.glob("_core*.so"))
    if len(found) != 1:
        raise pytest.UsageError(f"--emulated: expected one _core*.so in {folder}, got {found}")
    name = "smolvla_edge._core"
    if name in sys.modules:
        raise pytest.UsageError("--emulated: another _core is imported already")
    spec = importlib.util.spec_from_file_location(name, found[0])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    smolvla_edge._core = module  # type: ignore[attr-defined]
    if not module.cuda()["emulated"]:
        raise pytest.UsageError(f"--emulated: {found[0]} is no build with SMOLVLA_CUDA=EMULATED")


class World:
    """Where the tests run."""

    def __init__(self, status: dict) -> None:
        self.emulated: bool = status["emulated"]

    def count(self, real: int, emulated: int) -> int:
        """How often: an emulated kernel takes a hundred thousand times as long."""
        return emulated if self.emulated else real


@pytest.fixture(scope="session")
def _status() -> dict:
    from smolvla_edge import _core

    return _core.cuda()


@pytest.fixture(scope="session", autouse=True)
def _device(_status: dict) -> None:
    """Every test here needs a GPU, or the emulator; so do fixtures of whole modules."""
    error = _status["error"]
    if error and os.environ.get("SMOLVLA_REQUIRE_GPU") == "1":
        pytest.fail(f"SMOLVLA_REQUIRE_GPU=1, and device cuda: {error}")
    if error:
        pytest.skip(f"device cuda: {error}")


@pytest.fixture(autouse=True)
def world(_status: dict, request: pytest.FixtureRequest) -> World:
    if _status["emulated"] and request.node.get_closest_marker("full"):
        pytest.skip("full size: hours on the emulator")
    return World(_status)


@pytest.fixture
def emulator(world: World):
    """What of the emulated machine can be turned, as it was afterwards."""
    if not world.emulated:
        pytest.skip("turns the emulated machine")
    from smolvla_edge import _core

    control = _core.emulator
    yield control
    control.remove_device(False)
    control.use_devices(1)
    control.fail_allocation(0)
    control.configure()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 0.4 M parameters with a tokenizer and statistics. Read only."""
    from smolvla_edge.synthetic import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint", "tiny")


@pytest.fixture
def random():
    """Fresh numbers in every run, whose seed is shown when the test fails."""
    from ops_cases import Random

    return Random()
