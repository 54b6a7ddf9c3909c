"""`smolvla-edge profile`: where one call goes, operation by operation."""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smolvla_edge.cli import arguments as args
from smolvla_edge.cli import output
from smolvla_edge.errors import InputError

if TYPE_CHECKING:
    from smolvla_edge.policy import Policy
    from smolvla_edge.profile.measure import Profile

_SHOWN_NAMES = 16  # rows of the terminal's table; the page and --json have all


def profile(
    path: args.Source,
    cameras: Annotated[
        int | None,
        typer.Option(
            "--cameras",
            min=1,
            metavar="N",
            help="How many of the policy's cameras see something; all when not given.",
            show_default=False,
        ),
    ] = None,
    calls: Annotated[
        int, typer.Option("--calls", min=1, max=1000, metavar="K", help="Calls to record.")
    ] = 5,
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", help="cpu: operations are timed there only.")
    ] = "cpu",
    threads: args.Threads = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The HTML file to write.")
    ] = Path("profile.html"),
    rename: args.Rename = None,
    tokenizer: args.TokenizerFile = None,
    stats: args.Stats = None,
    revision: args.Revision = None,
    allow_unnormalized: args.AllowUnnormalized = False,
    as_json: args.AsJson = False,
) -> None:
    """Show where a call goes: time, GFLOP/s and share of the ceiling of every operation.

    Calls your policy K times with a made-up observation while the native engine writes down each
    operation, and takes the call of median length apart. The file is one HTML page without anything
    from the network: a timeline to zoom into (stages, operations, share of the ceiling), and tables
    by stage, by kind and by operation. Their totals add up to the wall time of that call. The
    ceiling is a loop of multiply-adds in registers, measured in the same run.

    \b
    Example:
      smolvla-edge profile my_bundle
      smolvla-edge profile my_bundle --cameras 1 --threads 1 --out one.html
      smolvla-edge profile my_bundle --json > profile.json

    \b
    On a machine that others use, more --calls find a quiet one. Recording itself costs little; how
    much is printed. Read next: docs/performance.md
    """
    target = _check_target(out)
    from smolvla_edge.policy import load
    from smolvla_edge.profile.measure import check_device, measure

    check_device(device)

    with output.busy(f"loading {path}"):
        policy = load(
            path,
            rename=args.pairs(rename, "--rename") or None,
            tokenizer=tokenizer,
            stats=stats,
            revision=revision,
            allow_unnormalized=allow_unnormalized,
            allow_missing_cameras=True,
            backend="native",
            device="cpu",
            threads=threads,
        )
    count = len(policy.contract.cameras) if cameras is None else cameras
    with output.progress("recording", unit_bytes=False) as report:
        measured = measure(policy, count, calls, report)
    _write(target, _page(policy, measured))
    if as_json:
        output.emit_json(report_json(measured, target))
    else:
        _print(measured, target)


def _check_target(out: Path) -> Path:
    """Said before the minutes of measuring. Raises InputError."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out: expected a file that ends in .html, got {str(out)!r}")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise InputError(f"--out: {out.parent} is no folder that can be written to")
    return out


def _write(target: Path, text: str) -> None:
    """Complete or not at all: a browser may have the old page open."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=target.parent, prefix=f".{target.name}.", delete=False
    ) as file:
        try:
            file.write(text)
            file.close()
            os.chmod(file.name, 0o644)
            os.replace(file.name, target)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _facts(measured: Profile) -> dict[str, str]:
    """Lines about what was measured."""
    from smolvla_edge.profile.page import threads_in_words

    provenance = measured.provenance
    threads = threads_in_words(measured.ceiling.threads)
    walls = sorted(call.duration / 1e6 for call in measured.calls)
    precision = "; ".join(
        f"{part} {' + '.join(f'{count} {dtype}' for dtype, count in counts.items())}"
        for part, counts in provenance["precision"].items()
    )
    return {
        "call": f"{measured.typical.duration / 1e6:.2f} ms, the median of {len(walls)} "
        f"({walls[0]:.2f} to {walls[-1]:.2f} ms)",
        "without recording": f"{statistics.median(measured.plain_ns) / 1e6:.2f} ms (median of as "
        f"many, in turn): recording {measured.overhead:+.1%}",
        "CPU time": f"{measured.busy:.0%} of what {threads} can use; much less than 100% means "
        "that others used the CPUs too",
        "kernels": f"{provenance['isa']}, {threads}, arithmetic of bfloat16 weights: "
        f"{provenance['compute']}",
        "weights": precision,
        "ceiling": ", ".join(
            f"{name} {rate:.0f} GFLOP/s" for name, rate in measured.ceiling.gflops.items()
        ),
        "cameras": ", ".join(provenance["cameras"]),
        "source": str(provenance["source"]),
    }


def _page(policy: Policy, measured: Profile) -> str:
    from smolvla_edge.profile.page import render

    title = f"One call of {Path(str(measured.provenance['source'])).name}"
    return render(measured.typical, measured.ceiling, title, _facts(measured))


def report_json(measured: Profile, target: Path) -> dict[str, Any]:
    """What --json prints: every table, and every operation of the call of median length."""
    from smolvla_edge.profile.summary import account, by_kind, by_name, by_stage

    call, ceiling = measured.typical, measured.ceiling
    return {
        "page": target,
        "calls_ms": [one.duration / 1e6 for one in measured.calls],
        "plain_calls_ms": [ns / 1e6 for ns in measured.plain_ns],
        "provenance": dict(measured.provenance),
        "ceiling": {
            "gflop_per_s": dict(ceiling.gflops),
            "threads": ceiling.threads,
        },
        "account": account(call).to_json(),
        "stages": [row.to_json(call.duration) for row in by_stage(call, ceiling)],
        "kinds": [row.to_json(call.duration) for row in by_kind(call, ceiling)],
        "names": [row.to_json(call.duration) for row in by_name(call, ceiling)],
        "operations": [op.to_json(call.start) for op in call.ops],
    }


def _print(measured: Profile, target: Path) -> None:
    from smolvla_edge.profile import tables
    from smolvla_edge.profile.summary import account, by_kind, by_name, by_stage, in_all

    call, ceiling = measured.typical, measured.ceiling
    wall = call.duration
    output.print_facts("profile", _facts(measured).items())
    output.print_table(
        "where the time went", tables.ACCOUNT_COLUMNS, tables.account_rows(account(call))
    )
    output.print_table(
        "by stage", tables.STAGE_COLUMNS, tables.stage_rows(by_stage(call, ceiling), wall)
    )
    kinds = tables.kind_rows(by_kind(call, ceiling), wall)
    kinds.append(tables.total_row(in_all(call, ceiling), wall))
    output.print_table("by kind of operation", tables.KIND_COLUMNS, kinds)
    names = tables.name_rows(by_name(call, ceiling), wall)
    shown = f" (the longest {_SHOWN_NAMES} of {len(names)})" if len(names) > _SHOWN_NAMES else ""
    output.print_table(f"by operation{shown}", tables.NAME_COLUMNS, names[:_SHOWN_NAMES])
    output.say(f"the timeline is in {target}")
