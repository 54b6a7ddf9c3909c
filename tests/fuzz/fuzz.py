"""Coverage-guided fuzzing of one Python target: fuzz.py TARGET [libFuzzer options and corpora].

Needs atheris; `make fuzz` runs every target. Findings are written where -artifact_prefix says.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["smolvla_edge"]):
    import fuzz_targets

import fuzz_mutate


def main() -> None:
    name, *options = sys.argv[1:]
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        target = fuzz_targets.make_targets(Path(folder))[name]
        seeds = Path(folder) / "seeds"
        seeds.mkdir()
        for file in target.good:
            seed = fuzz_targets.good_input(target, file)
            if (refusal := target.run(seed)) is not None:
                raise RuntimeError(f"{file}: the good file is refused: {refusal}")
            (seeds / file).write_bytes(seed)

        def custom_mutator(data: bytes, max_size: int, seed: int) -> bytes:
            def other(content: bytes) -> bytes:
                return bytes(atheris.Mutate(content, max_size))

            return fuzz_mutate.mutate(target, data, random.Random(seed), other)[:max_size]

        atheris.Setup(
            [sys.argv[0], *options, str(seeds)],
            lambda data: target.run(data) and None,
            custom_mutator=custom_mutator,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
