"""The core's letterbox against torch's own interpolation, over sizes that divide by nothing."""

from __future__ import annotations

import numpy as np
import pytest

from smolvla_edge import _core

SIZES = [(480, 640), (640, 480), (512, 512), (100, 37), (37, 100), (7, 5), (1, 1), (1080, 1920)]
TARGETS = [(512, 512), (64, 64), (224, 160)]  # (width, height)


def lerobot(frame: np.ndarray, width: int, height: int) -> np.ndarray:
    """resize_with_pad and 2x - 1 as LeRobot writes them; frame float32 [H, W, 3] in [0, 1]."""
    torch = pytest.importorskip("torch")
    image = torch.from_numpy(frame.transpose(2, 0, 1)[None].copy())
    ratio = max(frame.shape[1] / width, frame.shape[0] / height)
    size = (max(1, int(frame.shape[0] / ratio)), max(1, int(frame.shape[1] / ratio)))
    resized = torch.nn.functional.interpolate(
        image, size=size, mode="bilinear", align_corners=False
    )
    left, top = width - size[1], height - size[0]
    padded = torch.nn.functional.pad(resized, (left, 0, top, 0), value=0)
    return (padded * 2.0 - 1.0)[0].numpy()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("target", TARGETS)
def test_equals_torch(size, target):
    rng = np.random.default_rng(size[0])
    as_bytes = rng.integers(0, 256, (*size, 3), np.uint8)
    as_floats = as_bytes.astype(np.float32) / np.float32(255)
    want = lerobot(as_floats, *target)
    # Source positions are float32 numbers up to the frame's size: their rounding, times a step of
    # at most 1 between neighbours, then four products.
    bound = 2 * (max(size) * 2.0**-23 + 8 * 2.0**-24)
    for frame in (as_bytes, as_floats):
        got = _core.letterbox(frame, *target)
        assert got.shape == (3, target[1], target[0])
        assert np.abs(got - want).max() <= bound
    # Bytes and their floats are the same picture.
    assert np.array_equal(_core.letterbox(as_bytes, *target), _core.letterbox(as_floats, *target))


def test_a_fitting_frame_is_not_touched():
    frame = np.random.default_rng(0).random((64, 48, 3), np.float32)
    got = _core.letterbox(frame, 48, 64)
    assert np.array_equal(got, frame.transpose(2, 0, 1) * np.float32(2) - np.float32(1))


def test_padding_is_black_on_the_left_and_on_top():
    white = np.full((32, 64, 3), 255, np.uint8)
    wide = _core.letterbox(white, 64, 64)
    assert (wide[:, :32] == -1).all() and (wide[:, 32:] == 1).all()
    tall = _core.letterbox(white.transpose(1, 0, 2).copy(), 64, 64)
    assert (tall[:, :, :32] == -1).all() and (tall[:, :, 32:] == 1).all()
