"""`smolvla-edge verify`: is what this machine computes what the reference computes?"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from smolvla_edge.cli import arguments as args
from smolvla_edge.cli import output
from smolvla_edge.cli.letterboxed import native_pixels, reference_pixels
from smolvla_edge.cli.stages import StageResult, compare
from smolvla_edge.cli.verify_against import verify_against
from smolvla_edge.errors import BundleError, ExportError, MissingExtraError

if TYPE_CHECKING:
    from smolvla_edge.source import Source

_SYNTHETIC_TOKENS = 12
_SYNTHETIC_FRAME = (480, 640)  # height, width: a letterbox has something to do


@dataclass(frozen=True)
class Observation:
    """One observation, as both backends get it. Frames are in the contract's order, None: blank."""

    names: list[str]
    frames: list[np.ndarray | None]
    tokens: np.ndarray  # int64 [n]
    state: np.ndarray  # float32 [state_dim], robot units
    noise: np.ndarray  # float32 [chunk_size, max_action_dim]
    synthetic: list[str]  # what of it nobody gave


def verify(
    path: args.Source,
    image: args.Images = None,
    state: args.State = None,
    task: args.Task = None,
    seed: args.Seed = 0,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance",
            metavar="RATIO",
            min=0.0,
            help="Largest error allowed, as a part of the largest magnitude in the tensor.",
        ),
    ] = 2e-5,
    bfloat16_tolerance: Annotated[
        float,
        typer.Option(
            "--bfloat16-tolerance",
            metavar="RATIO",
            min=0.0,
            help="The same, for a bundle that computes in bfloat16: wide enough "
            "for any sound run, no promise (docs/numerics.md has what bfloat16 costs).",
        ),
    ] = 5e-2,
    files_only: Annotated[
        bool,
        typer.Option(
            "--files-only",
            help="Compare the files of a bundle or export folder with their SHA-256, no more.",
        ),
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="POLICY|exact",
            show_default=False,
            help="Measure actions against those of this checkpoint or bundle in float32; exact: "
            "what the quantised bundle was made from. Needs --frames, not torch.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--frames",
            metavar="DIR|synthetic",
            show_default=False,
            help="For --against: a LeRobotDataset v3.0 folder (extra data), a folder with "
            "observations.json, or synthetic noise.",
        ),
    ] = None,
    observations: Annotated[
        int, typer.Option("--observations", min=1, metavar="N", help="Of --frames, spread over it.")
    ] = 300,
    save: Annotated[
        bool,
        typer.Option("--save", help="Keep what --against finds as evidence of the bundle."),
    ] = False,
    device: args.Device = "auto",
    threads: args.Threads = None,
    rename: args.Rename = None,
    tokenizer: args.TokenizerFile = None,
    stats: args.Stats = None,
    revision: args.Revision = None,
    allow_unnormalized: args.AllowUnnormalized = False,
    allow_missing_cameras: args.AllowMissing = False,
    as_json: args.AsJson = False,
) -> None:
    """Compare the native core with PyTorch here.

    Both compute one observation with your policy's weights: yours (--image, --state, --task), or a
    synthetic one. Each row of the table is a stage with its worst tensor: largest error, largest
    magnitude, and whether their ratio is within the tolerance. The files of a bundle are compared
    with their SHA-256 first. A bundle that computes in bfloat16 is compared twice: in float32
    arithmetic, which must agree, and as it runs, with a wider tolerance (the only one for weights
    of integers on a GPU). Needs the extra torch (pip install 'smolvla-edge[torch]'), except with
    --files-only.

    \b
    Example:
      smolvla-edge verify my_bundle
      smolvla-edge verify my_policy --image observation.images.top=top.png \\
          --state 0,0,0,0,0,0 --task "pick up the cup" --json
      smolvla-edge verify my_bundle --files-only     after copying it to a robot
      smolvla-edge verify my_4bit --against exact --frames my_recordings

    \b
    Exit code 1 when something does not agree. Read next: docs/numerics.md
    """
    if against is not None:
        names = args.pairs(rename, "--rename") or None
        verify_against(
            path, against, data, observations, seed, threads, save, as_json,
            rename=names, allow_unnormalized=allow_unnormalized,
        )  # fmt: skip
        return
    if data is not None or save:
        raise typer.BadParameter("--frames and --save go with --against")
    files = _verify_files(path)
    if files is None and files_only:
        raise typer.BadParameter(f"--files-only needs a bundle or an export, and {path} is none")
    if files_only or files == "failed":
        _finish({"files": files, "passed": files == "passed", "stages": []}, [], as_json)
        return
    _refuse_export(path)
    _require_torch()
    frames = args.frames(image)
    values = None if state is None else args.parse_state(state)
    from smolvla_edge.backends import choose
    from smolvla_edge.source import open_source

    _, device = choose("native", device, cpu_options=["threads"] if threads is not None else [])
    with output.busy(f"reading {path}"):
        source = open_source(
            path,
            rename=args.pairs(rename, "--rename") or None,
            tokenizer=tokenizer,
            stats=stats,
            allow_unnormalized=allow_unnormalized,
            revision=revision,
        )
    observation = _observe(source, frames, values, task, seed, allow_missing_cameras)
    pixels = reference_pixels(source, observation.frames)
    # One after the other: two models at a time would not fit where one does.
    reference, torch_info = _trace(source, observation, pixels, "torch", "cpu", threads)
    reference = {**reference, **pixels}
    ours = native_pixels(source, observation.frames)
    native, native_info = _trace(source, observation, pixels, "native", device, threads)
    coded = source.bundle is not None and bool(source.bundle.codes)
    if coded and device == "cuda":  # where weights of 4 bits meet bfloat16, not integers
        tolerance = bfloat16_tolerance
    results = compare({**native, **ours}, reference, tolerance)
    rounded = []
    if source.compute == "bfloat16":
        native, _ = _trace(source, observation, pixels, "native", device, threads, source.compute)
        rounded = compare({**native, **ours}, reference, bfloat16_tolerance)
    report = {
        "files": files,
        "passed": all(result.passed for result in [*results, *rounded]),
        "compute": source.compute,
        "tolerance": tolerance,
        "bfloat16_tolerance": bfloat16_tolerance,
        "seed": seed,
        "synthetic": observation.synthetic,
        "cameras": observation.names,
        "native": native_info,
        "reference": torch_info,
        "stages": [result.to_json() for result in results],
        "bfloat16_stages": [result.to_json() for result in rounded],
    }
    _finish(report, results, as_json, rounded)


