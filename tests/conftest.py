"""Device "auto" means the CPU in tests that are not marked gpu, also where a GPU is.

They hold results of the CPU's kernels to the bit. (Their child processes are left alone.)
"""

from __future__ import annotations

import pytest

from smolvla_edge.backends import native

_ASKED = native.why_no_gpu


def _not_here() -> str:
    return "tests that are not marked gpu run on the CPU"


@pytest.hookimpl(tryfirst=True)  # before fixtures of whole modules, which load policies
def pytest_runtest_setup(item: pytest.Item) -> None:
    marked = item.get_closest_marker("gpu") is not None
    native.why_no_gpu = _ASKED if marked else _not_here  # type: ignore[assignment]
