"""An evaluation as one HTML file: rates with intervals, lengths, latency, films of episodes."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from smolvla_edge.eval.episode import EpisodeResult

WIDTH, ROW, LEFT, RIGHT = 900, 34, 130, 250  # pixels
APART = 15  # two sides of a row
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #667; --line: #d8dce2; --paper: #fff;
  --side0: #0072b2; --side1: #d55e00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #9aa3ad; --line: #3a4048; --paper: #16191d;
    --side0: #4aa3df; --side1: #f08a4b; } }
body { font: 14px/1.45 system-ui, "DejaVu Sans", sans-serif; color: var(--ink);
  background: var(--paper); margin: 24px auto; padding: 0 24px; max-width: 1100px; }
h1 { font-size: 22px; margin: 0 0 8px; } h2 { font-size: 15px; margin: 28px 0 8px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
svg { display: block; max-width: 100%; font-size: 12px; } svg text { fill: var(--ink); }
svg .soft { fill: var(--soft); } .grid { stroke: var(--line); }
.s0 { stroke: var(--side0); fill: var(--side0); } .s1 { stroke: var(--side1); fill: var(--side1); }
.hollow { fill: none; } .b0 { color: var(--side0); } .b1 { color: var(--side1); }
.films { display: flex; flex-wrap: wrap; gap: 16px; } figure { margin: 0; width: 240px; }
figure img { width: 240px; border-radius: 6px; } figcaption { color: var(--soft); }
footer { color: var(--soft); margin: 28px 0; max-width: 860px; }
"""


def render(
    result: Mapping[str, Any],
    played: Sequence[Sequence[EpisodeResult]],
    films: Sequence[tuple[str, bytes]],
) -> str:
    """The page. `films` are (caption, GIF)."""
    sides = result["sides"]
    title = "smolvla-edge eval: " + " against ".join(_name(side) for side in sides)
    parts = [
        f"<h1>{escape(title)}</h1>",
        _facts(result),
        "<h2>Solved episodes, with 95 % intervals (Wilson)</h2>",
        _rates(sides),
        _comparison(result["comparison"]),
        "<h2>Steps to success: each mark an episode, hollow at the limit when not solved</h2>",
        _lengths(played, result["setting"]["step_limit"]),
        "<h2>Time of a chunk</h2>",
        _latency(sides),
    ]
    if films:
        parts += ["<h2>Episodes</h2>", f'<div class="films">{"".join(map(_film, films))}</div>']
    parts.append(
        "<footer>Every rate is of a simulator with fast rendering and fixed tasks. It ranks "
        "settings of one policy; it says nothing about another policy, another robot or the real "
        "world. Pairs are the same initial state and the same noise under both settings.</footer>"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def processes(count: int) -> str:
    return f"{count} process{'' if count == 1 else 'es'}"


def jumps(seam: float | None, inner: float | None) -> str:
    """Where there is no such jump (one action a chunk has no inside), "none"."""
    where = {"where chunks meet": seam, "inside": inner}
    return ", ".join(f"{'none' if x is None else x} {name}" for name, x in where.items())


def resolvable(pairs: Mapping[str, Any]) -> str:
    found = pairs["resolvable"]
    if found is None:
        return f"no difference: {pairs['pairs']} pairs are too few"
    return f"a difference of {found:.1%} (80 % power)"


def _name(side: Mapping[str, Any]) -> str:
    words = [str(side["plan"]), f"{side['n_action_steps']} of {side['horizon']} actions"]
    words += ["blank picture"] if side["blank"] else []
    words += [f"told {side['instruction']}"] if side["instruction"] else []
    return ", ".join(words)


def _facts(result: Mapping[str, Any]) -> str:
    first = result["sides"][0]
    setting = result["setting"]
    facts = [
        *((f'<b class="b{i}">side {i + 1}</b>', f"{side['policy']}: {_name(side)}, "
           f"{side['steps']} denoise steps") for i, side in enumerate(result["sides"])),
        ("environment", f"{result['environment']}, pictures {setting['width']}x"
                        f"{setting['height']}, at most {setting['step_limit']} steps"),
        ("initial states", f"seeds {result['seeds'][0]} to {result['seeds'][1]} of each task"),
        ("computed by", f"the Ray cluster at {result['cluster']}" if result["cluster"] else
                        " ".join(str(first["provenance"].get(k, "")) for k in
                                 ("backend", "isa", "compute"))),
        ("time", f"{' + '.join(map(str, result['seconds']))} s, {processes(result['workers'])}"),
        ("command", result["command"]),
    ]  # fmt: skip
    lines = (
        f"<dt>{name if name.startswith('<b') else escape(name)}</dt><dd>{escape(value)}</dd>"
        for name, value in facts
    )
    return f"<dl>{''.join(lines)}</dl>"


def _rates(sides: Sequence[Mapping[str, Any]]) -> str:
    tasks = [*sides[0]["tasks"], "mean"]
    height = ROW * len(tasks) + 24

    def x(rate: float) -> float:
        return LEFT + rate * (WIDTH - LEFT - RIGHT)

    parts = []
    for mark in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<line class="grid" x1="{x(mark):.0f}" x2="{x(mark):.0f}" y1="0" '
                     f'y2="{height - 20}"/><text class="soft" x="{x(mark):.0f}" '
                     f'y="{height - 6}" text-anchor="middle">{mark:.0%}</text>')  # fmt: skip
    for number, task in enumerate(tasks):
        middle = ROW * number + ROW / 2
        bold = ' font-weight="600"' if task == "mean" else ""
        parts.append(f'<text x="0" y="{middle + 4:.0f}"{bold}>{escape(task)}</text>')
        for i, side in enumerate(sides):
            row = side["all"] if task == "mean" else side["tasks"][task]
            y = middle + (i - (len(sides) - 1) / 2) * APART
            parts.append(
                f'<line class="s{i}" stroke-width="2" x1="{x(row["low"]):.1f}" '
                f'x2="{x(row["high"]):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<circle class="s{i}" cx="{x(row["rate"]):.1f}" cy="{y:.1f}" r="4"/>'
                f'<text x="{WIDTH - RIGHT + 12}" y="{y + 4:.1f}"{bold}>{row["rate"]:.1%} '
                f"({row['low']:.0%} to {row['high']:.0%}), {row['successes']} of {row['n']}</text>"
            )
    return _svg(height, "success rates", parts)