def _verify_files(path: str) -> str | None:
    """Whether the files of a bundle or export folder "passed" or "failed"; None for a checkpoint,
    without digests."""
    from smolvla_edge.bundle import is_bundle, read_bundle
    from smolvla_edge.onnx_folder import is_export, read_export

    if not is_bundle(path) and not is_export(path):
        return None
    folder = read_bundle(path) if is_bundle(path) else read_export(path)
    try:
        with output.progress(f"checking the files of {path}") as report:
            folder.verify_files(report)
    except (BundleError, ExportError) as damage:
        output.error(str(damage))
        return "failed"
    return "passed"


def _refuse_export(path: str) -> None:
    from smolvla_edge.onnx_folder import is_export

    if is_export(path):
        raise ExportError(
            f"{path} is an ONNX export folder: expected a bundle or a checkpoint. An export is "
            "compared with its bundle when it is made: smolvla-edge export BUNDLE --verify. "
            "(--files-only checks its files)"
        )


def _require_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError as cause:
        raise MissingExtraError(
            "verify compares with the PyTorch reference, and torch is not installed: "
            "pip install 'smolvla-edge[torch]'. (--files-only checks a bundle's files without it)"
        ) from cause


def _observe(
    source: Source,
    frames: Mapping[str, np.ndarray],
    state: np.ndarray | None,
    task: str | None,
    seed: int,
    allow_missing: bool,
) -> Observation:
    from smolvla_edge.contract import EMPTY_CAMERA
    from smolvla_edge.noise import check_seed, normal
    from smolvla_edge.preprocess import check_frame, check_state, unnormalize
    from smolvla_edge.tokenizer import TaskTokenizer

    model, contract = source.model, source.contract
    check_seed(seed)
    synthetic = []
    random = np.random.default_rng(seed)
    if not frames:
        synthetic.append("images")
        size = _SYNTHETIC_FRAME if model.resize else (model.image_size, model.image_size)
        frames = {
            theirs: _synthetic_frame(random, size)
            for ours, theirs in contract.robot_names().items()
            if not ours.startswith(EMPTY_CAMERA)
        }
    chosen = contract.select_frames(frames, allow_missing=allow_missing)
    checked = [f if f is None else check_frame(name, f, model.resize) for name, f in chosen]
    if state is None:
        synthetic.append("state")
        within = np.clip(random.standard_normal(contract.state_dim), -1, 1).astype(np.float32)
        state = unnormalize(within, contract.state)
    if task is None:
        synthetic.append("task")
        count = min(_SYNTHETIC_TOKENS, contract.tokenizer.max_length)
        tokens = random.integers(0, model.vocab, count, dtype=np.int64)
    elif source.tokenizer_file is None:
        raise source.no_tokenizer
    else:
        tokenizer = TaskTokenizer(source.tokenizer_file, contract.tokenizer, model.vocab)
        tokens = tokenizer.encode(task).ids
    return Observation(
        names=[name for name, _ in chosen],
        frames=checked,
        tokens=tokens,
        state=check_state(state, contract.state_dim),
        noise=normal(seed, model.chunk_size, model.max_action_dim),
        synthetic=synthetic,
    )


