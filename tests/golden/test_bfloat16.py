"""bfloat16 arithmetic of every instruction set, within the gate of bfloat16_gate.py."""

from __future__ import annotations

import pytest
from bfloat16_gate import compare_stages

from smolvla_edge import _core

ISAS = tuple(dict.fromkeys(row["isa"] for row in _core.kernel_table() if row["supported"]))


@pytest.mark.parametrize("isa", ISAS)
def test_small(isa, checkpoint):
    compare_stages("mixed_bf16", checkpoint("mixed_bf16"), isa)


@pytest.mark.full
def test_full(full_checkpoint):
    """The best instruction set; the others give the same bytes."""
    compare_stages("full", full_checkpoint, "")
