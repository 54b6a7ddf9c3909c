"""`smolvla-edge convert`: a LeRobot checkpoint becomes a bundle."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from smolvla_edge.cli import arguments as args
from smolvla_edge.cli import output
from smolvla_edge.errors import BundleError


class Dtype(str, Enum):
    """precision.CONVERT_DTYPES, as typer wants them."""

    keep = "keep"
    bfloat16 = "bfloat16"


def convert(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A LeRobot checkpoint folder, or a Hub id (owner/name; extra hub).",
            show_default=False,
        ),
    ],
    bundle: Annotated[
        Path,
        typer.Argument(metavar="BUNDLE", help="The directory to make.", show_default=False),
    ],
    revision: args.Revision = None,
    rename: args.Rename = None,
    tokenizer: args.TokenizerFile = None,
    stats: args.Stats = None,
    allow_unnormalized: args.AllowUnnormalized = False,
    dtype: Annotated[
        Dtype,
        typer.Option(
            help="keep: tensors as they are, float32 arithmetic, exact. bfloat16: matrices rounded "
            "to bfloat16 and computed in it: faster, and no longer exact.",
        ),
    ] = Dtype.keep,
    packed_cache: args.PackedCache = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle of that name.")] = False,
    as_json: args.AsJson = False,
) -> None:
    """Make a bundle from a LeRobot checkpoint.

    A bundle is everything a robot needs to run one policy, in one directory, offline. Every tensor
    is accounted for, statistics and tokenizer are found or asked for, what never reaches an action
    is left out, weights in bitsandbytes' 4-bit format are decoded, and every file gets a checksum.
    The bundle appears under its name when it is complete; memory stays small whatever the model's
    size.

    Tensors keep their dtype and are computed in float32, which equals LeRobot's float32 run. With
    --dtype bfloat16 the bundle computes in bfloat16 with float32 sums, as LeRobot runs a mixed
    checkpoint but with fewer roundings: about half the time on a CPU with bfloat16 instructions.
    docs/numerics.md has the error.

    \b
    Example:
      smolvla-edge convert \\
          outputs/train/pick_cube/checkpoints/last/pretrained_model pick_cube
      smolvla-edge convert owner/pick_cube pick_cube --revision 1f0c2ab \\
          --rename observation.images.top=observation.images.camera1
      smolvla-edge convert owner/pick_cube pick_cube_bf16 --dtype bfloat16

    \b
    What to do next:
      smolvla-edge inspect pick_cube     what it needs
      smolvla-edge run pick_cube ...     one chunk from files
    """
    from smolvla_edge.bundle_writer import write_bundle
    from smolvla_edge.checkpoint import read_checkpoint

    started = time.perf_counter()
    names = args.pairs(rename, "--rename")
    if not force and os.path.lexists(bundle):  # said before a download, not after it
        raise BundleError(f"{bundle} exists: choose another name, or pass --force to replace it")
    command = "smolvla-edge " + shlex.join(sys.argv[1:])
    with decoded(checkpoint, revision, bundle.absolute().parent) as (folder, origin):
        with output.busy(f"reading {checkpoint}"):
            source = read_checkpoint(
                folder,
                rename=names or None,
                tokenizer=tokenizer,
                stats=stats,
                allow_unnormalized=allow_unnormalized,
                revision=None if origin else revision,
            )
        source.provenance.update(origin)
        with output.progress(f"writing {bundle}") as report:
            made = write_bundle(
                source, bundle, report, dtype=dtype.value, force=force, command=command
            )
    cache = _packed_cache(bundle) if packed_cache else None
    seconds = time.perf_counter() - started
    size = sum(record.nbytes for record in made.files.values())
    dead = sum(entry.nbytes for entry in source.dead.values())
    if as_json:
        output.emit_json(
            {
                "bundle": bundle,
                "digest": made.digest,
                "compute": made.compute,
                "tensors": len(made.tensors),
                "dead_tensors": sorted(source.dead),
                "bytes": size,
                "seconds": round(seconds, 3),
                "packed_cache": cache,
                "unnormalized": list(made.contract.unnormalized),
            }
        )
    else:
        output.print_facts(
            f"bundle {bundle}",
            [
                ("digest", made.digest),
                ("computes in", made.compute),
                ("tensors", f"{len(made.tensors)} used, {output.megabytes(size)}"),
                (
                    "left out",
                    f"{len(source.dead)} that never reach an action, {output.megabytes(dead)}",
                ),
                *([("packed cache", cache)] if cache else []),
                ("time", f"{seconds:.1f} s"),
                ("next", f"smolvla-edge inspect {shlex.quote(str(bundle))}"),
            ],
        )
    for feature in made.contract.unnormalized:
        output.warn(f"{feature} is NOT normalised, as --allow-unnormalized asked")


@contextmanager
def decoded(
    checkpoint: str, revision: str | None, beside: Path
) -> Iterator[tuple[str | Path, dict[str, Any]]]:
    """The checkpoint as it is, or a copy for a while in the folder `beside` whose 4-bit weights are
    decoded, with what the provenance says of its origin then."""
    from smolvla_edge.checkpoint import locate_checkpoint
    from smolvla_edge.four_bit import decode_checkpoint, holds_four_bit

    folder, origin = locate_checkpoint(checkpoint, revision)
    if not holds_four_bit(folder):
        yield checkpoint, {}
        return
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".decoded-", dir=beside) as scratch:
        copy = Path(scratch) / "checkpoint"
        with output.busy("decoding 4-bit weights"):
            found = decode_checkpoint(folder, copy)
        yield copy, {**origin, "four_bit": found}


def _packed_cache(bundle: Path) -> str:
    """Write the new bundle's packed cache; -> what became of it."""
    from smolvla_edge.policy import load

    with output.busy("packing"), output.warnings_as_lines():
        policy = load(bundle, packed_cache=True, allow_unnormalized=True)
    return str(policy.provenance["packed_cache"])
