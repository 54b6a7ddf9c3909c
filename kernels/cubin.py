"""A launch compiled for a GPU that need not be here, and what the result uses of it.

Triton's wheel brings ptxas, cuobjdump and nvdisasm, so registers, spills, shared memory and the
instructions themselves are known on any machine.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolvla_edge.errors import BackendError
from smolvla_edge.kernels.launch import INTERPRETED, Launch, torch, triton

ARCHS = (80, 87, 89, 90, 100, 110, 120)
TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int32: "i32",
}
_RESOURCES = re.compile(r"REG:(\d+)")
_OPCODE = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)", re.M)


@dataclass(frozen=True)
class Cubin:
    """What one launch became.

    parameters: (name, type) in the order of the cubin's own; two pointers follow them, to scratch
    memory that these kernels do not use (pass 0). shared: bytes a block; registers: a thread;
    num_warps: of a block, which may be more than the launch asks for; opcodes: how often each SASS
    instruction, up to its first dot, stands in the kernel.
    """

    launch: Launch
    arch: int
    entry: str
    image: bytes
    ptx: str
    parameters: tuple[tuple[str, str], ...]
    shared: int
    num_warps: int
    registers: int
    opcodes: dict[str, int]

    @property
    def spills(self) -> int:
        """Instructions that store to or load from local memory: registers that did not suffice."""
        return self.opcodes.get("STL", 0) + self.opcodes.get("LDL", 0)


def signature(
    launch: Launch,
) -> tuple[dict[str, str], dict[tuple[int], Any], dict[tuple[int], Any]]:
    """(types, attributes, constants) by which Triton would specialise the launch's kernel.

    As at run time: pointers of fresh tensors are multiples of 16, operands that are None vanish.
    Integers are taken as arbitrary, which is how the kernels declare theirs.
    """
    types: dict[str, str] = {}
    attributes: dict[tuple[int], Any] = {}
    constants: dict[tuple[int], Any] = {}
    given = {**launch.arguments, **launch.constants}
    for i, name in enumerate(launch.kernel.arg_names):
        value = given[name]
        if isinstance(value, torch.Tensor):
            types[name] = "*" + TYPES[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif value is None or name in launch.constants:
            types[name] = "constexpr"
            constants[(i,)] = value
        else:
            types[name] = "fp32" if isinstance(value, float) else "i32"
    return types, attributes, constants


def compile_for(launch: Launch, arch: int) -> Cubin:
    """Compile for sm_<arch>. Raises BackendError when Triton cannot."""
    if INTERPRETED:
        raise BackendError(
            "expected Triton's compiler, got its interpreter; unset TRITON_INTERPRET"
        )
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types, attributes, constants = signature(launch)
    source = ASTSource(launch.kernel, types, constants, attributes)
    try:
        # Line numbers would put this folder's name into the cubin: other bytes in another place.
        with triton.knobs.compilation.scope():
            triton.knobs.compilation.disable_line_info = True
            target = GPUTarget("cuda", arch, 32)
            made = triton.compile(source, target=target, options=launch.options)
    except Exception as error:  # its compiler's own errors have no common type
        raise BackendError(f"{launch.name}: sm_{arch} failed to compile: {error}") from error
    image = made.asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(image)
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        sass = _tool("nvdisasm", "-c", file.name)
    return Cubin(
        launch,
        arch,
        made.metadata.name,
        image,
        made.asm["ptx"],
        tuple((name, kind) for name, kind in types.items() if kind != "constexpr"),
        made.metadata.shared,
        made.metadata.num_warps,
        int(_RESOURCES.search(usage)[1]),  # type: ignore[index]
        dict(Counter(_OPCODE.findall(sass))),
    )


def _tool(name: str, *arguments: str) -> str:
    binary = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    run = subprocess.run([binary, *arguments], capture_output=True, text=True, check=False)
    if run.returncode:
        raise BackendError(f"{name} failed: {run.stderr.strip()}")
    return run.stdout + run.stderr
