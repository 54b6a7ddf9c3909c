"""Every CUDA kernel compiles for every target and stays within its row of compile_table.py."""

from __future__ import annotations

import pytest
from compile_gate import complaints
from compile_sources import ROOT, kernels_of, sources
from compile_table import KERNELS


@pytest.mark.parametrize("source", sources(), ids=lambda s: s.name)
def test_kernels_of(source, compiled):
    found = complaints(compiled[source].result(), KERNELS)
    assert not found, "\n".join(found)


def test_every_kernel_has_a_row():
    """Of the text, without a compiler: a template that nothing starts is no kernel in a cubin."""
    rows = {name.partition("<")[0] for name in KERNELS}
    missing = set().union(*map(kernels_of, sources())) - rows
    assert not missing, f"kernels without a row in compile_table.py: {sorted(missing)}"


def test_no_row_without_a_kernel(compiled):
    names = {record.kernel for records in compiled.values() for record in records.result()}
    assert set(KERNELS) <= names, f"rows of no kernel: {sorted(set(KERNELS) - names)}"


def test_every_source_is_listed(tools):
    here = {path.resolve() for path in (ROOT / "csrc" / "cuda").rglob("*.cu")}
    assert here == {path.resolve() for path in sources()}
