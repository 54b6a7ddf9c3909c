"""What every CUDA kernel measures, a line a target: `python tests/compile/show.py [file.cu]`."""

from __future__ import annotations

import sys
from pathlib import Path

from compile_gate import at
from compile_occupancy import blocks_per_processor
from compile_sources import ROOT, sources, targets_of
from compile_table import KERNELS, Row
from compile_tools import compile_source, find_tools

_SHOWN = ("HMMA", "IMMA", "LDSM", "LDGSTS", "LDL", "STL", "LDG", "STG", "FFMA")


def main() -> int:
    tools = find_tools()
    if isinstance(tools, str):
        print(tools)
        return 2
    chosen = [Path(a).resolve() for a in sys.argv[1:]] or sources()
    for source in chosen:
        print(source.name)
        kept = ROOT / "build" / "compile_gates"
        records = compile_source(tools, source, ROOT / "csrc", kept, targets_of(source))
        for r in sorted(records, key=lambda r: (r.kernel, r.target)):
            row = KERNELS.get(r.kernel, Row(threads=256, registers=255))
            shared = r.static_shared + at(row.shared, r.target)
            blocks = blocks_per_processor(r.target, r.registers, row.threads, shared)
            opcodes = " ".join(f"{o} {r.instructions[o]}" for o in _SHOWN if o in r.instructions)
            print(
                f"  {r.kernel:40} sm_{r.target:<3} {r.registers:3} registers"
                f" {r.spill_stores + r.spill_loads:4} spilled {shared:6} shared {blocks:2} blocks"
                f" {sum(r.instructions.values()):5} instructions: {opcodes}"
                + ("" if r.kernel in KERNELS else "  (no row)")
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
