"""Judges records by the table: sentences that name kernel and target, none when all is well."""

from __future__ import annotations

from collections.abc import Mapping

from compile_occupancy import PROCESSORS, blocks_per_processor
from compile_table import PerTarget, Row
from compile_tools import Record


def at(number: PerTarget, target: int) -> int:
    if isinstance(number, int):
        return number
    return number[target] if target in number else number[0]


def complaints(records: list[Record], table: Mapping[str, Row]) -> list[str]:
    found = []
    for name in sorted({r.kernel for r in records} - set(table)):
        found.append(f"{name}: no row in compile_table.py")
    for r in records:
        if r.kernel in table:
            found += [f"{r.kernel} on sm_{r.target}: {c}" for c in _of(r, table[r.kernel])]
    return found


def _of(r: Record, row: Row) -> list[str]:
    found = []
    most = at(row.registers, r.target)
    if r.registers > most:
        found.append(f"{r.registers} registers, at most {most}")
    if r.spill_stores or r.spill_loads:
        found.append(f"spills {r.spill_stores} bytes out, {r.spill_loads} in")
    shared = r.static_shared + at(row.shared, r.target)
    limit = PROCESSORS[r.target].shared_per_block
    if shared > limit:
        found.append(f"{shared} bytes of shared memory, the device has {limit}")
    blocks = blocks_per_processor(r.target, r.registers, row.threads, shared)
    least = at(row.blocks, r.target)
    if blocks < least:
        found.append(f"{blocks} blocks on a multiprocessor, at least {least}")
    count = sum(r.instructions.values())
    most = at(row.instructions, r.target)
    if count > most:
        found.append(f"{count} instructions, at most {most}")
    for opcode in row.needs:
        if not r.instructions.get(opcode):
            found.append(f"no {opcode} instruction")
    for opcode in row.forbids:
        if r.instructions.get(opcode):
            found.append(f"{r.instructions[opcode]} {opcode} instructions")
    return found
