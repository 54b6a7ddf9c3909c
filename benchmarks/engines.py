"""The engines that an end-to-end run compares, and the checkpoints and bundles that they load.

Like is compared with like: our float32 with LeRobot's float32, our bfloat16 with LeRobot's
bfloat16, eager and compiled. Integer weights (a recipe of `smolvla-edge quantize`, rounded to
nearest) have no like there: they are compared with the fastest that computes without them, and
their actions' difference stands beside it. Where LeRobot cannot be installed, our own torch model,
eager and compiled, stands in for it under its own name. What is synthetic is made on first use, by
the product's own code, and kept in the user's cache.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import Worker, WorkerError, log

ROOT = Path(__file__).resolve().parent.parent
OURS = ROOT / "benchmarks" / "workers" / "ours.py"
LEROBOT = ROOT / "benchmarks" / "rivals" / "lerobot"
STAND_IN = ROOT / "benchmarks" / "workers" / "reference.py"
CONFIGS = ("base", "libero", "tiny")  # sizes of smolvla_edge.synthetic; base is its "full"
PRECISIONS = ("float32", "bfloat16")
RECIPES = ("int8", "balanced", "small", "expert4")
_RECIPE_FILES = ROOT / "benchmarks" / "recipes"  # of those that the product does not ship
RIVALS = ("lerobot", "reference", "none")
PRODUCTS = {"ours": "smolvla-edge", "lerobot": "lerobot", "reference": "our torch reference"}


@dataclass(frozen=True)
class Engine:
    """One side of a comparison. kind: "ours", "lerobot" or "reference" (our torch model).

    `precision` is one of PRECISIONS or, of ours, of RECIPES.
    """

    kind: str
    precision: str
    compiled: bool = False

    @property
    def name(self) -> str:
        return f"{PRODUCTS[self.kind]} {self.precision}" + (" compiled" if self.compiled else "")

    @property
    def is_ours(self) -> bool:
        return self.kind == "ours"


def reference_of(engines: Sequence[Engine]) -> Engine | None:
    """What every engine's actions are compared with: the eager rival in float32, if it runs."""
    found = (e for e in engines if not e.is_ours and not e.compiled and e.precision == "float32")
    return next(found, None)


def choose_engines(
    precisions: list[str],
    rival: str,
    compiled: list[str],
    ours: bool = True,
    recipes: Sequence[str] = (),
) -> list[Engine]:
    """Ours first, then the eager rivals, then the compiled ones. rival: one of RIVALS."""
    engines = [Engine("ours", p) for p in (*precisions, *recipes)] if ours else []
    if rival != "none":
        engines += [Engine(rival, p) for p in precisions]
        engines += [Engine(rival, p, compiled=True) for p in compiled]
    return engines


def rivals_of(engine: Engine, engines: list[Engine]) -> list[Engine]:
    """The engines that ours is to be compared with: of its precision, eager and compiled; of
    integer weights everything in bfloat16, our own too."""
    if engine.precision in RECIPES:
        return [e for e in engines if e.precision == "bfloat16"]
    return [e for e in engines if not e.is_ours and e.precision == engine.precision]


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smolvla-edge"


def default_checkpoint(config: str, cameras: int) -> Path:
    """The synthetic checkpoint of a configuration, made on first use."""
    from smolvla_edge.synthetic import make_checkpoint

    folder = cache_folder() / f"benchmark-{config}-{cameras}-cameras"
    if not (folder / "config.json").is_file():
        log(f"making the synthetic checkpoint {folder}")
        names = [f"observation.images.camera{i + 1}" for i in range(cameras)]
        make_checkpoint(folder, "full" if config == "base" else config, cameras=names)
    return folder


