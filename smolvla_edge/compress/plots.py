"""Pictures of what quantising costs. Needs matplotlib (extra `viz`)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smolvla_edge.compress.sensitivity import GroupError
from smolvla_edge.plot import COLOURS, check_plot_path, require_matplotlib, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PARTS = ("vision", "text", "expert")
_PART_NAMES = {"vision": "vision encoder", "text": "language prefix", "expert": "action expert"}
_LEAST = 1e-7  # what an error of zero is drawn at


@dataclass(frozen=True)
class SizePoint:
    """A bundle in the error-against-size picture: its recipe, its bytes, the rms error of its
    actions as a share of their range, and whether it was fitted."""

    name: str
    bytes: int
    rms_of_range: float
    fitted: bool = False


def plot_sensitivity(
    costs: Sequence[GroupError], path: str | os.PathLike[str], title: str = ""
) -> Path:
    """Each layer's cost alone, a line for each kind of matrix, a panel for each part; -> `path`.

    Raises InputError for the path, MissingExtraError without matplotlib.
    """
    path = check_plot_path(path)
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(PARTS), sharey=True)
    for part, axes in zip(PARTS, panels, strict=True):
        _draw_part(axes, [cost for cost in costs if cost.group.startswith(part + ".")])
        axes.set_title(_PART_NAMES[part], fontsize=10, loc="left")
    panels[0].set_ylabel("rms of the actions' range")
    figure.supxlabel("layer", fontsize=10)
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    save_figure(figure, path)
    return path


def _draw_part(axes: Axes, costs: Sequence[GroupError]) -> None:
    from matplotlib.ticker import MaxNLocator

    lines: dict[str, list[tuple[int, float]]] = {}
    for cost in costs:
        found = re.fullmatch(r"\w+\.layers\.(\d+)\.\w+\.(\w+)", cost.group)
        if found is not None:
            label = f"{found[2].replace('_', ', ')} ({cost.format.name})"
            lines.setdefault(label, []).append((int(found[1]), max(cost.rms_of_range, _LEAST)))
    for (label, points), colour in zip(lines.items(), COLOURS, strict=False):
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3.5, linewidth=1.2,
                  color=colour, label=label)  # fmt: skip
    _percent_scale(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(True, color="#e4e4e4", linewidth=0.8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if lines:
        axes.legend(frameon=False, fontsize=7.5)


def _percent_scale(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    percent = FuncFormatter(lambda value, _: f"{100 * value:g} %")

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(percent)
    low, high = axes.get_ylim()
    if high < 100 * low:  # powers of ten alone would name one line or two
        axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
        axes.yaxis.set_minor_formatter(percent)


def plot_sizes(points: Sequence[SizePoint], path: str | os.PathLike[str], title: str = "") -> Path:
    """Error against size, a line for each recipe; what was fitted is filled, what was rounded is
    hollow; -> `path`.

    Raises as `plot_sensitivity`.
    """
    path = check_plot_path(path)
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    recipes: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        at = (point.bytes / 1e6, max(point.rms_of_range, _LEAST))
        recipes.setdefault(point.name, []).append(at)
        axes.plot(*at, marker="o", markersize=7, color=COLOURS[0],
                  markerfacecolor=COLOURS[0] if point.fitted else "white")  # fmt: skip
    # Names above and below in turns: recipes of nearly one size would write over each other.
    for index, (name, places) in enumerate(sorted(recipes.items(), key=lambda item: item[1])):
        axes.plot(*zip(*places, strict=True), color=COLOURS[0], linewidth=1.0, zorder=1)
        above = index % 2 == 0
        end = (max if above else min)(places, key=lambda place: place[1])
        axes.annotate(name, end, xytext=(0, 8 if above else -17), textcoords="offset points",
                      ha="center", fontsize=9)  # fmt: skip
    _percent_scale(axes)
    axes.set_xlim(left=0)
    axes.margins(x=0.15, y=0.15)
    axes.set_xlabel("bundle, MB (filled: fitted to data; hollow: rounded)")
    axes.set_ylabel("rms of the actions' range")
    axes.grid(True, color="#e4e4e4", linewidth=0.8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    save_figure(figure, path)
    return path
