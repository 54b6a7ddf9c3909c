"""The parts of a run on a GPU: what each needs, runs and may take."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tools.gpu import machine
from tools.gpu.machine import BUILD, CARRIED, ROOT

PYTHON = sys.executable
Commands = list[list[str]]


@dataclass(frozen=True)
class Options:
    """What the whole run was asked for. data: a set to train the demo policy on."""

    data: Path | None = None
    cameras: tuple[str, ...] = ("1", "2")


@dataclass(frozen=True)
class Part:
    """One step. seconds: after which it is stopped; missing: why it cannot run here, or "".

    requires: parts that must be done before.
    """

    name: str
    what: str
    seconds: int
    commands: Callable[[Options], Commands]
    missing: Callable[[Options], str] = lambda options: ""
    requires: tuple[str, ...] = ()


def _no_gpu(options: Options) -> str:
    """Of what runs our extension on a GPU."""
    state = machine.core_state()
    if not state:
        return "the extension is not built (part build)"
    if state.get("emulated"):
        return "the extension in this tree is the emulated one"
    if not state.get("built"):
        return "the extension is built without CUDA"
    return "" if state.get("devices") else f"no GPU: {state.get('error') or 'none is there'}"


def _with(*modules: str) -> Callable[[Options], str]:
    def missing(options: Options) -> str:
        absent = [name for name in modules if not machine.has(name)]
        return f"not installed: {', '.join(absent)}" if absent else _no_gpu(options)

    return missing


def _build(options: Options) -> Commands:
    return [[PYTHON, "-m", "tools.gpu.build"]]


def _tests(options: Options) -> Commands:
    return [[PYTHON, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu", "tests/kernels"]]


def _no_sanitizer(options: Options) -> str:
    return _with("pytest")(options) if machine.sanitizer() else "compute-sanitizer is not installed"


def _sanitizer(tool: str, *files: str) -> Callable[[Options], Commands]:
    """Small tests of operators, and for memcheck of the engine: they take minutes as it is."""
    program = [PYTHON, "-m", "pytest", "-q", "-x", "-m", "gpu and not full"]
    program += [f"tests/gpu/test_gpu_{name}.py" for name in files]
    usual = ["--target-processes", "all", "--error-exitcode", "9", "--print-limit", "20"]

    def commands(options: Options) -> Commands:
        found = machine.sanitizer() or "compute-sanitizer"
        return [[found, *usual, "--tool", tool, *program]]

    return commands


def _micro(options: Options) -> Commands:
    return [[PYTHON, "-m", "benchmarks.micro", "--gpu", "--minutes", "4"]]


def _bundles(options: Options) -> Commands:
    return [[*_end_to_end(), "--prepare-only"]]


def _end_to_end() -> list[str]:
    """Six turns of 20 calls are enough for a p99; an eager rival takes 5 s for one of them."""
    return [PYTHON, "-m", "benchmarks.end_to_end", "--device", "cuda", "--language", "longest",
            "--recipe", "balanced", "expert4", "--repeats", "6", "--retries", "2",
            "--patience", "2"]  # fmt: skip


def rival_words() -> list[str]:
    """LeRobot if it can be imported here, else our own torch model, which the report then names."""
    installed = ROOT / "benchmarks" / "rivals" / "lerobot" / ".venv" / "bin" / "python"
    for python in (BUILD / "rival" / "python", installed):
        if python.is_file() and machine.torch_has_gpu(python):
            return ["--rival", "lerobot", "--rival-python", str(python)]
    return ["--rival", "reference"]


def _eager(options: Options) -> Commands:
    return [[*_end_to_end(), "--cameras", *options.cameras, *rival_words()]]


def _compiled(options: Options) -> Commands:
    """Beside the compiled rival: compiling takes minutes, so 2 cameras and bfloat16 alone."""
    words = ["--cameras", "2", "--precision", "bfloat16", "--compile", "bfloat16"]
    words += ["--device-name", f"{_device()}-compiled"]
    return [[*_end_to_end(), *words, *rival_words()]]


def _device() -> str:
    from benchmarks.gpu.machine import slug

    devices = machine.core_state().get("devices")
    first = devices[0] if isinstance(devices, list) and devices else {"name": "no-gpu"}
    return slug(str(first["name"]))


def _no_rival(options: Options) -> str:
    if (BUILD / "rival" / "python").is_file():
        return "it is there already"
    return "" if list((CARRIED / "rival").glob("*.whl")) else f"nothing in {CARRIED / 'rival'}"


def _rival(options: Options) -> Commands:
    return [[PYTHON, "-m", "tools.gpu.rival"]]


def _no_data(options: Options) -> str:
    if options.data is None:
        return "no data to train on; name a folder that tools.demo_policy.generate made: --data"
    return _with("torch", "pyarrow", "av")(options)


def _train(options: Options) -> Commands:
    out = BUILD / "train"
    return [[PYTHON, "-m", "tools.demo_policy.train", str(options.data), str(out),
             "--device", "cuda", "--steps", "500"]]  # fmt: skip


PARTS = (
    Part("build", "the extension for this GPU, with nvcc", 240, _build),
    Part("tests", "pytest -m gpu, where a skip for want of a GPU is an error", 300, _tests,
         _with("pytest", "torch"), ("build",)),
    Part("micro", "single operators beside cuBLAS, SDPA, NF4 and Triton", 300, _micro,
         _with("torch"), ("build",)),
    Part("bundles", "the synthetic checkpoint and its bundles", 300, _bundles, requires=("build",)),
    Part("rival", "LeRobot from carried wheels", 120, _rival, _no_rival),
    Part("end-to-end", "the whole policy beside the eager rival", 400, _eager, _with("torch"),
         ("bundles",)),
    Part("memcheck", "operators and engine under compute-sanitizer: memory", 400,
         _sanitizer("memcheck", "ops_linear", "ops_attention", "ops_rows", "engine"),
         _no_sanitizer, ("build",)),
    Part("racecheck", "operators under compute-sanitizer: races in shared memory", 400,
         _sanitizer("racecheck", "ops_linear", "ops_attention", "ops_rows"),
         _no_sanitizer, ("build",)),
    Part("compiled", "the whole policy beside the compiled rival", 580, _compiled, _with("torch"),
         ("bundles",)),
    Part("train", "500 steps of the demo policy", 300, _train, _no_data),
)  # fmt: skip
NAMES = tuple(part.name for part in PARTS)
