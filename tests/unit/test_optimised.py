"""`python -O` and the release build refuse what the tests refuse, with the same words.

-O drops assert statements, a release build drops assert(): a check made with either would be gone
on a robot and there in the tests.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import smolvla_edge

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"


def run(folder: Path, *options: str) -> dict[str, list[str]]:
    folder.mkdir()
    result = subprocess.run(
        [sys.executable, *options, HERE / "refusals.py", folder],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        check=False,
    )
    shutil.rmtree(folder)
    assert result.returncode == 0, result.stderr[-4000:]
    return dict(json.loads(result.stdout))


def test_optimised_python_refuses_the_same(tmp_path: Path) -> None:
    normal = run(tmp_path / "folder")
    accepted = [name for name, (kind, _) in normal.items() if kind == "accepted"]
    # Provenance is outside the digest: a bit of it may flip to something as good.
    assert [name for name in accepted if "bundle.json: flipped" not in name] == []
    assert len(normal) - len(accepted) > 300
    assert run(tmp_path / "folder", "-OO") == normal


def test_no_check_is_an_assert() -> None:
    """Not even one that no test above would miss."""
    package = Path(smolvla_edge.__file__).parent
    python = [
        path for path in package.rglob("*.py") if re.search(r"^\s*assert\b", path.read_text(), re.M)
    ]
    assert python == []
    if CSRC.is_dir():  # not beside an installed package's tests
        sources = [p for p in CSRC.rglob("*") if p.suffix in (".h", ".cpp", ".inl")]
        assert len(sources) > 20
        assert [p for p in sources if re.search(r"(?<!static_)\bassert\s*\(", p.read_text())] == []
