"""What the core offers to the microbenchmarks alone: loops of one kernel, register ceilings."""

from __future__ import annotations

import pytest

from smolvla_edge import _core
from smolvla_edge.errors import BackendError, InputError


@pytest.mark.parametrize(
    "op", ["layer_norm", "rms_norm", "softmax", "softmax_bf16", "scale_rows", "copy", "rope"]
)
@pytest.mark.parametrize("rows, columns", [(1, 64), (7, 192)])
def test_every_row_kernel_runs_on_every_isa(op, rows, columns):
    isas = {row["isa"] for row in _core.kernel_table() if row["supported"]}
    for isa in sorted(isas):
        for bf16 in (False, True):
            _core.KernelLoop(op, isa, rows, columns, bf16).run(3)


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (("gemm_f32", "", 1, 64), "op: expected .* got gemm_f32"),
        (("rope", "", 1, 65), "multiple of 64.* got rope of 65"),
        (("softmax", "", 0, 64), "expected 1 to 16384, got 0"),
        (("softmax", "", 1, 1 << 20), "got 1048576"),
    ],
)
def test_impossible_loops_are_refused(arguments, complaint):
    with pytest.raises(InputError, match=complaint):
        _core.KernelLoop(*arguments)


def test_an_unknown_isa_and_no_repetition_are_refused():
    with pytest.raises(BackendError, match="sse9"):
        _core.KernelLoop("softmax", "sse9", 1, 64)
    with pytest.raises(InputError, match="times: expected 1 or more, got 0"):
        _core.KernelLoop("softmax", "", 1, 64).run(0)


def test_the_int8_ceiling_is_there_exactly_when_the_instruction_is():
    if _core.cpu_info()["avx512_vnni"] and _core.cpu_info()["avx512"]:
        assert _core.peak(1, "", 5.0, "int8") > 0
    else:
        with pytest.raises(BackendError, match="int8"):
            _core.peak(1, "", 5.0, "int8")


def test_an_unknown_kind_of_peak_is_refused():
    with pytest.raises(BackendError, match="int4"):
        _core.peak(1, "", 5.0, "int4")
