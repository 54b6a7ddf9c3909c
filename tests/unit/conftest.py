"""A tiny checkpoint to damage (a module may have a `folder` of its own), and the commands."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from cli_helpers import Result

from smolvla_edge.cli.app import app
from smolvla_edge.synthetic import make_checkpoint


@pytest.fixture(scope="session")
def pristine(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint", "tiny")


@pytest.fixture(scope="session")
def exports(tmp_path_factory):
    """See export_helpers.Exports: tracing takes seconds, and one export serves many tests."""
    from export_helpers import Exports

    return Exports(tmp_path_factory.mktemp("exports"))


@pytest.fixture
def folder(pristine, tmp_path):
    """A checkpoint to damage."""
    return shutil.copytree(pristine, tmp_path / "checkpoint")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            app(args=[str(argument) for argument in arguments], prog_name="smolvla-edge")
        captured = capsys.readouterr()
        code = exit_.value.code
        return Result(code if isinstance(code, int) else 0, captured.out, captured.err)

    return call
