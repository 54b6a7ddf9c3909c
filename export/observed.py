"""What an export is verified on: observations as both backends are given them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.compress.observations import (
    SYNTHETIC,
    find_observations,
    synthetic_frame,
    synthetic_state,
)
from smolvla_edge.noise import normal
from smolvla_edge.preprocess import check_frame
from smolvla_edge.source import Source
from smolvla_edge.tokenizer import TaskTokenizer

# Height and width: a camera's usual picture, a wide, a tall and a square one.
SIZES = ((480, 640), (288, 512), (640, 480), (512, 512))


@dataclass(frozen=True)
class Seen:
    """names: the cameras in the order of frames, the contract's.  frames: uint8 [h, w, 3], None for
    a masked camera.  tokens: int64 [n].  state: robot units.  noise: [horizon, max_action_dim]."""

    names: list[str]
    frames: list[NDArray[np.uint8] | None]
    tokens: NDArray[np.int64]
    state: NDArray[np.float32]
    noise: NDArray[np.float32]


@dataclass(frozen=True)
class Observed:
    """A number of observations that can be gone through again and again; frame: height and width
    where the policy does not resize."""

    source: Source
    data: str
    count: int
    seed: int
    frame: tuple[int, int]
    rows: int

    def __iter__(self) -> Iterator[Seen]:
        return self._made_up() if self.data == SYNTHETIC else self._recorded()

    def facts(self) -> dict[str, Any]:
        """What a number measured on them rests on, with a digest of their contents."""
        digest = hashlib.sha256()
        words: set[int] = set()
        sizes: set[str] = set()
        masked = 0
        for seen in self:
            masked += any(frame is None for frame in seen.frames)
            words.add(len(seen.tokens))
            for frame in seen.frames:
                if frame is not None:
                    sizes.add(f"{frame.shape[0]}x{frame.shape[1]}")
                    digest.update(np.ascontiguousarray(frame).tobytes())
            for values in (seen.tokens, seen.state, seen.noise):
                digest.update(values.tobytes())
        return {
            "data": self.data,
            "count": self.count,
            "seed": self.seed,
            "frames": sorted(sizes),
            "tokens": sorted(words),
            "with_a_masked_camera": masked,
            "sha256": digest.hexdigest(),
        }

    def _made_up(self) -> Iterator[Seen]:
        """Noise in blocks. Every fourth observation has the shortest prompt, the next ones a middle
        and the longest; every fourth lacks a camera, if the policy allows that."""
        model, contract = self.source.model, self.source.contract
        limit = contract.tokenizer.max_length
        lengths = (limit, 1, (limit + 1) // 2, min(limit, 12))
        cameras = contract.robot_cameras()
        spare = contract.empty_cameras - (len(contract.cameras) - len(cameras))
        for number in range(self.count):
            random = np.random.Generator(np.random.Philox([self.seed, number]))
            given: dict[str, NDArray[np.uint8] | None] = {}
            for place, camera in enumerate(cameras):
                size = SIZES[(number + place) % len(SIZES)] if model.resize else self.frame
                given[camera] = synthetic_frame(random, size)
            if number % 4 == 3 and spare > 0 and len(cameras) > 1:
                given.pop(cameras[(number // 4) % len(cameras)])
            state = synthetic_state(random, self.source)
            words = lengths[number % len(lengths)]
            tokens = random.integers(0, model.vocab, words, dtype=np.int64)
            yield self._seen(given, tokens, state, number)

    def _recorded(self) -> Iterator[Seen]:
        source = self.source
        if source.tokenizer_file is None:
            raise source.no_tokenizer
        rules, vocab = source.contract.tokenizer, source.model.vocab
        tokenizer = TaskTokenizer(source.tokenizer_file, rules, vocab)
        for number, seen in enumerate(find_observations(source, self.data, self.count)):
            tokens = np.array(tokenizer.encode(seen.task).ids)
            yield self._seen(dict(seen.images), tokens, seen.state, number)

    def _seen(
        self,
        given: dict[str, NDArray[np.uint8] | None],
        tokens: NDArray[np.int64],
        state: NDArray[np.float32],
        number: int,
    ) -> Seen:
        chosen = self.source.contract.select_frames(given)
        resize = self.source.model.resize
        frames = [f if f is None else check_frame(name, f, resize) for name, f in chosen]
        noise = normal(self.seed + number, self.rows, self.source.model.max_action_dim)
        return Seen([name for name, _ in chosen], frames, tokens, state, noise)
