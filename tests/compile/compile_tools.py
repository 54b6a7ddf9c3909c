"""nvcc and a disassembler, where they are, and what a .cu file became for each target.

nvcc: SMOLVLA_NVCC, PATH, or the packages nvidia-cuda-nvcc and its kin. nvdisasm and cuobjdump: PATH
or Triton's wheel. No GPU and no driver is needed for any of it.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

TARGETS = (80, 87, 89, 90, 100, 110, 120)
_FLAGS = ("-std=c++17", "-O3", "-fmad=false", "-Xptxas=-v")  # as csrc/cuda/cuda.cmake has them


class CompileError(Exception):
    """nvcc refused a source. The message is nvcc's own, the target in its lines."""


@dataclasses.dataclass(frozen=True)
class Record:
    """What one kernel became for one target. Sizes in bytes; instructions: how often each SASS
    opcode stands in it, without its suffixes."""

    kernel: str
    target: int
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    static_shared: int
    instructions: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Tools:
    nvcc: Path
    cuobjdump: Path
    nvdisasm: Path

    def version(self) -> str:
        return _run([self.nvcc, "--version"]).stdout


def find_tools() -> Tools | str:
    """The tools, or why there are none."""
    nvcc = _first(os.environ.get("SMOLVLA_NVCC"), shutil.which("nvcc"), _in_package("nvidia.cu13"))
    if nvcc is None:
        return (
            "no nvcc: put one on PATH, name it with SMOLVLA_NVCC, or pip install nvidia-cuda-nvcc "
            "nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl"
        )
    found = {}
    for name in ("cuobjdump", "nvdisasm"):
        path = _first(
            shutil.which(name), nvcc.parent / name, _in_package("triton.backends.nvidia", name)
        )
        if path is None:
            return f"no {name}: put one on PATH, or pip install triton (its wheel has one)"
        found[name] = path
    return Tools(nvcc, **found)


def _first(*paths: str | Path | None) -> Path | None:
    return next((Path(p) for p in paths if p and Path(p).exists()), None)


def _in_package(package: str, program: str = "nvcc") -> Path | None:
    # Not imported: Triton takes a second, and only files of it are wanted.
    top, *rest = package.split(".")
    spec = importlib.util.find_spec(top)
    for place in spec.submodule_search_locations or [] if spec else []:
        path = Path(place, *rest, "bin", program)
        if path.exists():
            return path
    return None


def _run(command: list[object]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)


def compile_source(
    tools: Tools, source: Path, include: Path, cache: Path, targets: tuple[int, ...] = TARGETS
) -> list[Record]:
    """Every kernel of `source` for every target. Kept in `cache` by the contents of the source, of
    what it includes from `include`, and of the compiler.

    Raises CompileError when nvcc does not compile it for one of the targets.
    """
    key = hashlib.sha256()
    key.update(repr((tools.version(), _FLAGS, targets, Path(__file__).read_bytes())).encode())
    for path in sorted(includes(source, include)):
        key.update(path.name.encode() + b"\0" + path.read_bytes())
    kept = cache / f"{source.stem}-{key.hexdigest()[:24]}.json"
    if kept.exists():
        return [Record(**r) for r in json.loads(kept.read_text())]
    with tempfile.TemporaryDirectory() as folder:
        records = _compile(tools, source, include, targets, Path(folder))
    cache.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps([dataclasses.asdict(r) for r in records]))
    partial.replace(kept)
    return records


def includes(source: Path, include: Path) -> set[Path]:
    """The source and every file of ours that it includes, directly or not."""
    found, waiting = set(), [source.resolve()]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.MULTILINE):
            for place in (path.parent / name, include / name):
                if place.exists():
                    waiting.append(place.resolve())
                    break
    return found


def _compile(
    tools: Tools, source: Path, include: Path, targets: tuple[int, ...], folder: Path
) -> list[Record]:
    fatbin = folder / "all.fatbin"
    codes = [f"-gencode=arch=compute_{t},code=sm_{t}" for t in targets]
    done = _run([tools.nvcc, *_FLAGS, *codes, f"-I{include}", "-fatbin", source, "-o", fatbin])
    if done.returncode != 0:
        raise CompileError(done.stderr + done.stdout)
    resources = _resources(done.stderr + done.stdout)
    if not resources:
        return []  # host code alone
    subprocess.run(
        [tools.cuobjdump, "-xelf", "all", fatbin], cwd=folder, check=True, capture_output=True
    )
    records = []
    for target in targets:
        (cubin,) = folder.glob(f"*.sm_{target}.cubin")
        listing = _run([tools.nvdisasm, "-c", cubin])
        if listing.returncode != 0:
            raise CompileError(f"nvdisasm of {cubin.name}: {listing.stderr}")
        instructions = _instructions(listing.stdout)
        for mangled, numbers in resources[target].items():
            records.append(
                Record(
                    kernel=plain_name(mangled),
                    target=target,
                    **numbers,
                    instructions=dict(instructions[mangled]),
                )
            )
    return records


_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<target>\d+)a?'.*?"
    r"Function properties for (?P=name)\n\s*"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads\n"
    r"[^\n]*Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def _resources(text: str) -> dict[int, dict[str, dict[str, int]]]:
    found: dict[int, dict[str, dict[str, int]]] = {}
    for m in _ENTRY.finditer(text):
        shared = re.search(r"(\d+) bytes smem", m["rest"])
        found.setdefault(int(m["target"]), {})[m["name"]] = {
            "registers": int(m["registers"]),
            "stack": int(m["stack"]),
            "spill_stores": int(m["stores"]),
            "spill_loads": int(m["loads"]),
            "static_shared": int(shared[1]) if shared else 0,
        }
    return found


_SECTION = re.compile(r"^\.text\.(\S+):$")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)")


def _instructions(listing: str) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    current: Counter[str] | None = None
    for line in listing.splitlines():
        if section := _SECTION.match(line):
            current = found.setdefault(section[1], Counter())
        elif current is not None and (instruction := _INSTRUCTION.match(line)):
            current[instruction[1]] += 1
    return found


def plain_name(mangled: str) -> str:
    """`gemm<64, true>` of its mangled name: no result, no parameters, no namespaces of ours."""
    library = ctypes.CDLL("libstdc++.so.6")
    library.__cxa_demangle.restype = ctypes.c_void_p
    library.__cxa_demangle.argtypes = [ctypes.c_char_p] + [ctypes.c_void_p] * 3
    pointer = library.__cxa_demangle(mangled.encode(), None, None, None)
    if not pointer:
        return mangled
    text = ctypes.string_at(pointer).decode()
    ctypes.CDLL(None).free(ctypes.c_void_p(pointer))
    for namespace in ("(anonymous namespace)::", "smolvla::cuda::", "smolvla::"):
        text = text.replace(namespace, "")
    text = re.sub(r"\((?:\w+::)*\w+\)(?=-?\d)", "", text)  # (int)64 of newer mangling
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            text = text[:i]
            break
    return text.removeprefix("void ")