def bundle_of(checkpoint: Path, precision: str) -> Path:
    """The bundle of a checkpoint in one precision or recipe: `smolvla-edge convert` or `quantize`,
    kept in the cache.

    A bundle that this build cannot read, or that is older than its checkpoint, is made again.
    """
    from smolvla_edge.bundle import read_bundle
    from smolvla_edge.errors import SmolVLAEdgeError

    name = str(checkpoint.resolve()).strip("/").replace("/", "-")[-80:]
    bundle = cache_folder() / "benchmark-bundles" / f"{name}-{precision}"
    if (bundle / "bundle.json").is_file():
        fresh = (checkpoint / "config.json").stat().st_mtime <= bundle.stat().st_mtime
        try:
            if fresh:
                read_bundle(bundle)
                return bundle
        except SmolVLAEdgeError as error:
            log(f"making {bundle} again: {error}")
    if precision in RECIPES:
        plain = bundle_of(checkpoint, "bfloat16")
        file = _RECIPE_FILES / f"{precision}.toml"
        recipe = str(file) if file.is_file() else precision
        _command("quantize", plain, bundle, "--recipe", recipe)
    else:
        convert(checkpoint, bundle, precision)
    return bundle


def convert(checkpoint: Path, bundle: Path, precision: str, *options: str) -> None:
    """`smolvla-edge convert`, in a process of its own. Raises WorkerError with its message."""
    dtype = [] if precision == "float32" else ["--dtype", precision]
    _command("convert", checkpoint, bundle, *options, *dtype)


def _command(verb: str, source: Path, bundle: Path, *options: str) -> None:
    bundle.parent.mkdir(parents=True, exist_ok=True)
    program = "from smolvla_edge.cli import main; main()"
    command = [sys.executable, "-c", program, verb, str(source.resolve()), str(bundle.resolve())]
    command += ["--allow-unnormalized", "--force", *options]
    log(f"{verb}: making {bundle}")
    # Not from the source tree: an installed package is not to be hidden by it.
    where = bundle.parent
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WorkerError(f"smolvla-edge {verb}: {done.stderr.strip()[-2000:]}")


@dataclass(frozen=True)
class Start:
    """How workers are started. rival_python: what runs LeRobot, instead of its own environment."""

    threads: int
    backend: str = "native"
    device: str = "cpu"
    rival_python: str | None = None


def command_of(engine: Engine, checkpoint: Path, start: Start) -> tuple[list[str], dict[str, str]]:
    """The worker's command line and what it needs in its environment."""
    shared = ["--threads", str(start.threads), "--device", start.device]
    if engine.is_ours:
        path = bundle_of(checkpoint, engine.precision)
        command = [sys.executable, str(OURS), "--path", str(path)]
        # What is no integer is computed in bfloat16.
        compute = "bfloat16" if engine.precision in RECIPES else engine.precision
        return [*command, "--precision", compute, "--backend", start.backend, *shared], {}
    if engine.kind == "reference":
        command = [sys.executable, str(STAND_IN)]
    else:
        python = Path(start.rival_python or LEROBOT / ".venv" / "bin" / "python")
        if not python.is_file():
            raise WorkerError(
                f"the rival's environment is missing; run {LEROBOT}/install.sh or use --no-rival"
            )
        command = [str(python), str(LEROBOT / "worker.py")]
    command += ["--checkpoint", str(checkpoint), "--precision", engine.precision, *shared]
    if not engine.compiled:
        return command, {}
    # Compiled graphs are kept from run to run; what was compiled is looked up, not timed.
    kept = {"TORCHINDUCTOR_CACHE_DIR": str(cache_folder() / "inductor")}
    return [*command, "--compile"], kept


def start_workers(engines: list[Engine], checkpoint: Path, start: Start) -> dict[str, Worker]:
    """One process an engine, started one after the other: loading is timed too."""
    workers: dict[str, Worker] = {}
    try:
        for engine in engines:
            command, environment = command_of(engine, checkpoint, start)
            log(f"starting {engine.name}")
            workers[engine.name] = Worker(engine.name, command, ROOT, environment=environment)
    except BaseException:
        for worker in workers.values():
            worker.close()
        raise
    return workers


def describe_checkpoint(checkpoint: Path) -> tuple[Any, str]:
    """(ModelConfig, a sentence on the weights)."""
    from smolvla_edge.checkpoint import read_checkpoint

    source = read_checkpoint(checkpoint, allow_unnormalized=True)
    live = sum(entry.nbytes for entry in source.tensors.values()) / 1e6
    counts = ", ".join(f"{n} {dtype}" for dtype, n in sorted(source.dtype_counts.items()))
    return source.model, f"{checkpoint.name}: {live:.0f} MB of live tensors, {counts}"
