"""Pictures of what layers do and what leaving them out costs. Needs matplotlib (extra `viz`)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolvla_edge.compress.greedy import Point
from smolvla_edge.compress.skip import Influence
from smolvla_edge.plot import COLOURS, check_plot_path, require_matplotlib, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMES = {"vision": "vision encoder", "vlm": "language model", "expert": "action expert"}
_SHORT = {"vision": "v", "vlm": "l", "expert": "e", "cells": "e"}


def plot_influence(
    influence: Influence,
    path: str | os.PathLike[str],
    title: str = "",
    curve: Sequence[Point] = (),
) -> Path:
    """Each layer alone, a panel for each part, and the greedy curve where there is one; -> `path`.

    Raises InputError for the path, MissingExtraError without matplotlib.
    """
    path = check_plot_path(path)
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 7.2 if curve else 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2 if curve else 1, len(_NAMES))
    panels: list[Any] = []
    for place, part in enumerate(_NAMES):
        panels.append(figure.add_subplot(grid[0, place], sharey=panels[0] if panels else None))
        _draw_part(panels[-1], influence, part)
    panels[0].set_ylabel("rms of the actions' range")
    panels[0].legend(frameon=False, fontsize=8)
    if curve:
        _draw_curve(figure.add_subplot(grid[1, :]), curve)
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    save_figure(figure, path)
    return path


def _draw_part(axes: Axes, influence: Influence, part: str) -> None:
    from matplotlib.ticker import MaxNLocator

    items = influence.parts[part]
    layers = [item.layer for item in items]
    axes.bar(layers, [100 * item.action_error for item in items], width=0.6, color=COLOURS[0],
             label="action error without it")  # fmt: skip
    axes.plot(layers, [100 * item.block_influence for item in items], linestyle="none", marker="o",
              markersize=4.5, color=COLOURS[1], label="block influence, x 100")  # fmt: skip
    axes.set_title(_NAMES[part], fontsize=10, loc="left")
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _plain(axes)


def _draw_curve(axes: Axes, curve: Sequence[Point]) -> None:
    """Error against work, each point with the name of what went last."""
    whole = curve[0].multiply_adds
    shares = [100 * point.multiply_adds / whole for point in curve]
    errors = [100 * point.action_error for point in curve]
    axes.plot(shares, errors, marker="o", markersize=4.5, linewidth=1.2, color=COLOURS[0])
    # Names above and below in turns: steps that save little would write over each other.
    for number, (point, x, y) in enumerate(zip(curve, shares, errors, strict=True)):
        above = number % 2 == 0
        axes.annotate(_name(point), (x, y), xytext=(0, 6 if above else -13), ha="center",
                      textcoords="offset points", fontsize=8)  # fmt: skip
    axes.invert_xaxis()
    axes.margins(x=0.04, y=0.15)
    axes.set_xlabel(
        "multiply-adds left, % (v: a layer of vision, l: of language, e: of the expert)"
    )
    axes.set_ylabel("rms of the actions' range")
    _plain(axes)


def _name(point: Point) -> str:
    gone = point.gone
    if gone is None:
        return "all"
    step = "" if gone.step is None else f".{gone.step}"
    return f"-{_SHORT[gone.part]}{gone.layer}{step}"


def _plain(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.set_ylim(bottom=0)
    axes.grid(True, axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
