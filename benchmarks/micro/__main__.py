"""python -m benchmarks.micro: the CPU's kernels through pytest-benchmark; with --gpu the GPU's."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> int:
    if "--gpu" in sys.argv[1:]:
        from benchmarks.gpu.micro import main as gpu

        return gpu()
    import pytest

    return int(pytest.main([str(Path(__file__).parent), *sys.argv[1:]]))


if __name__ == "__main__":
    sys.exit(main())
