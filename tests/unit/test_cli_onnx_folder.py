"""The verbs on an ONNX export folder: they work, or say what to name instead."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
from cli_helpers import Result, refused
from needs import needs
from policy_helpers import CAM1, CAM2, tiny_checkpoint

from smolvla_edge.source import open_source

with needs("onnx", "onnxruntime"):
    import onnx_helpers as made

Cli = Callable[..., Result]
PHOTOGRAPH = files("smolvla_edge") / "assets" / "cat.ppm"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = open_source(tiny_checkpoint(tmp_path_factory.mktemp("source") / "tiny"))
    return made.write_folder(tmp_path_factory.mktemp("bundle") / "onnx", source)


def observation() -> list[str]:
    images = [f"--image={name}={PHOTOGRAPH}" for name in (CAM1, CAM2)]
    return [*images, "--state", "1,-2,3,4,5,6", "--task", "pick it up", "--threads", "1"]


def test_run(cli: Cli, folder: Path) -> None:
    found = cli("run", folder, *observation(), "--json").json
    assert found["provenance"]["backend"] == "onnx"
    assert found["provenance"]["providers"]["vision"] == ["CPUExecutionProvider"]
    again = cli("run", folder.parent, "--backend", "onnx", *observation(), "--json").json
    assert again["actions"] == found["actions"]
    shown = cli("run", folder, *observation())
    assert shown.code == 0
    assert "CPUExecutionProvider, without our operators, accuracy level 0" in shown.out


def test_run_refuses(cli: Cli, folder: Path) -> None:
    refused(cli("run", folder, *observation(), "--backend", "native"), "export folder")
    refused(cli("run", folder, *observation(), "--plan", "skip.vlm=1"), "plan='exported'")
    refused(cli("run", folder, *observation(), "--device", "tensorrt"), "TensorrtExecution")


def test_inspect(cli: Cli, folder: Path) -> None:
    found = cli("inspect", folder, "--json").json
    assert found["kind"] == "export folder"
    assert found["export"]["graphs"]["flow"]["file"] == "flow.onnx"
    shown = cli("inspect", folder)
    assert shown.code == 0, shown.err
    for word in ("opset 23", "observation.images.camera1", "prefix", "schedule"):
        assert word in shown.out
    refused(cli("inspect", folder, "--precision"), "export folder")


def test_verify(cli: Cli, folder: Path, tmp_path: Path) -> None:
    assert cli("verify", folder, "--files-only", "--json").json["passed"]
    refused(cli("verify", folder), "export BUNDLE --verify")
    refused(cli("verify", folder, "--against", "exact", "--frames", "synthetic"), "export folder")
    source = open_source(tiny_checkpoint(tmp_path / "tiny"))
    damaged = made.write_folder(tmp_path / "onnx", source)
    content = bytearray((damaged / "flow.weights").read_bytes())
    content[0] ^= 1
    (damaged / "flow.weights").write_bytes(content)
    found = cli("verify", damaged, "--files-only")
    assert found.code == 1 and "SHA-256" in found.err


@pytest.mark.parametrize("verb", ["profile", "convert", "quantize", "sensitivity"])
def test_others_say_what_to_name(cli: Cli, folder: Path, tmp_path: Path, verb: str) -> None:
    more = {
        "profile": ["--out", tmp_path / "p.html"],
        "convert": [tmp_path / "made"],
        "quantize": [tmp_path / "made"],
        "sensitivity": ["--data", "synthetic"],
    }
    found = cli(verb, folder, *more[verb])
    assert found.code == 2 and "Traceback" not in found.err
    assert "export folder" in found.err
