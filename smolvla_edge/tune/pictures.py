"""The pictures of a search, as SVG elements. Needs matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smolvla_edge.compress.skip import Influence
from smolvla_edge.plan import PARTS
from smolvla_edge.plot import COLOURS, require_matplotlib
from smolvla_edge.tune.front import measured_front
from smolvla_edge.tune.heat_map import svg
from smolvla_edge.tune.tuning import Tuned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEAST = 1e-5  # what an error of zero is drawn at
_PARTS = {"vision": "vision encoder", "vlm": "language model", "expert": "action expert"}


def pareto(found: Tuned) -> str:
    """Measured time against held-out error: every finalist by its row in the table, the front as a
    line, the budget as lines, the choice in a ring."""
    require_matplotlib()
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 5.2), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    points = [
        (one.latency.median_ms, max(one.held_out.rms_of_range, _LEAST)) for one in found.finalists
    ]
    front = [points[i] for i in measured_front(found.finalists)]
    axes.step(*zip(*front, strict=True), where="post", color="#999999", linewidth=1.0, zorder=1)
    several = len(found.sources) > 1
    for number, path in enumerate(found.request.bundles):
        mine = [points[i] for i, one in enumerate(found.finalists)
                if one.candidate.source == number]  # fmt: skip
        axes.plot(*zip(*mine, strict=True), "o", color=COLOURS[number % len(COLOURS)],
                  markersize=6, label=path if several else None)  # fmt: skip
    for row, (number, at) in enumerate(rows(found, points), start=1):
        axes.annotate(str(row), at, xytext=(5, 4 if row % 2 else -11), textcoords="offset points",
                      fontsize=8)  # fmt: skip
        if number == found.choice.number:
            axes.plot(*at, "o", markersize=13, markerfacecolor="none", markeredgewidth=1.6,
                      markeredgecolor=COLOURS[1],
                      label="chosen" if found.choice.fits else "nearest to the budget")  # fmt: skip
    _budget(axes, found)
    _log_percent(axes)
    axes.set_xlim(left=0)
    axes.margins(y=0.08)
    axes.set_xlabel("median of a call, ms (numbers: rows of the table)")
    axes.set_ylabel("error of the actions on held-out frames, rms of their range")
    _tidy(axes)
    axes.legend(frameon=False, fontsize=8.5)
    return svg(figure)


def rows(found: Tuned, points: list[tuple[float, float]]) -> list[tuple[int, tuple[float, float]]]:
    """(finalist, its point), fastest first: the rows of the table."""
    return sorted(enumerate(points), key=lambda item: found.finalists[item[0]].latency.median_ms)


def layers(influence: Influence) -> str:
    """What leaving out each layer alone adds to the actions' error."""
    require_matplotlib()
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9.5, 3.0), layout="constrained")
    FigureCanvasSVG(figure)
    panels = figure.subplots(1, len(PARTS), sharey=True)
    for part, axes in zip(PARTS, panels, strict=True):
        measured = influence.parts[part]
        # Points: on a scale of powers a bar's length would mean nothing.
        axes.plot(
            [one.layer for one in measured],
            [max(one.action_error, _LEAST) for one in measured],
            "o", color=COLOURS[0],
        )  # fmt: skip
        axes.set_title(_PARTS[part], fontsize=10, loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _log_percent(axes)
        _tidy(axes)
    panels[0].set_ylabel("rms of the actions' range")
    figure.supxlabel("layer left out", fontsize=10)
    return svg(figure)


def _budget(axes: Axes, found: Tuned) -> None:
    budget = found.request.budget
    if budget.action_error is not None:
        axes.axhline(budget.action_error, color=COLOURS[2], linewidth=1.2, linestyle="--",
                     label=f"budget: error {100 * budget.action_error:.3g} %")  # fmt: skip
    if budget.latency_ms is not None:
        axes.axvline(budget.latency_ms, color=COLOURS[3], linewidth=1.2, linestyle="--",
                     label=f"budget: {budget.latency_ms:g} ms (90th percentile)")  # fmt: skip


def _log_percent(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    percent = FuncFormatter(lambda y, _: f"≤ {100 * y:g} %" if y <= _LEAST else f"{100 * y:g} %")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(percent)
    axes.yaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_ylim()
    if high < 100 * low:  # powers of ten alone would name one line or two
        axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
        axes.yaxis.set_minor_formatter(percent)


def _tidy(axes: Axes) -> None:
    axes.grid(True, color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
