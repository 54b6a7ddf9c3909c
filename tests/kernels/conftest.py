"""Tests of the Triton kernels: skipped, with the reason, where torch or Triton is not installed.

The folder `interpreted` runs in a process of its own (test_interpreter.py): Triton decides when it
is imported whether it compiles or interprets.
"""

from __future__ import annotations

import os

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore = [] if INTERPRETED else ["interpreted"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("without_triton"):
        return
    for package in ("torch", "triton"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra triton)")
