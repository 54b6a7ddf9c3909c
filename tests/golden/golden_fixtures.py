"""Fixtures for conftest.py files: checkpoints of golden cases, put together once a session."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import golden_support as support
import pytest

from smolvla_edge import counter_values, synthetic
from smolvla_edge.checkpoint import Checkpoint, read_checkpoint


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """case -> its checkpoint folder, assembled on first use. Read only."""
    made: dict[str, Path] = {}

    def get(case: str) -> Path:
        if case not in made:
            made[case] = support.assemble(case, tmp_path_factory.mktemp(case) / "checkpoint")
        return made[case]

    return get


@pytest.fixture(scope="session")
def checkpoint(folder: Callable[[str], Path]) -> Callable[[str], Checkpoint]:
    """case -> its checkpoint, opened."""
    return lambda case: support.open_checkpoint(folder(case))


@pytest.fixture(scope="session")
def full_checkpoint() -> Checkpoint:
    """The 907 MB checkpoint of the full-size case, generated once and kept between sessions.

    It lies in $SMOLVLA_EDGE_TEST_CACHE, or else in a folder of this user's under the system's
    temporary one, under a name that changes with the generator's source.
    """
    sources = (counter_values.__file__, synthetic.__file__)
    key = hashlib.sha256(b"".join(Path(path).read_bytes() for path in sources)).hexdigest()[:12]
    default = Path(tempfile.gettempdir()) / f"smolvla-edge-tests-{os.getuid()}"
    cache = Path(os.environ.get("SMOLVLA_EDGE_TEST_CACHE", default))
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = cache / f"full-{key}"
    if not path.exists():
        synthetic.make_checkpoint(path, "full")
    return read_checkpoint(path)
