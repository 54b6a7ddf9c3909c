"""What each kernel may use on each target, and how one is held to it. One table for all."""

from __future__ import annotations

from dataclasses import dataclass

from smolvla_edge.kernels.cubin import Cubin


@dataclass(frozen=True)
class Gate:
    """registers: at most so many a thread; shared: at most so many bytes a block; opcode: a tensor
    core's instruction that must be in the code. Spills are never allowed."""

    registers: int
    shared: int
    opcode: str | None

    def violations(self, cubin: Cubin) -> list[str]:
        """What is wrong with a cubin, in words that name kernel and target."""
        name = f"{cubin.launch.name} on sm_{cubin.arch}"
        found = []
        if cubin.spills:
            found.append(
                f"{name}: expected no spills, got {cubin.spills} local memory instructions"
            )
        if cubin.registers > self.registers:
            found.append(f"{name}: expected <= {self.registers} registers, got {cubin.registers}")
        if cubin.shared > self.shared:
            found.append(f"{name}: expected <= {self.shared} bytes shared, got {cubin.shared}")
        if self.opcode and not cubin.opcodes.get(self.opcode):
            found.append(f"{name}: expected {self.opcode} in the code, got none")
        return found


MADE_WITH = "3.9.0"
# Of float16 at the tiles of default.json: shared bytes as compiled, registers as compiled and up to
# the next multiple of 8, in which the hardware hands them out.
GATES = {
    "linear_w4a16: expert gate and up": {
        80: Gate(160, 30720, "HMMA"),
        87: Gate(152, 30720, "HMMA"),
        89: Gate(152, 30720, "HMMA"),
        90: Gate(120, 38912, "HGMMA"),
        100: Gate(104, 30728, "UTCHMMA"),
        110: Gate(96, 30728, "UTCHMMA"),
        120: Gate(160, 30720, "HMMA"),
    },
    "linear_w4a16: expert down": {
        80: Gate(128, 27648, "HMMA"),
        87: Gate(120, 27648, "HMMA"),
        89: Gate(120, 27648, "HMMA"),
        90: Gate(104, 27648, "HMMA"),
        100: Gate(104, 27648, "HMMA"),
        110: Gate(104, 27648, "HMMA"),
        120: Gate(104, 27648, "HMMA"),
    },
    "linear_w8a8: vision up": {
        80: Gate(248, 32768, "IMMA"),
        87: Gate(248, 32768, "IMMA"),
        89: Gate(248, 32768, "IMMA"),
        90: Gate(128, 49152, "IGMMA"),
        100: Gate(184, 49168, "UTCIMMA"),
        110: Gate(128, 32768, "IMMA"),
        120: Gate(128, 32768, "IMMA"),
    },
    "linear_w8a8: prefix down": {
        80: Gate(152, 16384, "IMMA"),
        87: Gate(152, 16384, "IMMA"),
        89: Gate(152, 16384, "IMMA"),
        90: Gate(80, 24576, "IGMMA"),
        100: Gate(104, 24592, "UTCIMMA"),
        110: Gate(80, 16384, "IMMA"),
        120: Gate(88, 16384, "IMMA"),
    },
    "round_rows: vision down": {
        80: Gate(56, 16, None),
        87: Gate(56, 16, None),
        89: Gate(56, 16, None),
        90: Gate(56, 16, None),
        100: Gate(56, 16, None),
        110: Gate(56, 16, None),
        120: Gate(56, 16, None),
    },
    "attention_gqa: vision": {
        80: Gate(152, 32768, "HMMA"),
        87: Gate(144, 32768, "HMMA"),
        89: Gate(144, 32768, "HMMA"),
        90: Gate(120, 49152, "HGMMA"),
        100: Gate(120, 49696, "UTCHMMA"),
        110: Gate(120, 49696, "UTCHMMA"),
        120: Gate(160, 32768, "HMMA"),
    },
    "attention_gqa: expert": {
        80: Gate(168, 24576, "HMMA"),
        87: Gate(144, 24576, "HMMA"),
        89: Gate(144, 24576, "HMMA"),
        90: Gate(128, 40960, "HGMMA"),
        100: Gate(144, 40992, "UTCHMMA"),
        110: Gate(144, 40992, "UTCHMMA"),
        120: Gate(160, 24576, "HMMA"),
    },
    "rmsnorm_linear: expert qkv": {
        80: Gate(72, 37248, "HMMA"),
        87: Gate(72, 37248, "HMMA"),
        89: Gate(72, 37248, "HMMA"),
        90: Gate(96, 41344, "HGMMA"),
        100: Gate(80, 41360, "UTCHMMA"),
        110: Gate(72, 41360, "UTCHMMA"),
        120: Gate(80, 37248, "HMMA"),
    },
    "swiglu: expert": {
        80: Gate(144, 49152, "HMMA"),
        87: Gate(168, 49152, "HMMA"),
        89: Gate(168, 49152, "HMMA"),
        90: Gate(96, 73728, "HGMMA"),
        100: Gate(80, 73760, "UTCHMMA"),
        110: Gate(80, 73760, "UTCHMMA"),
        120: Gate(144, 49152, "HMMA"),
    },
    "flow_step: guided": {
        80: Gate(32, 0, None),
        87: Gate(32, 0, None),
        89: Gate(32, 0, None),
        90: Gate(32, 0, None),
        100: Gate(32, 0, None),
        110: Gate(32, 0, None),
        120: Gate(32, 0, None),
    },
}
