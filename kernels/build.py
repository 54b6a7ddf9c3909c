"""Compile the kernels ahead of time, on any machine: cubins and a manifest.

    python -m smolvla_edge.kernels.build --arch 87,90,110 OUT

OUT gets one cubin for each launch of cases.py and architecture, and manifest.json, which holds what
a loader needs to launch it through the driver (entry, grid, threads, shared memory, arguments in
order) and what it was compiled with. The same Triton gives the same bytes. No GPU is asked for
anything; that a cubin runs on one is untried.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from smolvla_edge.cli.output import REFUSED, error, progress, say, write_json
from smolvla_edge.errors import SmolVLAEdgeError
from smolvla_edge.kernels.cases import CASES, Case, Operands
from smolvla_edge.kernels.cubin import ARCHS, Cubin, compile_for
from smolvla_edge.kernels.launch import torch, triton

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
MANIFEST = "manifest.json"


def build(
    out: Path,
    archs: Sequence[int],
    dtype: torch.dtype,
    cases: Sequence[Case] = CASES,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Cubins and the manifest into the folder `out`. Raises BackendError for what fails."""
    out.mkdir(parents=True, exist_ok=True)
    jobs = [(case, arch) for case in cases for arch in archs]
    entries = []
    for done, (case, arch) in enumerate(jobs):
        report(done, len(jobs))
        cubin = compile_for(case.launch(Operands("meta", dtype), None), arch)
        slug = re.sub(r"[^a-z0-9]+", "_", f"{case.kernel} {case.name}")
        file = f"{slug}-sm_{arch}.cubin"
        (out / file).write_bytes(cubin.image)
        entries.append(_entry(case, cubin, file))
    report(len(jobs), len(jobs))
    manifest = {
        "triton": triton.__version__,
        "dtype": str(dtype).removeprefix("torch."),
        "kernels": entries,
    }
    write_json(out / MANIFEST, manifest)
    return manifest


def _entry(case: Case, cubin: Cubin, file: str) -> dict[str, Any]:
    launch = cubin.launch
    scratch = [{"name": name, "type": "scratch"} for name in ("global_scratch", "profile_scratch")]
    arguments = [{"name": name, "type": kind} for name, kind in cubin.parameters]
    return {
        "name": case.kernel,
        "case": case.name,
        "shape": case.key,
        "arch": cubin.arch,
        "file": file,
        "sha256": hashlib.sha256(cubin.image).hexdigest(),
        "entry": cubin.entry,
        "grid": launch.grid,
        "constants": launch.constants,
        "num_warps": cubin.num_warps,
        "num_stages": launch.num_stages,
        "shared_bytes": cubin.shared,
        "registers": cubin.registers,
        "spills": cubin.spills,
        "arguments": arguments + scratch,
    }


def _archs(text: str) -> list[int]:
    found = [int(part) if part.isdigit() else -1 for part in text.split(",")]
    if not set(found) <= set(ARCHS):
        raise argparse.ArgumentTypeError(f"expected some of {','.join(map(str, ARCHS))}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m smolvla_edge.kernels.build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, help="folder for the cubins and manifest.json")
    parser.add_argument("--arch", type=_archs, required=True, help="as in 87,90,110")
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="of the activations")
    names = list(dict.fromkeys(case.kernel for case in CASES))
    parser.add_argument("--kernel", choices=names, help="only this one")
    options = parser.parse_args(arguments)
    cases = [case for case in CASES if options.kernel in (None, case.kernel)]
    try:
        with progress("compiling kernels", unit_bytes=False) as report:
            manifest = build(options.out, options.arch, DTYPES[options.dtype], cases, report)
    except (SmolVLAEdgeError, OSError) as failure:
        error(str(failure))
        return REFUSED
    say(f"{len(manifest['kernels'])} cubins and {MANIFEST} in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
