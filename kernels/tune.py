"""Measure tiles on the GPU at hand and write configs/<device>.json, which tiles.py then reads.

    python -m smolvla_edge.kernels.tune [--kernel linear_w4a16] [--out FILE]

Candidates that spill or need more shared memory than the device has are dropped before anything
runs, and one whose result differs from the default tile's is an error. Times are medians with a
cold L2. Untried: no GPU was at hand.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from smolvla_edge.cli.output import REFUSED, error, progress, say, write_json
from smolvla_edge.errors import BackendError, SmolVLAEdgeError
from smolvla_edge.kernels.cases import CASES, Case, Operands
from smolvla_edge.kernels.cubin import compile_for
from smolvla_edge.kernels.launch import Launch, torch, triton
from smolvla_edge.kernels.tiles import Tile, device_slug, power_of_two


def candidates(case: Case) -> Iterator[Tile]:
    """Tiles worth measuring at a case's shape."""
    rows = power_of_two(int(case.key.split("x")[0]))
    if case.kernel == "flow_step":
        yield from (
            _tile(1, warps, BLOCK=block) for block, warps in ((256, 2), (512, 4), (1024, 4))
        )
    elif case.kernel == "round_rows":
        yield from (_tile(1, warps) for warps in (1, 2, 4, 8))
    elif case.kernel == "attention_gqa":
        for block_m, block_n, stages in itertools.product((32, 64, 128), (32, 64), (2, 3)):
            for warps in (4, 8) if block_m == 128 else (4,):
                yield _tile(stages, warps, BLOCK_M=block_m, BLOCK_N=block_n)
    else:
        tall = (64, 128) if rows > 64 else (rows,)
        for block_m, block_n, block_k, stages in itertools.product(
            tall, (32, 64, 128), (64, 128), (3, 4)
        ):
            warps = 8 if block_m * block_n >= 128 * 128 else 4
            yield _tile(stages, warps, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k)


def _tile(stages: int, warps: int, **blocks: int) -> Tile:
    return {**blocks, "num_warps": warps, "num_stages": stages}


def fits(launch: Launch, arch: int, shared_bytes: int) -> bool:
    """Whether a launch compiles without spills into a block's shared memory."""
    try:
        cubin = compile_for(launch, arch)
    except BackendError:
        return False
    return cubin.spills == 0 and cubin.shared <= shared_bytes


def measure(case: Case, arch: int, shared_bytes: int) -> tuple[Tile, float]:
    """(the fastest tile, its microseconds). Raises BackendError where no candidate is left."""
    expected = _result(case, None)
    best: tuple[Tile, float] | None = None
    for tile in candidates(case):
        if not fits(case.launch(Operands("meta", torch.float16), tile), arch, shared_bytes):
            continue
        torch.testing.assert_close(_result(case, tile), expected, rtol=2e-2, atol=2e-2)
        launch = case.launch(Operands("cuda", torch.float16), tile)
        microseconds = 1e3 * triton.testing.do_bench(launch.run, return_mode="median")
        if best is None or microseconds < best[1]:
            best = tile, microseconds
    if best is None:
        raise BackendError(f"{case.text}: expected a tile that fits sm_{arch}, got none")
    return best


def _result(case: Case, tile: Tile | None) -> torch.Tensor:
    torch.manual_seed(0)  # the same operands for every tile
    launch = case.launch(Operands("cuda", torch.float16), tile)
    launch.run()
    result: torch.Tensor = launch.arguments["out"].float()
    return result / result.abs().max()


def tune(cases: Sequence[Case], report: Any) -> dict[str, Any]:
    """The contents of a configs/<device>.json. Raises BackendError where there is no GPU."""
    if not torch.cuda.is_available():
        raise BackendError("expected a CUDA device to measure on, got none")
    device = torch.cuda.get_device_properties(0)
    arch = 10 * device.major + device.minor
    shared_bytes = device.shared_memory_per_block_optin
    kernels: dict[str, dict[str, Tile]] = {}
    times: dict[str, dict[str, float]] = {}
    for done, case in enumerate(cases):
        report(done, len(cases))
        if case.key not in kernels.setdefault(case.kernel, {}):
            tile, microseconds = measure(case, arch, shared_bytes)
            kernels[case.kernel][case.key] = tile
            times.setdefault(case.kernel, {})[case.key] = round(microseconds, 2)
    versions = f"Triton {triton.__version__}, torch {torch.__version__}"
    origin = f"measured by kernels.tune, {versions}"
    return {"device": device.name, "origin": origin, "kernels": kernels, "microseconds": times}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m smolvla_edge.kernels.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = list(dict.fromkeys(case.kernel for case in CASES))
    parser.add_argument("--kernel", choices=names, help="only this one")
    parser.add_argument("--out", type=Path, help="default: configs/<device>.json of the package")
    options = parser.parse_args(arguments)
    cases = [case for case in CASES if options.kernel in (None, case.kernel)]
    try:
        with progress("measuring tiles", unit_bytes=False) as report:
            found = tune(cases, report)
        folder = Path(__file__).parent / "configs"
        path = options.out or folder / f"{device_slug(found['device'])}.json"
        write_json(path, found)
    except (SmolVLAEdgeError, OSError) as failure:
        error(str(failure))
        return REFUSED
    say(f"tiles of {len(cases)} launches in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
