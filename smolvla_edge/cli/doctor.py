"""`smolvla-edge doctor`: will a policy run well on this machine, and what stands in its way?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.text import Text

from smolvla_edge.cli import arguments as args
from smolvla_edge.cli import output
from smolvla_edge.doctor.finding import FAIL, PASS, WARN, Finding, counts
from smolvla_edge.version import __version__

_STYLES = {PASS: "green", WARN: "yellow", FAIL: "bold red"}


def doctor(
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="[CHECKPOINT|BUNDLE]",
            help="A policy to look at too: its files, tokenizer, statistics, memory.",
            show_default=False,
        ),
    ] = None,
    threads: args.Threads = None,
    rename: args.Rename = None,
    tokenizer: args.TokenizerFile = None,
    stats: args.Stats = None,
    revision: args.Revision = None,
    allow_unnormalized: args.AllowUnnormalized = False,
    as_json: args.AsJson = False,
) -> None:
    """Examine this machine, and a policy if one is named.

    Looks at the CPU and the kernels chosen for it, threads against affinity and container quota,
    memory against what the model needs, swap, clocks, GPU and driver, disk, Python and packages;
    of a policy: structure, checksums, statistics, tokenizer, presets. Then it runs a tiny policy on
    every backend that is installed and compares the actions: native kernels of every instruction
    set must agree in every byte, torch within 2e-5.

    \b
    Every line is one of
      pass    nothing to do
      warn    it works, but slower or with a risk: the line after it says what to do
      fail    it does not work: the line after it says what to do

    \b
    Example:
      smolvla-edge doctor
      smolvla-edge doctor my_bundle
      smolvla-edge doctor --json > doctor.json     to send with a report

    \b
    Exit code 0, or 1 when a line fails. Nothing is changed or sent; nothing is downloaded
    but a policy that is named by its Hub id.
    Read next: smolvla-edge inspect --help, docs/limits.md
    """
    from smolvla_edge.doctor import examine

    findings = examine(
        path,
        asked_threads=threads,
        options={
            "rename": args.pairs(rename, "--rename") or None,
            "tokenizer": tokenizer,
            "stats": stats,
            "revision": revision,
            "allow_unnormalized": allow_unnormalized,
        },
        busy=_busy,
    )
    if as_json:
        output.emit_json(report_json(findings))
    else:
        _print(findings)
    if counts(findings)[FAIL]:
        raise typer.Exit(output.FAILED)


def report_json(findings: Sequence[Finding]) -> dict[str, object]:
    """What --json prints."""
    return {
        "smolvla_edge": __version__,
        "passed": counts(findings)[FAIL] == 0,
        "counts": counts(findings),
        "findings": [finding.to_json() for finding in findings],
    }


@contextmanager
def _busy(what: str) -> Iterator[output.Report]:
    with output.progress(_printable(what), unit_bytes=False) as report:
        yield report


def _print(findings: Sequence[Finding]) -> None:
    for section in dict.fromkeys(finding.section for finding in findings):
        lines = [finding for finding in findings if finding.section == section]
        output.print_table(
            section,
            [("", "left"), ("", "left"), ("", "left")],
            (_row(finding) for finding in lines),
        )
    found = counts(findings)
    output.say(", ".join(f"{found[status]} {status}" for status in found), style="bold")


def _row(finding: Finding) -> tuple[Text, str, Text]:
    style = _STYLES[finding.status]
    words = Text(_printable(finding.message))
    if finding.remedy:
        words.append(f"\n-> {_printable(finding.remedy)}", style=style)
    return Text(finding.status, style=style), finding.check, words


def _printable(text: str) -> str:
    """A path may hold bytes that are no text."""
    return text.encode("utf-8", "replace").decode("utf-8")
