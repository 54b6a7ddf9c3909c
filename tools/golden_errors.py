"""Prints the worst error of every golden case: the numbers of docs/numerics.md.

    python tools/golden_errors.py [--full] [native torch]

Relative to the largest magnitude of each tensor; the tests allow 2e-5. Run it where the package is
installed with the extra torch.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "golden"))

import golden_support as support
import native_runner

from smolvla_edge import synthetic
from smolvla_edge.checkpoint import Checkpoint, read_checkpoint

Tensors = dict[str, np.ndarray]


def native(case: str, opened: Checkpoint, sample: int) -> tuple[Tensors, Tensors]:
    observation = support.observation(case)
    engine = native_runner.make_engine(opened)
    got = native_runner.trace(engine, opened.model, observation, sample)
    mask = observation.camera_mask
    return got, native_runner.computed(support.expected(case), opened.model, mask, sample)


def torch(case: str, opened: Checkpoint, sample: int) -> tuple[Tensors, Tensors]:
    import torch_runner

    from smolvla_edge.model import load_model

    prefix_length = opened.policy.prefix_length
    model = load_model(opened.model, opened.tensors | opened.dead, prefix_length=prefix_length)
    got = torch_runner.trace(model, support.observation(case))
    return got, {name: got_of for name, got_of in support.expected(case).items() if name in got}


def main() -> None:
    words = sys.argv[1:]
    backends = [name for name in words if name in ("native", "torch")] or ["native", "torch"]
    cases = [case for case in support.MODEL_CASES if case != "no_resize_mixed"]
    cases += ["full"] if "--full" in words else []
    print(f"{'case':28} {'backend':8} {'worst':>9}  {'tensor':32} {'actions':>9}")
    for case in cases:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "checkpoint"
            if case == "full":
                synthetic.make_checkpoint(folder, "full")
                opened = read_checkpoint(folder)
            else:
                opened = support.open_checkpoint(support.assemble(case, folder))
            for backend in backends:
                run = {"native": native, "torch": torch}[backend]
                errors: dict[str, float] = {}
                samples = support.observation(case).batch if backend == "native" else 1
                for sample in range(samples):
                    got, want = run(case, opened, sample)
                    for name, value in want.items():
                        error = support.compare(name, got[name], value)
                        errors[name] = max(errors.get(name, 0.0), error)
                worst = max(errors, key=errors.__getitem__)
                actions = errors["out.actions_padded"]
                print(f"{case:28} {backend:8} {errors[worst]:9.1e}  {worst:32} {actions:9.1e}")


if __name__ == "__main__":
    main()
