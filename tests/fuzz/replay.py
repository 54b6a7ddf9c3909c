"""Kept inputs, and a few mutations of them, through every Python target; no fuzzer needed.

python tests/fuzz/replay.py FOLDER [MUTATIONS] prints one JSON object: what each input was refused
with, and the most memory that was ever in use. FOLDER is made, and removed at the end. An input
that ends in anything but a typed refusal ends this too, with its name and the traceback.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import fuzz_mutate
import fuzz_targets

CORPUS = Path(__file__).parent / "corpus"
# Of address space beyond what is in use at the start: an input may reserve, but not without end.
_MEMORY_BYTES = 4 << 30


def main() -> None:
    folder, mutations = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    folder.mkdir()
    try:
        targets = fuzz_targets.make_targets(folder)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY_BYTES,) * 2)
        refusals = {}
        for name, target in targets.items():
            for label, data in _inputs(name, target, mutations):
                try:
                    refusal = target.run(data)
                except BaseException:
                    print(f"{name}: {label}: {data[:500]!r}", file=sys.stderr)
                    raise
                refusals[f"{name}: {label}"] = (
                    None if refusal is None else [type(refusal).__name__, str(refusal)]
                )
    finally:
        shutil.rmtree(folder)
    json.dump({"refusals": refusals, "peak_bytes": _peak_bytes()}, sys.stdout)


def _peak_bytes() -> int:
    """Of this program's own memory; ru_maxrss would count what started it as well."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def _inputs(name: str, target: fuzz_targets.Target, mutations: int) -> Iterator[tuple[str, bytes]]:
    for file in target.good:
        yield f"good {file}", fuzz_targets.good_input(target, file)
    kept = {path.name: path.read_bytes() for path in sorted((CORPUS / name).iterdir())}
    yield from kept.items()
    rng = random.Random(0)
    data = b""
    for count in range(mutations):
        if count % 4 == 0:  # a few steps away from a kept input
            data = rng.choice(list(kept.values()))
        data = fuzz_mutate.mutate(target, data, rng, fuzz_mutate.random_bytes(rng))
        yield f"mutation {count}", data


if __name__ == "__main__":
    main()
