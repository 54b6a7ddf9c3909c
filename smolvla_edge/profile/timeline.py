"""The lanes of one call as SVG: stages, operations by group, and the share of the ceiling.

Horizontal places are percentages of the call, so that the page zooms by making the drawing wider
and no text is stretched. Time is to scale: a short operation is a thin line until one zooms in.
"""

from __future__ import annotations

from html import escape

from smolvla_edge.profile.records import GROUPS, Call, Op, Stage
from smolvla_edge.profile.summary import Ceiling, share_of_ceiling

LANE, GAP, CHART, AXIS, PAD = 26, 6, 90, 20, 8  # pixels
LANES = ("stage", *GROUPS)
_MOST = 1.05  # of the ceiling, drawn: a clock that rose during the call passes 1


def color_class(group: str) -> str:
    """The name of a group or a stage kind as a CSS class."""
    return "c-" + "".join(c if c.isalnum() else "-" for c in group.lower())


def lane_top(lane: int) -> int:
    return AXIS + lane * (LANE + GAP)


def chart_top() -> int:
    return lane_top(len(LANES))


def height() -> int:
    return chart_top() + CHART + PAD


def draw(call: Call, ceiling: Ceiling) -> str:
    """The SVG element. Each stage and operation is a group whose <title> holds its facts."""
    place = _Scale(call)
    lines = [
        f'<svg id="timeline" height="{height()}" data-ms="{call.duration / 1e6:.6f}" role="img" '
        'aria-label="timeline of one call">',
        *(
            f'<rect class="lane" x="0" y="{lane_top(i)}" width="100%" height="{LANE}"/>'
            for i in range(len(LANES))
        ),
        *(_level(share) for share in (0.0, 0.5, 1.0)),
        '<g id="axis"></g>',
        *(_stage(stage, place) for stage in call.stages),
        *(_operation(op, place, ceiling) for op in call.ops),
        "</svg>",
    ]
    return "\n".join(lines)


class _Scale:
    """Nanoseconds to percentages of the call."""

    def __init__(self, call: Call) -> None:
        self._start = call.start
        self._percent = 100 / max(call.duration, 1)

    def x(self, start: int, end: int) -> str:
        left = (start - self._start) * self._percent
        return f'x="{left:.5f}%" width="{(end - start) * self._percent:.5f}%"'


def chart_y(share: float) -> float:
    """The height in the drawing at which a share of the ceiling stands."""
    return chart_top() + CHART * (1 - min(share, _MOST) / _MOST)


def _level(share: float) -> str:
    y = f"{chart_y(share):.1f}"
    return f'<line class="level" x1="0" x2="100%" y1="{y}" y2="{y}"/>'


def _stage(stage: Stage, place: _Scale) -> str:
    at = f'{place.x(stage.start, stage.end)} y="{lane_top(0)}" height="{LANE}"'
    between = stage.between / 1e6
    words = (
        f"{stage.name}\n{stage.duration / 1e6:.3f} ms\n{len(stage.ops)} operations, {between:.3f} "
        "ms between them"
    )
    label = str(stage.index) if stage.kind == "step" else stage.name
    # An inner svg cuts a label that is wider than its stage.
    return (
        f'<g class="{color_class(stage.kind)}"><title>{escape(words)}</title><rect {at}/>'
        f'<svg {at}><text x="4" y="{LANE - 8}">{escape(label)}</text></svg></g>'
    )


def _operation(op: Op, place: _Scale, ceiling: Ceiling) -> str:
    share = share_of_ceiling([op], ceiling)
    x = place.x(op.start, op.end)
    top = lane_top(1 + list(GROUPS).index(op.group))
    bars = f'<rect {x} y="{top}" height="{LANE}"/>'
    if share is not None:
        y = chart_y(share)
        bars += f'<rect {x} y="{y:.1f}" height="{chart_y(0) - y:.1f}"/>'
    words = escape(describe(op, share))
    return f'<g class="{color_class(op.group)}"><title>{words}</title>{bars}</g>'


def describe(op: Op, share: float | None) -> str:
    """What a pointer over an operation shows."""
    lines = [op.name, f"{op.kind}, {op.shape}", f"{op.duration / 1e6:.4f} ms"]
    if op.flops and op.duration:
        of = "" if share is None else f", {share:.0%} of the {op.compute} ceiling"
        lines.append(f"{op.flops / op.duration:.1f} GFLOP/s{of}")
    if op.nbytes and op.duration:
        lines.append(f"{op.nbytes / op.duration:.1f} GB/s")
    return "\n".join(lines)