def _synthetic_frame(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3]: noise in blocks of 8 pixels, so that a resize has edges and surfaces."""
    height, width = size
    blocks = random.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return np.ascontiguousarray(blocks.repeat(8, 0).repeat(8, 1)[:height, :width])


def _trace(
    source: Source,
    observation: Observation,
    images: Mapping[str, np.ndarray],
    backend: str,
    device: str,
    threads: int | None,
    compute: str = "float32",
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Every intermediate on the reference's pixels, and `predict` from the raw observation."""
    from smolvla_edge.backends import open_backend
    from smolvla_edge.preprocess import normalize

    model = source.model
    present = np.array([frame is not None for frame in observation.frames])
    first = next(iter(images.values()))
    pixels = np.full((len(present), *first.shape[1:]), -1.0, np.float32)
    for i in np.flatnonzero(present):
        pixels[i] = images[f"letterbox.{i}"][0]
    state = np.zeros(model.max_state_dim, np.float32)
    state[: model.state_dim] = normalize(observation.state, source.contract.state)
    mask = np.ones(len(observation.tokens), bool)
    with output.busy(f"computing with {backend}"):
        engine = open_backend(
            model,
            source.tensors,
            source.contract,
            backend=backend,
            device=device,
            threads=threads,
            compute=compute,
        )
        started = time.perf_counter()
        recorded = engine.trace(pixels, present, observation.tokens, mask, state, observation.noise)
        chunk = engine.predict(
            observation.frames, observation.tokens, observation.state, observation.noise
        )
        seconds = time.perf_counter() - started
    recorded["predict.normalized"] = chunk.normalized
    recorded["predict.actions"] = chunk.actions
    shown = ("backend", "device", "device_name", "isa", "threads", "torch")
    info = {name: value for name, value in engine.info().items() if name in shown}
    return recorded, {**info, "seconds": round(seconds, 3)}


def _finish(
    report: Mapping[str, Any],
    results: list[StageResult],
    as_json: bool,
    rounded: Sequence[StageResult] = (),
) -> None:
    if as_json:
        output.emit_json(report)
    else:
        _print(report, results, rounded)
    if not report["passed"]:
        raise typer.Exit(output.FAILED)


def _where(native: Mapping[str, Any]) -> str:
    if native["device"] == "cuda":
        return f"cuda, {native['device_name']}"
    return f"{native['isa']}, {native['threads']} threads"


def _print(
    report: Mapping[str, Any], results: Sequence[StageResult], rounded: Sequence[StageResult]
) -> None:
    if report["files"] is not None:
        output.say(f"files against their SHA-256: {report['files']}")
    for arithmetic, part in (("float32", results), ("bfloat16", rounded)):
        if not part:
            continue
        native, reference = report["native"], report["reference"]
        output.print_table(
            f"native {arithmetic} ({_where(native)}) against "
            f"torch {reference.get('torch')} in float32",
            [
                ("stage", "left"),
                ("error", "right"),
                ("largest", "right"),
                ("ratio", "right"),
                ("", "left"),
                ("worst tensor", "left"),
            ],
            (
                (
                    result.stage,
                    f"{result.max_error:.2e}",
                    f"{result.max_reference:.3g}",
                    f"{result.relative:.1e}",
                    "pass" if result.passed else "FAIL",
                    f"{result.worst} {result.problem}".strip(),
                )
                for result in part
            ),
        )
    if results:
        made = report["synthetic"]
        output.say(f"input: {'synthetic ' + ', '.join(made) if made else 'as given'}")
    count = sum(result.tensors for result in results)
    bound = f": {count} tensors, tolerance {report['tolerance']:g}" if results else ""
    output.say(f"{'PASSED' if report['passed'] else 'FAILED'}{bound}", style="bold")
