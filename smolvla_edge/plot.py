"""A picture of one chunk of actions. Needs matplotlib (extra `viz`)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from smolvla_edge.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
MAX_SHARED_LINES = 8  # more lines than this in one pair of axes cannot be told apart
MAX_DIMENSIONS = 64
_COLUMNS = 4

# Okabe and Ito's colours (distinct for colour-blind eyes), without the yellow that fades on white.
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#000000",
    "#8c564b",
)


def require_matplotlib() -> None:
    """Raises MissingExtraError when there is nothing to draw with, before any work is done."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as cause:
        raise MissingExtraError(
            "a plot needs matplotlib, which is not installed: pip install 'smolvla-edge[viz]'"
        ) from cause


def check_plot_path(path: str | os.PathLike[str]) -> Path:
    """The path of a plot to be. Raises InputError for another kind of file or a missing folder."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"a plot must end in {', '.join(FORMATS)}, got {str(path)!r}")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; make it first")
    return path


def plot_chunk(
    actions: np.ndarray,
    path: str | os.PathLike[str],
    *,
    title: str = "",
    names: Sequence[str] | None = None,
    executed: int | None = None,
    unit: str = "robot units",
) -> Path:
    """Draw `actions`, float [horizon, dimensions], over the steps of the chunk; -> `path`.

    `names` are those of the dimensions. `executed` marks how many of the actions are used before
    the next chunk is computed. Raises InputError, MissingExtraError.
    """
    path = check_plot_path(path)
    actions, labels = _check(actions, names)
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A figure of its own, not pyplot's: nothing global changes in the caller's program.
    shared = actions.shape[1] <= MAX_SHARED_LINES
    columns = 1 if shared else _COLUMNS
    rows = 1 if shared else -(-actions.shape[1] // columns)
    size = (9.0, 5.0) if shared else (11.0, 1.2 + 1.7 * rows)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    if shared:
        _draw_together(axes[0], actions, labels, executed, unit)
    else:
        _draw_apart(figure, axes, actions, labels, executed, unit)
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    save_figure(figure, path)
    return path


def _check(actions: np.ndarray, names: Sequence[str] | None) -> tuple[np.ndarray, list[str]]:
    actions = np.asarray(actions)
    if actions.ndim != 2 or 0 in actions.shape or actions.dtype.kind != "f":
        raise InputError(
            f"a plot takes float actions [horizon, dimensions], got {actions.dtype} "
            f"{list(actions.shape)}"
        )
    if actions.shape[1] > MAX_DIMENSIONS:
        raise InputError(
            f"a plot shows at most {MAX_DIMENSIONS} dimensions, {actions.shape[1]} came"
        )
    if not np.isfinite(actions).all():
        raise InputError("the actions hold NaN or infinity; there is nothing true to draw")
    labels = [f"action {i}" for i in range(actions.shape[1])] if names is None else list(names)
    if len(labels) != actions.shape[1]:
        raise InputError(f"expected {actions.shape[1]} names of dimensions, got {len(labels)}")
    return actions, labels


def _draw_together(
    axes: Axes, actions: np.ndarray, labels: list[str], executed: int | None, unit: str
) -> None:
    steps = np.arange(len(actions))
    for i, label in enumerate(labels):
        axes.plot(steps, actions[:, i], color=COLOURS[i], label=label, **_line(len(steps)))
    _mark_executed(axes, executed, len(steps))
    axes.set_xlabel(_step_label(executed, len(steps)))
    axes.set_ylabel(f"action ({unit})")
    _tidy(axes, len(steps))
    # The legend in the order in which the lines end, so that the eye finds its way back.
    order = np.argsort(-actions[-1])
    handles, texts = axes.get_legend_handles_labels()
    axes.legend(
        [handles[i] for i in order],
        [texts[i] for i in order],
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        frameon=False,
        borderaxespad=0.0,
    )


def _draw_apart(
    figure: Figure,
    axes: np.ndarray,
    actions: np.ndarray,
    labels: list[str],
    executed: int | None,
    unit: str,
) -> None:
    """One small picture a dimension, each with its own scale: joints differ by magnitudes."""
    steps = np.arange(len(actions))
    for i, panel in enumerate(axes):
        if i >= len(labels):
            panel.set_visible(False)
            # The panel above is the last of its column now: it carries the step numbers.
            axes[i - _COLUMNS].tick_params(labelbottom=True)
            continue
        panel.plot(steps, actions[:, i], color=COLOURS[0], **_line(len(steps)))
        panel.set_title(labels[i], fontsize=9, loc="left", pad=3)
        panel.tick_params(labelsize=8)
        _mark_executed(panel, executed, len(steps))
        _tidy(panel, len(steps))
    figure.supxlabel(_step_label(executed, len(steps)), fontsize=10)
    figure.supylabel(f"action ({unit})", fontsize=10)


def _line(count: int) -> dict[str, Any]:
    # One step alone has no line: show the points of short chunks.
    return {"linewidth": 1.6, "marker": "o" if count <= 12 else None, "markersize": 4}


def _tidy(axes: Axes, count: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=10))
    axes.set_xlim(*((-1, 1) if count == 1 else (0, count - 1)))
    axes.grid(True, color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _mark_executed(axes: Axes, executed: int | None, count: int) -> None:
    if _is_cut(executed, count):
        axes.axvspan(executed - 0.5, count - 1, color="#000000", alpha=0.06, linewidth=0)


def _is_cut(executed: int | None, count: int) -> TypeGuard[int]:
    return executed is not None and 0 < executed < count


def _step_label(executed: int | None, count: int) -> str:
    if not _is_cut(executed, count):
        return "step of the chunk"
    return f"step of the chunk (grey: not executed, step() asks anew after {executed} actions)"


def save_figure(figure: Figure, path: Path) -> None:
    """Write beside the target and rename: a reader never sees half a picture."""
    try:
        handle, temporary = tempfile.mkstemp(suffix=path.suffix.lower(), dir=path.parent)
        os.close(handle)
        try:
            figure.savefig(temporary, dpi=120)
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)  # mkstemp's 0600 would surprise
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as cause:
        reason = cause.strerror or cause
        raise InputError(f"{path}: the plot cannot be written: {reason}") from cause