def _comparison(pairs: Mapping[str, Any] | None) -> str:
    if pairs is None:
        return ""
    words = (
        f"Second less first: {pairs['difference']:+.1%}, 95 % interval {pairs['low']:+.1%} to "
        f"{pairs['high']:+.1%} (bootstrap over pairs within tasks, at least the score interval). "
        f"Of {pairs['pairs']} pairs both solved {pairs['both']}, only the first "
        f"{pairs['only_first']}, only the second {pairs['only_second']}, neither "
        f"{pairs['neither']}; McNemar's exact p = {pairs['p_value']:.3g}. So many pairs could have "
        f"shown {resolvable(pairs)}."
    )
    return f"<h2>The difference</h2><p>{escape(words)}</p>"


def _lengths(played: Sequence[Sequence[EpisodeResult]], limit: int) -> str:
    tasks = list(dict.fromkeys(result.task for result in played[0]))
    height = ROW * len(tasks) + 24

    def x(step: float) -> float:
        return LEFT + step / limit * (WIDTH - LEFT - 20)

    parts = []
    for step in range(0, limit + 1, 50):
        parts.append(f'<line class="grid" x1="{x(step):.0f}" x2="{x(step):.0f}" y1="0" '
                     f'y2="{height - 20}"/><text class="soft" x="{x(step):.0f}" '
                     f'y="{height - 6}" text-anchor="middle">{step}</text>')  # fmt: skip
    for number, task in enumerate(tasks):
        middle = ROW * number + ROW / 2
        parts.append(f'<text x="0" y="{middle + 4:.0f}">{escape(task)}</text>')
        for i, results in enumerate(played):
            y = middle + (i - (len(played) - 1) / 2) * APART
            parts += [
                f'<circle class="s{i}{"" if r.success else " hollow"}" opacity=".55" '
                f'cx="{x(r.steps):.1f}" cy="{y:.1f}" r="3"><title>seed {r.seed}: {r.steps} steps'
                "</title></circle>"
                for r in results
                if r.task == task
            ]
    return _svg(height, "steps to success", parts)


def _latency(sides: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for number, side in enumerate(sides):
        lasts = 1000 * side["n_action_steps"] / side["control_rate"]
        numbers = ", ".join(f"{name} {ms} ms" for name, ms in side["latency_ms"].items())
        lines.append(
            f'<p><b class="b{number}">side {number + 1}</b>: {numbers} of {side["chunks"]} chunks, '
            f"one thread beside the other processes. The actions of a chunk last {lasts:.0f} ms "
            f"at {side['control_rate']:.0f} Hz. Mean jump between actions: "
            f"{jumps(side['seam_jump'], side['inner_jump'])}.</p>"
        )
    return "".join(lines)


def _film(film: tuple[str, bytes]) -> str:
    caption, gif = film
    data = base64.b64encode(gif).decode()
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/gif;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _svg(height: int, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img" aria-label="{label}">'
        + "".join(parts)
        + "</svg>"
    )
