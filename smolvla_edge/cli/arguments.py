"""Command-line words that several verbs share, and what they mean."""

from __future__ import annotations

import json
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from smolvla_edge.errors import InputError
from smolvla_edge.image_file import read_image

_MAX_STATE_BYTES = 1 << 20

Source = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT|BUNDLE",
        help="A LeRobot checkpoint folder, a Hub id (owner/name), or a bundle made by convert.",
        show_default=False,
    ),
]


class Environment(str, Enum):
    """The simulators of --env."""

    metaworld = "metaworld"


Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DIR|synthetic",
        show_default=False,
        help="A LeRobotDataset v3.0 folder (extra data), a folder with observations.json, or "
        "synthetic noise.",
    ),
]
Rename = Annotated[
    list[str] | None,
    typer.Option(
        "--rename",
        metavar="YOURS=MODEL",
        help="Your camera's (or state's) name = the model's. Repeatable.",
        show_default=False,
    ),
]
TokenizerFile = Annotated[
    Path | None,
    typer.Option("--tokenizer", metavar="FILE", help="A tokenizer.json.", show_default=False),
]
Stats = Annotated[
    str | None,
    typer.Option(
        "--stats",
        metavar="FILE|KEY",
        help="Normalisation statistics, for a checkpoint whose own do not fit: a file, or the key "
        "of a set that the checkpoint holds.",
        show_default=False,
    ),
]
AllowUnnormalized = Annotated[
    bool,
    typer.Option(
        "--allow-unnormalized",
        help="Run without statistics. The robot gets the model's own numbers: rarely right.",
    ),
]
AllowMissing = Annotated[
    bool,
    typer.Option(
        "--allow-missing-cameras",
        help="Run with fewer cameras than the policy was trained with.",
    ),
]
Images = Annotated[
    list[str] | None,
    typer.Option(
        "--image",
        metavar="CAMERA=FILE",
        help="A camera's frame: binary PPM, or PNG, JPEG ... with the extra viz. Repeatable.",
        show_default=False,
    ),
]
State = Annotated[
    str | None,
    typer.Option(
        "--state",
        metavar="NUMBERS|@FILE",
        help="Joint state in robot units: 0.1,0.2,... or @state.json or @state.npy.",
        show_default=False,
    ),
]
Task = Annotated[
    str | None,
    typer.Option("--task", metavar="TEXT", help="The instruction.", show_default=False),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, metavar="N", help="CPU threads; all that are allowed when not given."
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        help="auto, cpu or cuda. auto: the GPU, if this build has the CUDA backend, a GPU answers "
        "and neither --threads nor --packed-cache is given. For an export folder also tensorrt, "
        "and auto is the CPU.",
    ),
]
PackedCache = Annotated[
    bool,
    typer.Option(
        "--packed-cache",
        help="Keep a bundle's weights as this machine's kernels want them (in ~/.cache, as large "
        "as the bundle), so that the next load takes a fraction of a second.",
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        "--revision",
        metavar="COMMIT",
        help="For a Hub id: its branch, tag or commit.",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Of the starting noise.")]
AsJson = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")]


def pairs(values: Iterable[str] | None, option: str, form: str = "YOURS=MODEL") -> dict[str, str]:
    """["a=b", ...] -> {"a": "b"}. A wrong form or a name given twice is wrong usage."""
    result: dict[str, str] = {}
    for value in values or ():
        name, equals, rest = value.partition("=")
        if not (name and equals and rest):
            raise typer.BadParameter(f"{option}: expected {form}, got {value!r}")
        if name in result:
            raise typer.BadParameter(f"{option}: {name!r} is given twice")
        result[name] = rest
    return result


def frames(values: Iterable[str] | None) -> dict[str, np.ndarray]:
    """["camera=file", ...] -> {camera: uint8 [H, W, 3]}."""
    files = pairs(values, "--image", "CAMERA=FILE")
    return {name: read_image(Path(file).expanduser()) for name, file in files.items()}


def parse_state(text: str) -> np.ndarray:
    """Numbers with commas between, @file.json or @file.npy -> float32 [n]. Raises InputError."""
    if text.startswith("@"):
        values = _state_file(Path(text[1:]).expanduser())
    else:
        try:
            values = np.array([float(word) for word in text.split(",")], np.float64)
        except ValueError:
            raise InputError(
                f"--state: expected numbers with commas between (0.1,0.2) or @FILE, got {text!r}"
            ) from None
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise InputError(f"--state: expected finite float32 values, got {values.tolist()}")
    return narrow


def _state_file(path: Path) -> np.ndarray:
    try:
        size = path.stat().st_size
        if not path.is_file() or size > _MAX_STATE_BYTES:
            raise InputError(f"--state: {path} is no file, or too large to hold one state")
        if path.suffix == ".npy":
            values: Any = np.load(path, allow_pickle=False)
        elif path.suffix == ".json":
            values = json.loads(path.read_text(encoding="utf-8"))
        else:
            raise InputError(f"--state: expected a .json or .npy file, got {path}")
    except OSError as cause:
        raise InputError(f"--state: cannot read {path}: {cause.strerror or cause}") from cause
    except InputError:
        raise
    except Exception as cause:  # numpy's reader raises SyntaxError, TokenError, EOFError ...
        raise InputError(f"--state: {path} is malformed: {cause}") from cause
    if isinstance(values, list):
        if not all(type(value) in (int, float) for value in values):
            raise InputError(f"--state: expected a flat list of numbers in {path}")
        try:
            values = np.array(values, np.float64)
        except OverflowError:
            raise InputError(f"--state: a number in {path} is too large") from None
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in "fiu":
        came = getattr(values, "shape", type(values).__name__)
        raise InputError(f"--state: expected one dimension of numbers in {path}, got {came}")
    return values
