"""Imports at the top of a test file of packages that need not be installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def needs(*packages: str) -> Iterator[None]:
    """Around imports: where one of `packages` is not installed, the file is skipped and says so."""
    for package in packages:
        pytest.importorskip(package, reason=f"{package} is not installed")
    yield
