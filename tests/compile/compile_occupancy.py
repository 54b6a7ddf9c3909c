"""How many blocks of a kernel a multiprocessor holds at a time: NVIDIA's arithmetic, by hand.

test_compile_gate.py compares it with cuda_occupancy.h of the toolkit.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Processor:
    warps: int
    blocks: int
    shared: int  # bytes, of all blocks
    shared_per_block: int  # with opt-in


_KB = 1024
PROCESSORS = {
    80: Processor(64, 32, 164 * _KB, 163 * _KB),
    87: Processor(48, 16, 164 * _KB, 163 * _KB),
    89: Processor(48, 24, 100 * _KB, 99 * _KB),
    90: Processor(64, 32, 228 * _KB, 227 * _KB),
    100: Processor(64, 32, 228 * _KB, 227 * _KB),
    110: Processor(48, 24, 228 * _KB, 227 * _KB),
    120: Processor(48, 24, 100 * _KB, 99 * _KB),
}
_REGISTERS = 65536
_RESERVED_SHARED = 1024  # of every block, for the system


def blocks_per_processor(target: int, registers: int, threads: int, shared: int) -> int:
    """shared: static and dynamic bytes of a block. 0 when not even one block fits."""
    p = PROCESSORS[target]
    warps = -(-threads // 32)
    if shared > p.shared_per_block:
        return 0
    by_warps = min(p.blocks, p.warps // warps)
    # Registers are dealt to warps in lots of 256, from four files.
    per_warp = -(-max(registers, 1) * 32 // 256) * 256
    by_registers = _REGISTERS // 4 // per_warp * 4 // warps
    by_shared = p.shared // (-(-(shared + _RESERVED_SHARED) // 128) * 128)
    return min(by_warps, by_registers, by_shared)
