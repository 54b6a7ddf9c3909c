"""`optimum-cli export smolvla-edge` and the TasksManager; without Optimum nothing else changes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
from needs import needs

from smolvla_edge.onnx_folder import read_export

REGISTER = Path(__file__).parents[2] / "register"  # of the tree; an installation has it in place
INSTALLED = (
    Path(sysconfig.get_path("platlib")) / "optimum" / "commands" / "register" / "smolvla_edge.py"
)


def run(*command: object) -> subprocess.CompletedProcess[str]:
    # Where the package is installed the command is in place, and a second one would be refused.
    register = [] if INSTALLED.is_file() else [REGISTER]
    path = os.pathsep.join(str(part) for part in (*register, *sys.path) if part)
    return subprocess.run(
        [sys.executable, "-P", *map(str, command)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def optimum_cli(*words: object) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("optimum.commands.base", reason="optimum is not installed")
    main = "import sys; from optimum.commands.optimum_cli import main; sys.exit(main())"
    return run("-c", main, "export", *words)


def test_the_command_is_found() -> None:
    assert "smolvla-edge" in optimum_cli("--help").stdout
    text = optimum_cli("smolvla-edge", "--help").stdout
    assert all(word in text for word in ("--precision", "--target", "--plan", "reinforcement"))


@pytest.fixture(scope="module")
def exporter() -> None:
    with needs("torch", "onnx", "onnxscript", "onnxruntime"):
        pass


def test_it_exports(exporter: None, pristine: Path, tmp_path: Path) -> None:
    out = tmp_path / "onnx"
    words = ("--target", "tensorrt", "--precision", "float32", "--observations", 1)
    done = optimum_cli("smolvla-edge", "-m", pristine, out, *words, "--plan", "steps=2")
    assert done.returncode == 0, done.stderr
    assert "float32, target tensorrt" in done.stdout
    manifest = read_export(out).manifest
    assert (manifest.target, manifest.plan.steps) == ("tensorrt", 2)
    assert manifest.provenance["command"].startswith("optimum-cli")
    assert {"VERIFICATION.json", "CARD.md"} <= manifest.files.keys()


def test_what_is_refused_is_said(exporter: None, pristine: Path, tmp_path: Path) -> None:
    shutil.copytree(pristine, tmp_path / "there")
    for words, said in (
        ((tmp_path / "new", "--target", "tensorrt", "--precision", "int8"), "8-bit weights"),
        ((tmp_path / "there",), "--force to replace it"),
        ((), "OUT is missing"),
    ):
        done = optimum_cli("smolvla-edge", "-m", pristine, *words)
        assert done.returncode == 1 and said in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()


def test_the_tasks_manager_knows_the_policy() -> None:
    with needs("optimum.exporters.base", "requests"):
        from optimum.exporters.tasks import TasksManager
    from smolvla_edge.export.optimum_tasks import MODEL_TYPE, TASK, register

    made = register()
    register()  # again is no error
    known = TasksManager.get_supported_tasks_for_model_type(
        MODEL_TYPE, "onnx", library_name="transformers"
    )
    assert list(known) == [TASK]
    build = TasksManager.get_exporter_config_constructor(
        "onnx", model_type=MODEL_TYPE, task=TASK, library_name="transformers"
    )
    config = build(SimpleNamespace(image_features={"observation.images.top": None}))
    assert type(config).__name__ == made.__name__
    assert config.inputs["observation.images.top"] == {0: "height", 1: "width"}
    assert config.inputs["noise"] == config.outputs["actions"] == {0: "horizon"}


@pytest.mark.parametrize(
    "broken", ["sys.modules['optimum'] = None", "sys.modules['requests'] = None"]
)
def test_a_broken_optimum_matters_to_nobody_else(broken: str) -> None:
    with needs("torch", "onnx", "onnxscript", "onnxruntime", "optimum.exporters.base"):
        pass
    done = run(
        "-c",
        f"""
import sys
{broken}
import smolvla_edge, smolvla_edge.cli.app, smolvla_edge.export.command
from smolvla_edge.export import optimum_tasks
assert "optimum.exporters" not in sys.modules and "transformers" not in sys.modules
try:
    optimum_tasks.register()
except smolvla_edge.errors.MissingExtraError as error:
    assert "requests" in str(error), error
    print("said so")
""",
    )
    assert done.stdout == "said so\n", done.stderr
