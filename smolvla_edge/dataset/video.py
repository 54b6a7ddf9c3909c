"""Frames of a video file, by time (PyAV)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.dataset.arrow import need
from smolvla_edge.errors import DatasetError


def frames_at(path: Path, start: float, count: int, fps: float) -> Iterator[NDArray[np.uint8]]:
    """`count` frames of 1 / fps seconds from `start` seconds on, uint8 [height, width, 3].

    The decoder begins at the key frame before `start`. Each frame is the one whose time is nearest,
    and it must be within half a frame. Raises DatasetError for a damaged or too short file.
    """
    av = need("av", "av")
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            container.seek(int(start / stream.time_base), stream=stream)
            given = 0
            for frame in container.decode(stream):
                wanted = start + given / fps
                if frame.time < wanted - 0.5 / fps:
                    continue
                if frame.time > wanted + 0.5 / fps:
                    raise DatasetError(
                        f"{path}: expected a frame at {wanted:.3f} s, the next is at "
                        f"{frame.time:.3f} s"
                    )
                yield frame.to_ndarray(format="rgb24")
                given += 1
                if given == count:
                    return
    except DatasetError:
        raise
    except (av.error.FFmpegError, OSError, IndexError, TypeError) as cause:
        raise DatasetError(f"{path}: expected a video, got a damaged one: {cause}") from cause
    raise DatasetError(f"{path}: expected {count} frames from {start:.3f} s on, found {given}")
