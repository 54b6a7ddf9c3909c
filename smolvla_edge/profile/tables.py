"""Rows of the tables as text, for the terminal and for the page alike."""

from __future__ import annotations

from collections.abc import Sequence

from smolvla_edge.profile.summary import Account, Row, StageRow

# (heading, alignment), as output.print_table takes them.
Columns = Sequence[tuple[str, str]]

_NUMBERS = (
    ("calls", "right"),
    ("ms", "right"),
    ("of call", "right"),
    ("GFLOP/s", "right"),
    ("of ceiling", "right"),
    ("GB/s", "right"),
)
KIND_COLUMNS: Columns = (("operation", "left"), *_NUMBERS)
NAME_COLUMNS: Columns = (("name", "left"), ("shape", "left"), *_NUMBERS)
STAGE_COLUMNS: Columns = (
    ("stage", "left"),
    ("ops", "right"),
    ("ms", "right"),
    ("of call", "right"),
    ("between ops, ms", "right"),
    ("GFLOP/s", "right"),
    ("of ceiling", "right"),
)
ACCOUNT_COLUMNS: Columns = (("time", "left"), ("ms", "right"), ("of call", "right"))


def kind_rows(rows: Sequence[Row], wall: int) -> list[list[str]]:
    return [[row.name, *_numbers(row, wall)] for row in rows]


def name_rows(rows: Sequence[Row], wall: int) -> list[list[str]]:
    return [[row.name, row.shape, *_numbers(row, wall)] for row in rows]


def stage_rows(rows: Sequence[StageRow], wall: int) -> list[list[str]]:
    return [
        [
            row.operations.name,
            str(row.operations.calls),
            _ms(row.ns),
            _percent(row.ns / wall),
            _ms(row.between),
            _number(row.operations.gflops),
            _share(row.operations.share),
        ]
        for row in rows
    ]


def total_row(row: Row, wall: int) -> list[str]:
    """The last row of both tables, but for the shape of one."""
    return [row.name, *_numbers(row, wall)]


def account_rows(a: Account) -> list[list[str]]:
    """The parts of the wall time and their sum."""
    parts = (
        ("operations", a.operations),
        ("between operations of a stage", a.between),
        ("engine, outside of stages", a.engine),
        ("Python, before and after the engine", a.python),
        ("wall time of the call", a.wall),
    )
    return [[name, _ms(ns), _percent(ns / a.wall)] for name, ns in parts]


def _numbers(row: Row, wall: int) -> list[str]:
    return [
        str(row.calls),
        _ms(row.ns),
        _percent(row.ns / wall),
        _number(row.gflops),
        _share(row.share),
        _number(row.gbytes),
    ]


def _ms(ns: int) -> str:
    return f"{ns / 1e6:.3f}"


def _percent(part: float) -> str:
    return f"{part:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
