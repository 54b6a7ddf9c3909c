"""Which kernel variants this machine can run, out of the dispatch table."""

from __future__ import annotations

from smolvla_edge import _core

# What times each operation of the table.
TIMED_BY = {
    "gemm_f32": "test_linear",
    "gemm_bf16": "test_linear",
    "gemm_words": "test_linear",
    "dot8": "test_codes",
    "dot4": "test_codes",
    "epilogue": "test_linear",  # every linear ends in one
    "layer_norm": "test_rows",
    "rms_norm": "test_rows",
    "softmax": "test_rows",
    "softmax_bf16": "test_rows",
    "scale_rows": "test_rows",
    "quantize_rows": "test_rows",
    "rope": "test_rows",
    "fma_chain": "ceiling",
    "words_chain": "ceiling",
}


def isas(op: str) -> list[str]:
    """Supported instruction sets with a kernel of their own for this operation, best first."""
    rows = [r for r in _core.kernel_table() if r["op"] == op and r["supported"]]
    return list(dict.fromkeys(str(row["isa"]) for row in rows))


def forms() -> list[tuple[str, str]]:
    """(ISA, precision) of everything that multiplies: each ISA with products of its own.

    One that has pair products only leaves float32 to the next ISA of the table, where it is timed.
    """
    single, pairs = isas("gemm_f32"), isas("gemm_words")
    float32 = [(isa, "float32") for isa in single]
    return float32 + [(isa, "bfloat16") for isa in dict.fromkeys([*pairs, *single])]
