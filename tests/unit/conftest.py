"""A tiny checkpoint folder for tests that damage one. A module may have a `folder` of its own."""

from __future__ import annotations

import shutil

import pytest

from smolvla_edge.synthetic import make_checkpoint


@pytest.fixture(scope="session")
def pristine(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint", "tiny")


@pytest.fixture
def folder(pristine, tmp_path):
    """A checkpoint to damage."""
    return shutil.copytree(pristine, tmp_path / "checkpoint")
