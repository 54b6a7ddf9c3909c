"""One call as one HTML file: style, script and drawing inside, nothing from anywhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files

from smolvla_edge.profile import tables, timeline
from smolvla_edge.profile.records import GROUPS, Call
from smolvla_edge.profile.summary import Ceiling, account, by_kind, by_name, by_stage, in_all


def render(call: Call, ceiling: Ceiling, title: str, facts: Mapping[str, str]) -> str:
    """The page. `facts` are lines about what was measured: {"kernels": "avx512", ...}."""
    wall = call.duration
    total = tables.total_row(in_all(call, ceiling), wall)
    kinds = [*tables.kind_rows(by_kind(call, ceiling), wall), total]
    names = [*tables.name_rows(by_name(call, ceiling), wall), [total[0], "", *total[1:]]]
    stages = tables.stage_rows(by_stage(call, ceiling), wall)
    parts = tables.account_rows(account(call))
    body = "\n".join(
        (
            f"<h1>{escape(title)}</h1>",
            _facts(facts),
            "<h2>Timeline</h2>",
            _timeline(call, ceiling),
            '<div class="columns"><div>',
            _table("Where the time went", tables.ACCOUNT_COLUMNS, parts, total=True),
            _table("By stage", tables.STAGE_COLUMNS, stages),
            "</div>",
            _table("By kind of operation", tables.KIND_COLUMNS, kinds, total=True),
            "</div>",
            _table("By operation, over layers and steps", tables.NAME_COLUMNS, names, total=True),
            _notes(ceiling),
        )
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_asset('style.css')}</style>\n</head>\n<body>\n"
        f"{body}\n<script>\n{_asset('script.js')}</script>\n</body>\n</html>\n"
    )


def _asset(name: str) -> str:
    return (files("smolvla_edge.profile") / name).read_text(encoding="utf-8")


def _facts(facts: Mapping[str, str]) -> str:
    lines = (f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return f'<dl class="facts">{"".join(lines)}</dl>'


def _timeline(call: Call, ceiling: Ceiling) -> str:
    names = [
        f'<div style="top:{timeline.lane_top(i)}px;line-height:{timeline.LANE}px">{escape(n)}</div>'
        for i, n in enumerate(timeline.LANES)
    ]
    for share, words in ((1.0, "100 % of ceiling"), (0.5, "50 %"), (0.0, "0")):
        top = timeline.chart_y(share) - 8
        names.append(f'<div style="top:{top:.0f}px;line-height:16px">{words}</div>')
    key = "".join(
        f'<span><i class="{timeline.color_class(group)}"></i>{escape(group)}</span>'
        for group in GROUPS
    )
    return (
        '<div class="tools"><button id="in">zoom in</button><button id="out">zoom out</button>'
        '<button id="fit">whole call</button><span class="hint">Ctrl and wheel zoom, drag moves, '
        f'a pointer over a bar tells what it is</span><span class="key">{key}</span></div>\n'
        f'<div class="frame"><div class="names" style="height:{timeline.height()}px">'
        f'{"".join(names)}</div><div id="scroll">\n{timeline.draw(call, ceiling)}\n</div></div>\n'
        '<div id="tip" hidden></div>'
    )


def _table(
    title: str, columns: tables.Columns, rows: Sequence[Sequence[str]], total: bool = False
) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="{align}"{_bar(tag, heading, text)}>{escape(text)}</{tag}>'
            for text, (heading, align) in zip(row, columns, strict=True)
        )

    head = cells("th", [heading for heading, _ in columns])
    lines = [f"<tr>{cells('td', row)}</tr>" for row in rows]
    if total and lines:
        lines[-1] = lines[-1].replace("<tr>", '<tr class="total">', 1)
    return (
        f'<section><h2>{escape(title)}</h2><div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>\n" + "\n".join(lines) + "\n</tbody></table></div></section>"
    )


def threads_in_words(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def _bar(tag: str, heading: str, text: str) -> str:
    """The style that draws a part of the call as a bar behind its number."""
    return f' style="--part: {text}"' if tag == "td" and heading == "of call" else ""


def _notes(ceiling: Ceiling) -> str:
    rates = ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in ceiling.gflops.items())
    notes = (
        "Ceiling: a loop of multiply-adds in registers in the same process, the best of short "
        f"moments before and after the calls, {threads_in_words(ceiling.threads)}: {rates}. "
        "Over 100 % the clock was higher during the call, or others left no quiet moment.",
        "GFLOP/s count what reaches the result, a multiply and an add as two. GB/s are the least "
        "traffic: each operand once, from wherever it lay.",
        "Starting threads, and waiting for the slowest of them, is inside the operations; "
        "'between operations' is the code that calls them.",
        "A norm, an attention and the like carry the name of the layer around them.",
    )
    return "<footer>" + "".join(f"<p>{escape(note)}</p>" for note in notes) + "</footer>"
