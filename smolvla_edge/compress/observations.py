"""Observations to calibrate and to measure with: recorded, from pictures, or made up.

a LeRobotDataset v3.0 folder   frames spread over its episodes (extra data)
a folder of pictures           with observations.json: {"observations": [
                               {"images": {camera: file}, "state": [...], "task": "..."}, ...]}
"synthetic"                    blocks of noise: good enough to try the plumbing, and called
                               synthetic wherever a number that rests on it is shown
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.errors import DatasetError, QuantizationError
from smolvla_edge.image_file import read_image
from smolvla_edge.preprocess import unnormalize
from smolvla_edge.source import Source
from smolvla_edge.strict_json import read_json_object

SYNTHETIC = "synthetic"
LIST_FILE = "observations.json"
_MAX_LIST_BYTES = 16 << 20
_BLOCK = 8  # pixels, so that a resize has edges and surfaces
_TASK = "pick up the red cube"
_APART = 4  # every fourth episode is held out


@dataclass(frozen=True)
class Observation:
    """What `Policy.predict` takes: frames uint8 [h, w, 3] by the policy's camera, state, task."""

    images: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    task: str


@dataclass
class Observations:
    """A number of observations that can be gone through again and again."""

    kind: str  # dataset, pictures or synthetic
    name: str
    count: int
    _make: Any = field(repr=False)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Observation]:
        made: Iterator[Observation] = self._make()
        return made

    def split(self, last: int) -> tuple[Observations, Observations]:
        """(all but the last, the last) observations; of recordings the last come from other
        episodes, or later moments of one. Raises QuantizationError unless both have some."""
        first = self.count - last
        if min(first, last) < 1:
            raise QuantizationError(
                f"{self.name}: expected more than {last} observations, {last} of them to be held "
                f"out, got {self.count}"
            )
        return (
            replace(self, count=first, _make=lambda: islice(iter(self), first)),
            replace(self, count=last, _make=lambda: islice(iter(self), first, None)),
        )

    def first(self, count: int) -> Observations:
        """At most so many of them, kept in memory."""
        kept = list(islice(iter(self), count))
        return replace(self, count=len(kept), _make=lambda: iter(kept))

    def evidence(self) -> dict[str, Any]:
        """What a number measured on them rests on, with a digest of their contents."""
        digest = hashlib.sha256()
        for seen in self:
            for camera in sorted(seen.images):
                digest.update(camera.encode())
                digest.update(np.ascontiguousarray(seen.images[camera]).tobytes())
            digest.update(seen.state.tobytes())
            digest.update(seen.task.encode())
        return {"kind": self.kind, "name": self.name, "count": self.count,
                "sha256": digest.hexdigest()}  # fmt: skip


