"""The token cache of one camera: what a frame changes is computed, the rest is of earlier frames.

Which blocks that is decides token_blocks.py; here are the pixels, keys, values and tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from smolvla_edge.cache_report import CacheReport
from smolvla_edge.model.smolvla import SmolVLA
from smolvla_edge.model.vision import KeptKeys, inner_size
from smolvla_edge.plan import Cache, Plan
from smolvla_edge.token_blocks import CameraBlocks, Choice, Setting


def block_change(pixels: Tensor, reference: Tensor, patch: int, scale: int) -> Tensor:
    """How much each block changed: the mean absolute difference of a patch's pixels, in units of
    [0, 1], in its patch that changed most.

    pixels, reference [1, 3, H, W] in [-1, 1], their patches a square -> [blocks], raster order.
    """
    side = pixels.shape[3] // patch
    difference = (pixels - reference)[0, :, : side * patch, : side * patch].abs()
    total = difference.view(3, side, patch, side, patch).sum((0, 2, 4))
    mean = total / (2 * 3 * patch * patch)
    blocks = mean.view(side // scale, scale, side // scale, scale)
    return blocks.amax((1, 3)).flatten()


def token_drift(new: Tensor, old: Tensor) -> float:
    """The largest relative error of tokens [m, width], old for new."""
    error, size = (new - old).norm(dim=1), new.norm(dim=1)
    return torch.where(error == 0, 0, error / size).max().item()


class CameraCache:
    """Everything kept of one camera between calls."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks = CameraBlocks()
        self._reference: Tensor  # pixels that each block was last computed from
        self._keys: KeptKeys
        self._tokens: Tensor

    def encode(
        self,
        model: SmolVLA,
        pixels: Tensor,
        prompt: Sequence[int],
        plan: Plan,
        cache: Cache,
        frame_size: tuple[int, int] | None = None,
    ) -> tuple[Tensor, CacheReport | None]:
        """pixels [1, 3, H, W] -> image tokens [1, t, text_width] and how they came about.

        frame_size: height, width of the frame that a letterbox made the pixels of, None without.
        A frame that is not square is not looked at: the pixel shuffle mixes its patches over the
        picture. It is computed whole, and its report is None. A failure leaves nothing behind.
        """
        patch = model.config.patch_size
        height, width = pixels.shape[2:]
        if height // patch != width // patch:
            return model.encode_image(pixels, skip=plan.skip.vision), None
        side = height // patch // model.config.scale_factor
        padding = (0, 0)
        if cache.padding and frame_size is not None:
            edge = patch * model.config.scale_factor
            inner = inner_size(*frame_size, (width, height))
            padding = (height - inner[0]) // edge, (width - inner[1]) // edge
        setting = Setting((height, width), side, tuple(prompt), plan.skip.vision, cache, padding)
        with self._lock:
            try:
                choice = self._blocks.choose(setting, lambda: self._change(model, pixels))
                drift = self._compute(model, pixels, plan, choice)
            except BaseException:
                self._blocks.forget()
                raise
            report = CacheReport(choice.keyframe, choice.why, choice.dirty, choice.oldest, drift)
            return self._tokens, report

    def attend(self, mass: Tensor) -> None:
        """How much the expert looked at each image token [t] of the call before."""
        with self._lock:
            self._blocks.attend(mass.cpu().numpy())

    def _change(self, model: SmolVLA, pixels: Tensor) -> np.ndarray:
        patch, scale = model.config.patch_size, model.config.scale_factor
        return block_change(pixels, self._reference, patch, scale).cpu().numpy()

    def _compute(self, model: SmolVLA, pixels: Tensor, plan: Plan, choice: Choice) -> float | None:
        """Bring what is kept up to date -> the drift of the report."""
        if choice.dirty == 1:
            self._reference, self._keys = pixels, KeptKeys()
            self._tokens = model.encode_image(pixels, skip=plan.skip.vision, kept=self._keys)
            return None
        if not choice.blocks.size:
            return None
        blocks, clean = (
            torch.from_numpy(x).to(pixels.device) for x in (choice.blocks, choice.clean)
        )
        before = self._tokens[0, clean]
        computed = model.encode_blocks(pixels, blocks, self._keys, plan.skip.vision)
        self._tokens = self._tokens.index_copy(1, blocks, computed)
        self._reference = self._refreshed(pixels, choice, model)
        return token_drift(self._tokens[0, clean], before) if len(clean) else None

    def _refreshed(self, pixels: Tensor, choice: Choice, model: SmolVLA) -> Tensor:
        """The reference with the chosen blocks of this frame; only whole blocks matter."""
        size = model.config.patch_size * model.config.scale_factor
        side = pixels.shape[3] // size
        reference = self._reference.clone()
        for block in choice.blocks.tolist():
            rows, columns = (slice(i * size, (i + 1) * size) for i in divmod(block, side))
            reference[:, :, rows, columns] = pixels[:, :, rows, columns]
        return reference
