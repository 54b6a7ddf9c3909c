"""Set LeRobot up from carried wheels, beside this Python's own packages: build/gpu/rival.

    python -m tools.gpu.rival

Nothing is fetched. What this Python has already (torch first of all) is used as it is, in whatever
version; what the wheels hold comes before it. The import is tried, so that a benchmark does not
find out.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tools.gpu.machine import BUILD, CARRIED, ROOT, environment

FOLDER = BUILD / "rival"
WORKER = ROOT / "benchmarks" / "rivals" / "lerobot"


def wrapper(site: Path) -> str:
    """A `python` that sees the wheels first."""
    return (
        "#!/bin/sh\n"
        f'PYTHONPATH="{site}:{ROOT}${{PYTHONPATH:+:$PYTHONPATH}}" exec "{sys.executable}" "$@"\n'
    )


def main() -> int:
    wheels = sorted((CARRIED / "rival").glob("*.whl"))
    if not wheels:
        print(f"error: no wheels in {CARRIED / 'rival'}; python -m tools.gpu.carry makes them")
        return 1
    site = FOLDER / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps",
               "--no-compile", "--upgrade", "--target", str(site), *map(str, wheels)]  # fmt: skip
    if subprocess.run(command, check=False).returncode:
        return 1
    python = FOLDER / "python.partial"
    python.write_text(wrapper(site))
    python.chmod(0o755)
    done = subprocess.run(
        [str(python), "-c", "import build; print('ready:', build.versions())"], cwd=WORKER,
        env=environment(), check=False,
    )  # fmt: skip
    if done.returncode:
        print("error: LeRobot cannot be imported here; benchmarks then take our torch model")
        return 1
    python.rename(FOLDER / "python")
    return 0


if __name__ == "__main__":
    sys.exit(main())