def find_observations(
    source: Source,
    data: str,
    count: int,
    *,
    rename: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Observations:
    """`count` observations of `data` ("synthetic", or a folder) for this policy.

    rename: {the data's camera: the policy's}. Raises QuantizationError for a folder that is
    neither, or has fewer observations; DatasetError and InputError for what is broken inside.
    """
    if count < 1:
        raise QuantizationError(f"expected 1 observation or more, got {count}")
    if data == SYNTHETIC:
        return Observations(SYNTHETIC, SYNTHETIC, count, lambda: _synthetic(source, count, seed))
    folder = Path(data)
    if (folder / LIST_FILE).is_file():
        return _from_pictures(folder, count)
    if (folder / "meta" / "info.json").is_file():
        return _from_dataset(source, folder, count, rename or {})
    raise QuantizationError(
        f"{data}: expected a LeRobotDataset folder (meta/info.json), a folder with {LIST_FILE}, or "
        f"the word {SYNTHETIC}"
    )


def find_apart(
    source: Source, data: str, count: int, held_out: int, *, seed: int = 0
) -> tuple[Observations, Observations]:
    """`count` observations to learn from and `held_out` others to measure with.

    Of a dataset they come from different episodes, and both from all over it: every fourth episode
    is held out. Otherwise the last are. Raises what `find_observations` raises.
    """
    folder = Path(data)
    if data == SYNTHETIC or (folder / LIST_FILE).is_file():
        return find_observations(source, data, count + held_out, seed=seed).split(held_out)
    find_observations(source, data, count + held_out, seed=seed)  # refuses what is no dataset
    return (
        _from_dataset(source, folder, count, {}, lambda number: number % _APART != _APART - 1),
        _from_dataset(source, folder, held_out, {}, lambda number: number % _APART == _APART - 1),
    )


def synthetic_frame(random: np.random.Generator, size: tuple[int, int]) -> NDArray[np.uint8]:
    """uint8 [height, width, 3]: noise in blocks of 8 pixels."""
    height, width = size
    rows, columns = -(-height // _BLOCK), -(-width // _BLOCK)
    blocks = random.integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    return np.ascontiguousarray(blocks.repeat(_BLOCK, 0).repeat(_BLOCK, 1)[:height, :width])


def synthetic_state(random: np.random.Generator, source: Source) -> NDArray[np.float32]:
    """A state within one standard deviation (or the range) of its statistics, robot units."""
    contract = source.contract
    within = np.clip(random.standard_normal(contract.state_dim), -1, 1).astype(np.float32)
    return unnormalize(within, contract.state)


def _synthetic(source: Source, count: int, seed: int) -> Iterator[Observation]:
    model = source.model
    size = model.resize or (model.image_size, model.image_size)
    cameras = source.contract.robot_cameras()
    for number in range(count):
        random = np.random.default_rng([seed, number])
        frames = {camera: synthetic_frame(random, size) for camera in cameras}
        yield Observation(frames, synthetic_state(random, source), _TASK)


def _from_dataset(
    source: Source,
    folder: Path,
    count: int,
    rename: Mapping[str, str],
    belongs: Callable[[int], bool] = lambda number: True,
) -> Observations:
    """Spread evenly over the frames of the episodes that belong to it, by their number."""
    from smolvla_edge.dataset import read_dataset
    from smolvla_edge.eval.open_loop import match_cameras

    recorded = read_dataset(folder)
    whole = sum(episode.length for episode in recorded.episodes)
    if whole != recorded.info.frames:
        raise DatasetError(
            f"{folder}: info.json promises {recorded.info.frames} frames, its episodes have {whole}"
        )
    episodes = [episode for n, episode in enumerate(recorded.episodes) if belongs(n)]
    frames = sum(episode.length for episode in episodes)
    if frames < count:
        raise QuantizationError(
            f"{folder}: expected {count} frames or more in {len(episodes)} of its "
            f"{len(recorded.episodes)} episodes, got {frames}"
        )
    names = match_cameras(recorded, source.contract.robot_cameras(), rename)
    wanted = np.linspace(0, frames - 1, count).round().astype(int)

    def make() -> Iterator[Observation]:
        made = first = 0
        for episode in episodes:
            mine = (wanted - first)[(wanted >= first) & (wanted < first + episode.length)].tolist()
            first += episode.length
            if not mine:
                continue
            for number, frame in enumerate(recorded.frames(episode.index, list(names))):
                if number in mine:
                    made += 1
                    images = {names[name]: image for name, image in frame.images.items()}
                    yield Observation(images, frame.state, frame.task)
        if made != count:
            raise DatasetError(
                f"{folder}: its episodes promise {frames} frames, but {made} of the {count} that "
                f" were drawn from them are there"
            )

    return Observations("dataset", str(folder), count, make)


def _from_pictures(folder: Path, count: int) -> Observations:
    where = str(folder / LIST_FILE)
    raw = read_json_object(folder / LIST_FILE, QuantizationError, _MAX_LIST_BYTES)
    items = raw.get("observations")
    if not isinstance(items, list) or len(items) < count:
        found = len(items) if isinstance(items, list) else type(items).__name__
        raise QuantizationError(f"{where}: expected a list of {count} or more, got {found}")
    chosen = np.linspace(0, len(items) - 1, count).round().astype(int).tolist()
    parsed = [_parse(items[number], folder, f"{where}: {number}") for number in chosen]

    def make() -> Iterator[Observation]:
        for images, state, task in parsed:
            yield Observation({c: read_image(path) for c, path in images.items()}, state, task)

    return Observations("pictures", str(folder), count, make)


def _parse(raw: Any, folder: Path, where: str) -> tuple[dict[str, Path], NDArray[np.float32], str]:
    if not isinstance(raw, dict) or raw.keys() != {"images", "state", "task"}:
        raise QuantizationError(f"{where}: expected images, state and task, got {raw!r:.200}")
    images, state, task = raw["images"], raw["state"], raw["task"]
    if not isinstance(images, dict) or not all(isinstance(x, str) for x in images.values()):
        raise QuantizationError(f"{where}: images: expected {{camera: file}}, got {images!r:.200}")
    if not isinstance(state, Sequence) or not all(isinstance(x, int | float) for x in state):
        raise QuantizationError(f"{where}: state: expected numbers, got {state!r:.200}")
    if not isinstance(task, str):
        raise QuantizationError(f"{where}: task: expected text, got {task!r:.80}")
    paths = {camera: folder / file for camera, file in images.items()}
    for path in paths.values():
        if "\0" in str(path) or not path.resolve().is_relative_to(folder.resolve()):
            raise QuantizationError(f"{where}: {path} lies outside the folder")
    return paths, np.asarray(state, np.float32), task
