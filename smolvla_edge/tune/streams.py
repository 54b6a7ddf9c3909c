"""Recorded frames as a closed loop would meet them.

A policy that executes n actions of a chunk looks at every n-th frame. A stream is these frames of
one recorded episode, in order, and the policy is reset between streams: what a token cache keeps is
then judged on the changes that it will really meet.

Some streams are held out. The search never sees them; what it found is measured on them, because
the best of many plans is always a little worse on other frames.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smolvla_edge.compress.observations import Observation, Observations
from smolvla_edge.contract import Contract
from smolvla_edge.errors import DatasetError

Progress = Callable[[int, int], None]

HELD_OUT = 4  # every fourth stream
LEAST = 2  # streams: one to search on, one held out


@dataclass(frozen=True)
class Stream:
    """Frames of one episode. first: the number of its first frame among those of all streams, from
    which the frame's noise comes."""

    episode: int
    first: int
    frames: tuple[Observation, ...]

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True)
class Streams:
    """Streams of a recording: `search` to search on, `held_out` to check the findings on."""

    name: str
    every: int  # recorded frames from one frame of a stream to the next
    search: tuple[Stream, ...]
    held_out: tuple[Stream, ...]

    def digest(self) -> str:
        """SHA-256 of every pixel, state and word, and of how they are divided."""
        found = hashlib.sha256(repr((self.every, len(self.search))).encode())
        for stream in (*self.search, *self.held_out):
            found.update(repr((stream.first, len(stream))).encode())
            for seen in stream.frames:
                for camera in sorted(seen.images):
                    found.update(camera.encode())
                    found.update(np.ascontiguousarray(seen.images[camera]).tobytes())
                found.update(seen.state.tobytes())
                found.update(seen.task.encode())
        return found.hexdigest()

    def evidence(self) -> dict[str, Any]:
        """What a number measured on them rests on; JSON-able."""
        return {
            "kind": "dataset",
            "name": self.name,
            "every": self.every,
            "streams": len(self.search),
            "count": _frames(self.search),
            "held_out_streams": len(self.held_out),
            "held_out_count": _frames(self.held_out),
            "sha256": self.digest(),
        }

    def describe(self) -> str:
        """How many, for people."""
        return (
            f"{len(self.search)} streams of {_frames(self.search)} frames to search on, "
            f"{len(self.held_out)} of {_frames(self.held_out)} held out; every "
            f"{self.every}-th recorded frame of {self.name}"
        )

    def observations(self, count: int) -> Observations:
        """At most so many frames of the search, spread over it, without their order."""
        frames = [seen for stream in self.search for seen in stream.frames]
        places = np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)
        kept = [frames[place] for place in places.tolist()]
        return Observations("dataset", self.name, len(kept), lambda: iter(kept))


def read_streams(
    folder: Path,
    contract: Contract,
    every: int,
    count: int,
    *,
    rename: Mapping[str, str] | None = None,
    progress: Progress = lambda done, total: None,
) -> Streams:
    """At most `count` episodes of a LeRobotDataset, spread over it, every `every`-th frame of each.

    Raises DatasetError for a folder that is none, that lacks a camera or has fewer than two
    episodes; MissingExtraError without the extra `data`.
    """
    from smolvla_edge.dataset import read_dataset
    from smolvla_edge.eval.open_loop import match_cameras

    recorded = read_dataset(folder)
    names = match_cameras(recorded, contract.robot_cameras(), rename or {})
    if min(len(recorded.episodes), count) < LEAST:
        raise DatasetError(
            f"{folder}: expected {LEAST} episodes or more, one of them to be held out, got "
            f"{min(len(recorded.episodes), count)}"
        )
    chosen = spread(len(recorded.episodes), count)
    parts: tuple[list[Stream], list[Stream]] = ([], [])
    first = 0
    for number, episode in enumerate(chosen):
        progress(number, len(chosen))
        frames = tuple(
            Observation({names[n]: image for n, image in frame.images.items()}, frame.state,
                        frame.task)
            for place, frame in enumerate(recorded.frames(episode, list(names)))
            if place % every == 0
        )  # fmt: skip
        parts[_is_held_out(number, len(chosen))].append(Stream(episode, first, frames))
        first += len(frames)
    progress(len(chosen), len(chosen))
    return Streams(str(folder), every, tuple(parts[0]), tuple(parts[1]))


def spread(episodes: int, count: int) -> list[int]:
    """At most `count` of so many, evenly."""
    places = np.linspace(0, episodes - 1, min(count, episodes)).round().astype(int)
    return list(dict.fromkeys(places.tolist()))


def _is_held_out(number: int, count: int) -> bool:
    """The last of every few; of few streams the last one."""
    return number % HELD_OUT == HELD_OUT - 1 or (count < HELD_OUT and number == count - 1)


def _frames(streams: Sequence[Stream]) -> int:
    return sum(map(len, streams))
