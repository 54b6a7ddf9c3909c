"""Every kept fuzzing input and some mutations: loaded or refused with a typed error, in bounds.

The same files are refused in the same words by `python -O`, which drops assert statements.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smolvla_edge import errors

HERE = Path(__file__).parent
MOST_BYTES = 400 << 20  # with numpy and tokenizers loaded; the model itself has 0.1 M parameters


def replay(folder: Path, *options: str, mutations: int = 0) -> dict[str, Any]:
    result = subprocess.run(
        [sys.executable, *options, HERE / "replay.py", folder, str(mutations)],
        capture_output=True,
        text=True,
        timeout=600,  # a hang is a finding too
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return dict(json.loads(result.stdout))


@pytest.fixture(scope="module")
def normal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("fuzz") / "work"
    return folder, replay(folder, mutations=200)


def test_inputs_load_or_are_refused_with_typed_errors(normal: tuple[Path, dict[str, Any]]) -> None:
    refusals = normal[1]["refusals"]
    assert all(refusals[name] is None for name in refusals if ": good " in name)
    refused = [entry for entry in refusals.values() if entry is not None]
    assert len(refused) > 300  # most of it is damaged
    for kind, message in refused:
        assert issubclass(getattr(errors, kind), errors.SmolVLAEdgeError)
        assert message


@pytest.mark.real_cpu  # qemu: its own memory is in the peak, 443 MB once
def test_no_input_takes_much_memory(normal: tuple[Path, dict[str, Any]]) -> None:
    assert normal[1]["peak_bytes"] < MOST_BYTES


def test_optimised_python_refuses_the_same(normal: tuple[Path, dict[str, Any]]) -> None:
    folder, expected = normal
    assert replay(folder, "-O", mutations=200)["refusals"] == expected["refusals"]


def test_the_kept_inputs_are_small() -> None:
    sizes = [path.stat().st_size for path in (HERE / "corpus").rglob("*") if path.is_file()]
    assert sum(sizes) < 300_000
    assert sizes and max(sizes) < 20_000
