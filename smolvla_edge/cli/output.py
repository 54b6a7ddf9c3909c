"""What a person or a program sees: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

FAILED = 1
REFUSED = 2
BUG = 70
CLOSED_PIPE = 141  # as a shell reports a program that SIGPIPE ended

STAGES = ("preprocess", "vision", "prefix", "flow", "total")
_SHOWN_STEPS = 6
_PIPE_WIDTH = 120  # columns when nobody's terminal decides
_BAR_WIDTH = 44  # what a progress bar needs beside its words
_FLOAT_DIGITS = 9  # enough to give every float32 back exactly

# done, in all, and for some the name of what is being done
Report = Callable[..., None]


def _console(stderr: bool = False) -> Console:
    """A console on the stream of this moment (tests and callers may replace sys.stdout)."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def error(message: str) -> None:
    _console(stderr=True).print(Text(f"error: {message}", style="red"), soft_wrap=True)


def warn(message: str) -> None:
    _console(stderr=True).print(Text(message, style="yellow"), soft_wrap=True)


def note(message: str) -> None:
    """A line about what is happening. On stderr."""
    _console(stderr=True).print(Text(message, style="dim"), soft_wrap=True)


def say(message: str = "", style: str = "") -> None:
    """A line of the result. On stdout."""
    _console().print(Text(message, style=style), soft_wrap=True)


def emit_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout; arrays become lists, float32 keep exactly their value."""
    sys.stdout.write(json.dumps(value, indent=2, default=_plain, allow_nan=False) + "\n")
    sys.stdout.flush()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """The same object in a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=2, default=_plain, allow_nan=False) + "\n"
    path.write_text(text, encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype == np.float32:
            return json_floats(value)
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def json_floats(values: np.ndarray) -> Any:
    """A float32 array as nested lists of the shortest decimals that give the same float32 back."""
    if values.ndim == 0:
        return float(f"{values.item():.{_FLOAT_DIGITS}g}")
    return [json_floats(np.asarray(row)) for row in values]


def print_table(
    title: str, columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[object]]
) -> None:
    """`columns` are (heading, "left" or "right")."""
    table = Table(box=None, pad_edge=False, show_header=any(heading for heading, _ in columns))
    for heading, justify in columns:
        right = justify == "right"
        table.add_column(
            heading,
            justify="right" if right else "left",
            header_style="dim",
            no_wrap=right,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    _print_block(title, table)


def print_facts(title: str, facts: Iterable[tuple[str, object]]) -> None:
    """A table of two columns without headings."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(Text(name), Text(str(value)))
    _print_block(title, table)


def _print_block(title: str, table: Table) -> None:
    """A title, a table and an empty line, off a terminal without blanks that fill lines."""
    say(title, style="bold")  # not the table's own, which a narrow table would wrap
    console = _console()
    if console.is_terminal:
        console.print(table)
        console.print()
        return
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    console.file.write("\n".join(lines) + "\n\n")


def print_actions(actions: np.ndarray, unit: str) -> None:
    """The first steps of a chunk, float [horizon, dimensions]: a row a dimension fits any robot."""
    names = [f"action {dim}" for dim in range(actions.shape[1])]
    rows = [_numbers(row) for row in actions[:_SHOWN_STEPS].T]
    # As many steps as fit whole: a cropped number would be another number.
    left = _console().width - max(map(len, ("dimension", *names)))
    shown = 0
    for step, cells in enumerate(zip(*rows, strict=True)):
        left -= 2 + max(map(len, (f"step {step}", *cells)))
        if left < 0 and shown:
            break
        shown += 1
    print_table(
        f"actions in {unit}, steps 0 to {shown - 1} of {len(actions)}",
        [("dimension", "left"), *((f"step {i}", "right") for i in range(shown))],
        ((name, *row[:shown]) for name, row in zip(names, rows, strict=True)),
    )


def _numbers(values: np.ndarray) -> list[str]:
    """One dimension's values with digits that suit the largest, so that it never reads as zero."""
    largest = float(np.abs(values).max(initial=0.0))
    power = math.floor(math.log10(largest)) if largest > 0 and math.isfinite(largest) else 0
    if -4 <= power < 6:
        form = f".{4 if -1 <= power < 3 else 6 if power < 0 else 2}f"
    else:
        form = ".3e"
    return [f"{value:{form}}" for value in values]


def print_timings(columns: Mapping[str, Mapping[str, float]]) -> None:
    """Stage times in milliseconds, a column for each of `columns`."""
    first = next(iter(columns.values()))
    stages = [stage for stage in STAGES if stage in first]
    print_table(
        "time in milliseconds",
        [("stage", "left"), *((name, "right") for name in columns)],
        ((stage, *(f"{times[stage]:.1f}" for times in columns.values())) for stage in stages),
    )


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """What the package warns of, as lines for a person."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        warn(f"warning: {warning.message}")


@contextmanager
def progress(what: str, unit_bytes: bool = True) -> Iterator[Report]:
    """A bar for something long, to be called with (done, in all); plain words off a terminal."""
    console = _console(stderr=True)
    if not console.is_terminal:
        note(f"{what} ...")
        yield lambda done, total, *_: None
        return
    what = _shortened(what, console)
    amount = DownloadColumn() if unit_bytes else TaskProgressColumn()
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        amount,
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task(what, total=None)

        def report(done: int, total: int, *_: Any) -> None:
            bar.update(task, completed=done, total=total)

        yield report


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """Bars of several stages, one after the other, to be called with (stage, done, in all)."""
    with ExitStack() as bar:
        stage, show = "", None

        def report(what: str, done: int, total: int) -> None:
            nonlocal stage, show
            if show is None or what != stage:
                bar.close()
                stage, show = what, bar.enter_context(progress(what, unit_bytes=False))
            show(done, total)

        yield report


@contextmanager
def busy(what: str) -> Iterator[None]:
    """A spinner with the time, for work that cannot say how far it is."""
    console = _console(stderr=True)
    if not console.is_terminal:
        note(f"{what} ...")
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as spinner:
        spinner.add_task(_shortened(what, console), total=None)
        yield


def _shortened(what: str, console: Console) -> str:
    """Words that leave room for a bar; of a long path the end is kept."""
    room = max(console.width - _BAR_WIDTH, 20)
    return what if len(what) <= room else f"{what[:12]}…{what[len(what) - room + 13 :]}"


def megabytes(nbytes: float) -> str:
    return f"{nbytes / 1e6:.1f} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:.1f} kB"
