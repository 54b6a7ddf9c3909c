"""One episode as one HTML file: the film, plans against motion, and the time of every chunk."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.chunk import ActionChunk
from smolvla_edge.eval.episode import EpisodeResult
from smolvla_edge.eval.metaworld import CONTROL_RATE
from smolvla_edge.eval.recording import Recording

WIDTH, PANEL, LEFT, BOTTOM = 860, 110, 64, 22  # pixels
STAGES = ("preprocess", "vision", "prefix", "flow")
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #667; --line: #d8dce2; --paper: #fff;
  --plan: #d55e00; --preprocess: #9aa5b1; --vision: #5b7fa6; --prefix: #7a6aa8; --flow: #4f8f7b; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #9aa3ad; --line: #3a4048; --paper: #16191d; --plan: #f08a4b; } }
body { font: 14px/1.45 system-ui, "DejaVu Sans", sans-serif; color: var(--ink);
  background: var(--paper); margin: 24px auto; padding: 0 24px; max-width: 1320px; }
h1 { font-size: 22px; margin: 0 0 4px; } h2 { font-size: 15px; margin: 24px 0 6px; }
.top { display: flex; flex-wrap: wrap; gap: 32px; align-items: flex-start; }
.top img { width: 360px; border-radius: 8px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 8px 0; }
dt { color: var(--soft); } dd { margin: 0; }
svg { display: block; max-width: 100%; font-size: 11px; }
svg text { fill: var(--soft); } .grid { stroke: var(--line); }
.hand { fill: none; stroke: var(--ink); stroke-width: 2; }
.plan { fill: none; stroke: var(--plan); stroke-width: 1.2; opacity: .75; }
.limit { stroke: var(--plan); stroke-dasharray: 4 3; }
.preprocess { fill: var(--preprocess); } .vision { fill: var(--vision); }
.prefix { fill: var(--prefix); } .flow { fill: var(--flow); }
.key span { margin-right: 16px; } .key i { display: inline-block; width: 11px; height: 11px;
  margin-right: 5px; border-radius: 2px; vertical-align: -1px; }
footer { color: var(--soft); margin: 24px 0; max-width: 860px; }
"""


def render(
    title: str,
    facts: Mapping[str, str],
    film: Path,
    recording: Recording,
    result: EpisodeResult,
    n_action_steps: int,
) -> str:
    """The page; the film lies inside it."""
    picture = base64.b64encode(film.read_bytes()).decode()
    lines = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
    key = "".join(f'<span><i style="background:var(--{s})"></i>{s}</span>' for s in STAGES)
    chunks = [chunk for _, chunk in recording.chunks]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n"
        f'<div class="top"><img alt="film of the episode" src="data:image/gif;base64,{picture}">'
        f"<dl>{lines}</dl></div>\n"
        "<h2>Where the hand went (dark) and where each chunk wanted it to go</h2>\n"
        f"{_motion(recording)}\n"
        "<h2>Time of each chunk</h2>\n"
        f'<p class="key">{key}<span>dashed: the time that its actions last</span></p>\n'
        f"{_times(chunks, n_action_steps)}\n"
        "<footer>A plan is the sum of a chunk's displacements (1 cm a unit and step), from the "
        "hand's place when the chunk was computed. The arm is a simulated Sawyer that follows its "
        "target with a lag, so the motion trails the plan. Nothing here says how a policy does on "
        f"a real robot. {len(recording.hand) - 1} steps, "
        f"{'solved' if result.success else 'not solved'}.</footer>\n</body>\n</html>\n"
    )


def _motion(recording: Recording) -> str:
    hand = np.array(recording.hand)
    plans = [(first, recording.planned(i)) for i, (first, _) in enumerate(recording.chunks)]
    last = max([len(hand) - 1, *(first + len(plan) - 1 for first, plan in plans)])
    parts = []
    for axis, name in enumerate(("x, m", "y, m", "z, m")):
        values = np.concatenate([hand[:, axis], *(plan[:, axis] for _, plan in plans)])
        scale = _Scale(last, float(values.min()), float(values.max()), axis * (PANEL + 14))
        parts.append(scale.frame(name))
        for first, plan in plans:
            parts.append(scale.line("plan", np.arange(first, first + len(plan)), plan[:, axis]))
        parts.append(scale.line("hand", np.arange(len(hand)), hand[:, axis]))
    height = 3 * (PANEL + 14) + BOTTOM
    parts.append(_seconds(last, height))
    return _svg(height, "hand and plans over time", parts)


def _times(chunks: Sequence[ActionChunk], n_action_steps: int) -> str:
    limit = 1000 * n_action_steps / CONTROL_RATE
    top = 1.1 * max(limit, *(chunk.timings["total"] for chunk in chunks))
    scale = _Scale(len(chunks), 0.0, top, 0)
    parts = [scale.frame("ms")]
    width = (WIDTH - LEFT) / max(len(chunks), 1)
    for number, chunk in enumerate(chunks):
        level = 0.0
        for stage in STAGES:
            ms = float(chunk.timings.get(stage, 0.0))
            y = scale.y(level + ms)
            parts.append(
                f'<rect class="{stage}" x="{LEFT + number * width + 1:.1f}" y="{y:.1f}" '
                f'width="{max(width - 2, 1):.1f}" height="{scale.y(level) - y:.1f}">'
                f"<title>chunk {number}: {stage} {ms:.1f} ms</title></rect>"
            )
            level += ms
    y = scale.y(limit)
    parts.append(f'<line class="limit" x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
    return _svg(PANEL + 6, "milliseconds of each chunk", parts)


class _Scale:
    """A panel: steps across, values up."""

    def __init__(self, last: int, low: float, high: float, top: int) -> None:
        self.last, self.low, self.top = max(last, 1), low, top
        self.span = max(high - low, 1e-6)

    def x(self, step: float) -> float:
        return LEFT + step / self.last * (WIDTH - LEFT - 4)

    def y(self, value: float) -> float:
        return self.top + 4 + (1 - (value - self.low) / self.span) * (PANEL - 8)

    def line(self, kind: str, steps: NDArray[np.int_], values: NDArray[np.float32]) -> str:
        points = " ".join(
            f"{self.x(float(s)):.1f},{self.y(float(v)):.1f}"
            for s, v in zip(steps, values, strict=True)
        )
        return f'<polyline class="{kind}" points="{points}"/>'

    def frame(self, name: str) -> str:
        parts = [f'<text x="0" y="{self.top + PANEL / 2:.0f}">{escape(name)}</text>']
        for value in (self.low, self.low + self.span):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(
                f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>'
            )
        return "".join(parts)


def _seconds(last: int, height: int) -> str:
    marks = np.arange(0, last / CONTROL_RATE, 0.25)
    return "".join(
        f'<text x="{LEFT + t * CONTROL_RATE / max(last, 1) * (WIDTH - LEFT - 4):.1f}" '
        f'y="{height - 6}" text-anchor="middle">{t:g} s</text>'
        for t in marks
    )


def _svg(height: int, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img" aria-label="{label}">'
        + "".join(parts)
        + "</svg>"
    )
