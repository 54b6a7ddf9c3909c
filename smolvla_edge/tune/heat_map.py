"""The token cache at work, as a picture: how often each block of a camera is computed anew.

    svg = heat_map.draw(heat_map.computed(source, plan, frames, camera), title="...")

What is computed is decided here as the engine decides it (token_blocks.py), from the same pixels;
nothing is encoded. Needs matplotlib (extra viz or tune), not torch.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.backends.native import load_core
from smolvla_edge.compress.observations import Observation
from smolvla_edge.config import ModelConfig
from smolvla_edge.errors import InputError
from smolvla_edge.plan import Plan
from smolvla_edge.plot import COLOURS, require_matplotlib
from smolvla_edge.source import Source
from smolvla_edge.token_blocks import CameraBlocks, Choice, Setting
from smolvla_edge.tokenizer import TaskTokenizer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Picture = NDArray[np.float32]
_UNSAID = ("Creator", "Date", "Format", "Type")  # what matplotlib would write into the file
_STRIP = 6  # successive frames shown one by one


@dataclass(frozen=True)
class Computed:
    """A camera's frames as vision sees them, float32 [height, width, 3] in [0, 1], and what was
    computed of each; side: blocks along a side."""

    pictures: tuple[Picture, ...]
    choices: tuple[Choice, ...]
    side: int

    def share(self) -> NDArray[np.float64]:
        """The part of the calls that computed each block, [side, side]."""
        count = np.zeros(self.side**2)
        for choice in self.choices:
            count[choice.blocks] += 1
        return (count / len(self.choices)).reshape(self.side, self.side)


def computed(source: Source, plan: Plan, frames: Sequence[Observation], camera: str) -> Computed:
    """What a plan with a cache computes of one camera over successive observations.

    camera: the model's name of it. Raises InputError for a plan or camera without a cache, one
    whose cache looks at more than pixels, no frames, and frames whose patches are not a square of
    whole blocks (they are computed whole).
    """
    cache = plan.cache
    if cache is None or (cache.cameras is not None and camera not in cache.cameras) or not frames:
        raise InputError(
            f"a heat map shows frames of a camera under a plan with a cache, got {len(frames)} "
            f"frames of {camera} under {plan!r:.200}"
        )
    if cache.padding or cache.attended:
        raise InputError(
            "a heat map follows what the pixels decide, got a plan with cache.padding or "
            "cache.attended; remove them from it"
        )
    model, blocks = source.model, CameraBlocks()
    reference: Picture = np.zeros(0, np.float32)
    pictures, choices, side = [], [], 0
    for seen in frames:
        pixels = _pixels(model, dict(source.contract.select_frames(seen.images))[camera])
        height, width = pixels.shape[1:]
        rows, block = height // model.patch_size, model.patch_size * model.scale_factor
        if rows != width // model.patch_size or rows % model.scale_factor:
            raise InputError(
                f"{camera}: expected square frames of whole blocks of {block} pixels, got "
                f"{height} x {width}: a cache computes such frames whole"
            )
        side = rows // model.scale_factor
        setting = Setting(
            (height, width), side, _prompt(source, seen.task), plan.skip.vision, cache
        )
        choice = blocks.choose(setting, partial(block_change, pixels, reference, model))
        reference = _refreshed(reference, pixels, choice, side, block)
        pictures.append((pixels.transpose(1, 2, 0) + 1) / 2)
        choices.append(choice)
    return Computed(tuple(pictures), tuple(choices), side)


def has_blocks(model: ModelConfig) -> bool:
    """Whether every frame, once resized, is a square of whole blocks."""
    if model.resize is None:
        return False
    columns, rows = (side // model.patch_size for side in model.resize)
    return columns == rows and rows % model.scale_factor == 0


def block_change(pixels: Picture, reference: Picture, model: ModelConfig) -> Picture:
    """How much each block changed, as model/token_cache.py defines it: [3, H, W] in [-1, 1] ->
    [blocks], raster order."""
    patch, scale = model.patch_size, model.scale_factor
    side = pixels.shape[2] // patch
    difference = np.abs(pixels - reference)[:, : side * patch, : side * patch]
    total = difference.reshape(3, side, patch, side, patch).sum((0, 2, 4), dtype=np.float32)
    mean = total / np.float32(2 * 3 * patch * patch)
    largest: Picture = mean.reshape(side // scale, scale, side // scale, scale).max((1, 3)).ravel()
    return largest


def draw(seen: Computed, title: str = "") -> str:
    """The picture as SVG: each block's share of calls over the mean frame, and a strip of
    successive frames with the computed blocks outlined. Raises MissingExtraError."""
    require_matplotlib()
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 5.6), layout="constrained")
    FigureCanvasSVG(figure)
    above, below = figure.subfigures(2, 1, height_ratios=(3.2, 2.0))
    _draw_share(above, seen)
    first = _liveliest(seen.choices)
    shown = range(first, min(first + _STRIP, len(seen.choices)))
    for axes, number in zip(np.atleast_1d(below.subplots(1, _STRIP)), range(_STRIP), strict=True):
        axes.set_axis_off()
        if number < len(shown):
            _draw_frame(axes, seen, shown[number])
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return svg(figure)


def svg(figure: Figure) -> str:
    """A figure as an <svg> element, the same each time: no date, no names made at random."""
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "smolvla-edge"}):
        figure.savefig(stream, format="svg", metadata=dict.fromkeys(_UNSAID))
    text = stream.getvalue()
    return text[text.index("<svg") :]


def _draw_share(figure: Any, seen: Computed) -> None:
    share = seen.share()
    left, middle, right = figure.subplots(1, 3)
    _draw_calls(middle, seen.choices)
    mean = np.mean(seen.pictures, axis=0)
    for axes in (left, right):
        axes.set_axis_off()
        axes.imshow(mean, extent=(0, seen.side, seen.side, 0))
    left.set_title(f"mean of {len(seen.choices)} successive frames", fontsize=9, loc="left")
    heat = right.imshow(
        share, extent=(0, seen.side, seen.side, 0), cmap="magma", vmin=0, vmax=1, alpha=0.72
    )
    for row, column in np.ndindex(share.shape):
        if seen.side <= 8:  # more would be too small to read
            right.text(column + 0.5, row + 0.5, f"{share[row, column]:.0%}", fontsize=7,
                       ha="center", va="center",
                       color="white" if share[row, column] < 0.6 else "black")  # fmt: skip
    right.set_title(
        f"calls that computed a block (all: {share.mean():.0%})",
        fontsize=9, loc="left",
    )  # fmt: skip
    bar = figure.colorbar(heat, ax=right, fraction=0.046, ticks=(0, 0.5, 1))
    bar.ax.set_yticklabels(("never", "half", "always"), fontsize=8)


def _draw_calls(axes: Axes, choices: Sequence[Choice]) -> None:
    colours = [COLOURS[1] if choice.keyframe else COLOURS[0] for choice in choices]
    axes.bar(range(len(choices)), [100 * choice.dirty for choice in choices], color=colours)
    axes.set_title("part of a frame computed, % (orange: keyframes)", fontsize=9, loc="left")
    axes.set_ylim(0, 100)
    axes.set_xlabel("call", fontsize=8)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _draw_frame(axes: Axes, seen: Computed, number: int) -> None:
    from matplotlib.patches import Rectangle

    choice, side = seen.choices[number], seen.side
    axes.imshow(seen.pictures[number], extent=(0, side, side, 0))
    for block in [] if choice.keyframe else choice.blocks.tolist():
        row, column = divmod(block, side)
        corner = (column + 0.05, row + 0.05)
        axes.add_patch(Rectangle(corner, 0.9, 0.9, fill=False, linewidth=1.4, edgecolor=COLOURS[1]))
    if choice.keyframe:
        axes.add_patch(Rectangle((0, 0), side, side, fill=False, linewidth=4, edgecolor=COLOURS[1]))
        told = f"all ({choice.why})"
    else:
        told = f"{len(choice.blocks)} of {side * side}"
    axes.set_title(f"call {number}: {told}", fontsize=8, loc="left", pad=3)


def _liveliest(choices: Sequence[Choice]) -> int:
    """Where a strip begins: with the fewest keyframes in it, of those the most computed."""
    starts = range(max(1, len(choices) - _STRIP + 1))
    return max(
        starts,
        key=lambda i: (
            -sum(choice.keyframe for choice in choices[i : i + _STRIP]),
            sum(choice.dirty for choice in choices[i : i + _STRIP] if not choice.keyframe),
            -i,
        ),
    )


def _pixels(model: ModelConfig, frame: NDArray[Any] | None) -> Picture:
    """As vision sees it, float32 [3, H, W] in [-1, 1]."""
    if frame is None:
        raise InputError("a heat map needs a camera that sees something, got a missing frame")
    if model.resize is not None:
        letterboxed: Picture = load_core().letterbox(frame, *model.resize)
        return letterboxed
    values = frame.astype(np.float32)
    values = values / np.float32(255) if frame.dtype == np.uint8 else values
    return np.ascontiguousarray(values.transpose(2, 0, 1) * np.float32(2) - np.float32(1))


def _prompt(source: Source, task: str) -> tuple[int, ...]:
    if source.tokenizer_file is None:
        raise source.no_tokenizer
    rules = source.contract.tokenizer
    encoder = TaskTokenizer(source.tokenizer_file, rules, source.model.vocab)
    return tuple(encoder.encode(task).ids.tolist())


def _refreshed(
    reference: Picture, pixels: Picture, choice: Choice, side: int, block: int
) -> Picture:
    """The reference with the chosen blocks of this frame."""
    if choice.keyframe:
        return pixels
    result = reference.copy()
    for number in choice.blocks.tolist():
        rows, columns = (slice(i * block, (i + 1) * block) for i in divmod(number, side))
        result[:, rows, columns] = pixels[:, rows, columns]
    return result
