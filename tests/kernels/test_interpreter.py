"""Runs the tests of `interpreted` in a process in which Triton interprets."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "interpreted"


def test_every_kernel_in_the_interpreter():
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    # A folder that collects nothing, or skips all of it, is no success.
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed and int(passed[1]) >= 40 and "skipped" not in run.stdout, run.stdout
