"""What every CUDA kernel may cost and must contain. The one table; a kernel without a row fails.

`python tests/compile/show.py` prints what the kernels measure now, in the order of these fields.
Registers and instructions are held at what was measured, or a little more: raising one is a
decision.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

PerTarget = int | Mapping[int, int]  # one number, or {target: number} with 0 for the others


@dataclasses.dataclass(frozen=True)
class Row:
    """threads, shared (dynamic bytes): of its largest launch. registers, instructions: at most.
    blocks: at least so many at a time on a multiprocessor. needs, forbids: SASS opcodes."""

    threads: int
    registers: PerTarget
    shared: PerTarget = 0
    blocks: PerTarget = 1
    instructions: PerTarget = 4000
    needs: tuple[str, ...] = ()
    forbids: tuple[str, ...] = ("LDL", "STL")


TENSOR_F16 = ("HMMA", "LDSM", "LDGSTS")
TENSOR_S8 = ("IMMA", "LDSM", "LDGSTS")

# By name, as show.py prints it: without namespaces, with template arguments.
TENSOR_W4 = ("HMMA",)  # its operands come straight into registers


def _gemm(
    threads: int, registers: int, shared: int, blocks: PerTarget, needs: tuple[str, ...]
) -> Row:
    return Row(threads, registers, shared, blocks, instructions=1300, needs=needs)


def _w4(registers: int, tiles: int, token_tiles: int, instructions: int) -> Row:
    shared = 8 * tiles * token_tiles * 4 * 32 * 4
    return Row(256, registers, shared, 1, instructions, TENSOR_W4)


KERNELS: dict[str, Row] = {
    # 99 KB of shared memory on sm_89 and sm_120 hold one block of the largest tile, 164 KB two.
    "gemm_bf16_128x128": _gemm(256, 128, 69632, {0: 2, 89: 1, 120: 1}, TENSOR_F16),
    "gemm_bf16_64x64": _gemm(128, 84, 32768, 3, TENSOR_F16),
    "gemm_bf16_64x32": _gemm(128, 60, 24576, 4, TENSOR_F16),
    "gemm_i8_128x128": _gemm(256, 128, 69632, {0: 2, 89: 1, 120: 1}, TENSOR_S8),
    "gemm_i8_64x64": _gemm(128, 84, 32768, 3, TENSOR_S8),
    "gemm_i8_64x32": _gemm(128, 60, 24576, 4, TENSOR_S8),
    "gemm_f32_64x64<float>": Row(256, 80, 17408, 3, 1400, ("FFMA",)),
    "gemm_f32_64x64<__nv_bfloat16>": Row(256, 80, 17408, 3, 1400, ("FFMA",)),
    "gemm_f32_32x32<float>": Row(256, 128, 18432, 2, 1700, ("FFMA",)),
    "gemm_f32_32x32<__nv_bfloat16>": Row(256, 128, 18432, 2, 1700, ("FFMA",)),
    "gemm_w4_kernel<4, 1, 1>": _w4(124, 1, 4, 1900),
    "gemm_w4_kernel<4, 1, 2>": _w4(126, 1, 4, 1900),
    "gemm_w4_kernel<7, 1, 1>": _w4(170, 1, 7, 2000),
    "gemm_w4_kernel<7, 1, 2>": _w4(190, 1, 7, 2050),
    "gemm_w4_kernel<7, 2, 1>": _w4(255, 2, 7, 2250),
    "gemm_w4_kernel<7, 2, 2>": _w4(255, 2, 7, 2350),
    # 41 and 35 KB of shared memory a block: 100 KB hold two.
    "attention_bf16_64": Row(128, 168, 40976, {0: 3, 89: 2, 120: 2}, 1900, TENSOR_F16),
    "attention_bf16_16": Row(32, 168, 34820, {0: 4, 89: 2, 120: 2}, 2100, TENSOR_F16),
    # Of SmolVLA's 1024 patches; more keys take more.
    "attention_f32_kernel<float>": Row(128, 42, 17408, 5, 1800, ("FFMA",)),
    "attention_f32_kernel<__nv_bfloat16>": Row(128, 42, 17408, 5, 1900, ("FFMA",)),
    # Of a prefix of 256 tokens and heads of 64.
    "attention_mass_kernel<float>": Row(128, 48, 9216, 5, 2150, ("FFMA",)),
    "attention_mass_kernel<__nv_bfloat16>": Row(128, 48, 9216, 5, 2150, ("FFMA",)),
    # These are bound by memory and by starting: nothing may spill or grow, no more.
    "rope_kernel": Row(128, 42, instructions=700),
    "rope_store_kernel<float>": Row(128, 42, instructions=1800),
    "rope_store_kernel<__nv_bfloat16>": Row(128, 42, instructions=1800),
    "store_kv_kernel<float>": Row(128, 36, instructions=1400),
    "store_kv_kernel<__nv_bfloat16>": Row(128, 36, instructions=1400),
    "norm_kernel": Row(128, 42, instructions=2500),
    "quantize_kernel": Row(128, 42, instructions=950),
    "copy_kernel": Row(128, 24, instructions=600),
    "pixel_shuffle_kernel": Row(128, 30, instructions=1500),
    "flow_update_kernel": Row(128, 36, instructions=800),  # with and without the velocity before
    "advance_kernel": Row(1, 10, instructions=48),
    "letterbox_kernel": Row(128, 36, instructions=600),
    "patchify_kernel": Row(128, 28, instructions=320),
    "move_rows_kernel": Row(128, 26, instructions=210),
    "add_kernel": Row(128, 28, instructions=300),
    "compare_kernel": Row(128, 46, instructions=1250),  # its sums are of doubles
    "block_change_kernel": Row(256, 42, 32, instructions=1120),
    "copy_blocks_kernel": Row(128, 30, instructions=330),
}
