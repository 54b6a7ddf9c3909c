"""The token cache's decision: examples of every rule, and long random lives of a camera."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from token_blocks_helpers import BLOCKS, change, choose, setting, started

from smolvla_edge.plan import Cache
from smolvla_edge.token_blocks import CameraBlocks, Choice, Setting, dilated


class TestKeyframes:
    def test_the_first_is_everything(self) -> None:
        choice = CameraBlocks().choose(setting(), lambda: change())
        assert (choice.keyframe, choice.why, choice.dirty, choice.oldest) == (True, "first", 1.0, 0)
        assert choice.blocks.tolist() == list(range(BLOCKS)) and choice.clean.size == 0

    @pytest.mark.parametrize(
        "why, changes",
        [
            ("frame size", {"size": (64, 80)}),
            ("frame size", {"size": (128, 128), "side": 16, "prompt": (1,), "skipped": (1,)}),
            ("prompt", {"prompt": (5,)}),
            ("prompt", {"prompt": (5, 8), "skipped": (1,)}),
            ("plan", {"skipped": (1,)}),
            ("plan", {"cache": Cache(0.5, 1000, 1000, dilate=0, check=1)}),
        ],
    )
    def test_another_setting(self, why: str, changes: dict[str, Any]) -> None:
        blocks = started(setting())
        other = replace(setting(), **changes)
        choice = choose(blocks, other, change(other.side))
        assert choice.why == why and choice.blocks.size == other.side**2
        assert choose(blocks, other, change(other.side)).blocks.size == 0

    def test_forgotten(self) -> None:
        blocks = started(setting())
        blocks.forget()
        assert choose(blocks, setting(), change()).why == "first"

    def test_every_n_counts_calls(self) -> None:
        now = setting(keyframe_every=3)
        blocks = started(now)
        whys = [choose(blocks, now, change(b3=0.6)).why for _ in range(7)]
        assert whys == [None, None, "every n", None, None, "every n", None]

    def test_identical_frames_need_none_and_do_not_count(self) -> None:
        now = setting(keyframe_every=3, max_age=3)
        blocks = started(now)
        for age in (1, 2):
            assert choose(blocks, now, change(b3=0.1)).oldest == age
            for _ in range(5):
                choice = choose(blocks, now, change())
                assert (choice.why, choice.dirty, choice.oldest) == (None, 0.0, age)
        assert choose(blocks, now, change(b3=0.1)).why == "every n"

    def test_exact_with_threshold_zero(self) -> None:
        now = setting(threshold=0, check=1, max_age=1)
        blocks = started(now)
        for _ in range(3):
            assert choose(blocks, now, change()).blocks.size == 0
            assert choose(blocks, now, change(b60=1e-6)).why == "changed"

    @pytest.mark.parametrize("count, why", [(48, None), (49, "scene")])
    def test_a_scene_is_more_than_three_quarters(self, count: int, why: str | None) -> None:
        now = setting()
        moved = change()
        moved[:count] = 0.6
        choice = choose(started(now), now, moved)
        assert (choice.why, choice.blocks.size) == (why, 64 if why else 48)

    def test_what_is_checked_counts_too(self) -> None:
        now = setting(check=1)
        moved = change()
        moved[:48] = 0.6
        assert choose(started(now), now, moved).why == "scene"

    def test_one_block_is_all_or_nothing(self) -> None:
        now = setting(side=1)
        assert choose(started(now), now, change(1, b0=0.6)).why == "scene"
        assert choose(started(now), now, change(1, b0=0.4)).blocks.size == 0


class TestChosen:
    def test_above_the_threshold_filled_by_change(self) -> None:
        """Seven more, to the bucket of eight: by change, then by number."""
        now = setting()
        moved = change(b20=0.6, b40=0.5, b41=0.2, b50=0.5)
        choice = choose(started(now), now, moved)
        assert choice.blocks.tolist() == [0, 1, 2, 3, 20, 40, 41, 50]
        assert choice.clean.tolist() == [0, 1, 2, 3, 40, 41, 50]
        assert (choice.why, choice.dirty, choice.oldest) == (None, 0.125, 1)

    def test_what_is_no_number_has_changed(self) -> None:
        now = setting(side=2)
        assert choose(started(now), now, change(2, b3=np.nan)).blocks.tolist() == [3]

    def test_a_full_bucket_is_not_filled(self) -> None:
        now = setting(side=4)  # 16 blocks, buckets of 2
        moved = change(4, b1=0.6, b9=0.6)
        choice = choose(started(now), now, moved)
        assert choice.blocks.tolist() == [1, 9] and choice.clean.size == 0

    def test_a_grid_too_small_for_buckets(self) -> None:
        now = setting(side=2)
        assert choose(started(now), now, change(2, b3=0.6)).blocks.tolist() == [3]

    def test_filled_by_age_among_equals(self) -> None:
        now = setting(side=4)
        blocks = started(now)
        choose(blocks, now, change(4, b0=0.6, b1=0.6))
        moved = change(4, b2=0.1, b3=0.6)
        moved[:2] = 0.1
        assert choose(blocks, now, moved).blocks.tolist() == [2, 3]  # 0 and 1 are younger

    def test_filled_by_change_before_age(self) -> None:
        now = setting(side=4)
        blocks = started(now)
        choose(blocks, now, change(4, b0=0.6, b1=0.6))
        assert choose(blocks, now, change(4, b1=0.1, b3=0.6)).blocks.tolist() == [1, 3]

    def test_neighbours(self) -> None:
        now = setting(dilate=1)
        choice = choose(started(now), now, change(b9=0.6))
        ring, filled = [0, 1, 2, 8, 9, 10, 16, 17, 18], [3, 4, 5, 6, 7, 11, 12]
        assert choice.blocks.tolist() == sorted(ring + filled)
        assert choice.clean.tolist() == sorted({*ring, *filled} - {9})

    def test_nothing_changed_much(self) -> None:
        """All is reused and ages, and the frame is still whole: an identical one is exact."""
        now = setting()
        blocks = started(now)
        for age in (1, 2, 3):
            choice = choose(blocks, now, change(b3=0.4))
            assert (choice.blocks.size, choice.oldest) == (0, age)
        assert choose(blocks, now, change()).oldest == 3

    def test_checked_oldest_first(self) -> None:
        now = setting(side=4, check=2)
        blocks = started(now)
        small = change(4, b15=0.4)
        seen = [choose(blocks, now, small).blocks.tolist() for _ in range(9)]
        assert seen[:3] == [[0, 1], [2, 3], [4, 5]] and seen[8] == [0, 1]

    def test_an_age_is_clean(self) -> None:
        now = setting(side=4, max_age=3)
        blocks = started(now)
        for number in (2, 4):
            choose(blocks, now, change(4, **{f"b{number + i}": 0.6 for i in (0, 1)}))
        choice = choose(blocks, now, change(4, b0=0.6))
        assert choice.blocks.tolist() == [0, 1, *range(6, 16)]
        assert choice.clean.tolist() == [1, *range(6, 16)]

    def test_checked_also_when_nothing_changed(self) -> None:
        """Once blocks are of several frames, no frame is identical to what is kept."""
        now = setting(side=4, check=1)
        blocks = started(now)
        assert choose(blocks, now, change(4)).blocks.size == 0
        assert choose(blocks, now, change(4, b0=0.6)).blocks.tolist() == [0, 1]
        choice = choose(blocks, now, change(4))
        assert choice.blocks.tolist() == choice.clean.tolist() == [2, 3]

    def test_old_blocks(self) -> None:
        now = setting(side=4, max_age=2)
        blocks = started(now)
        assert choose(blocks, now, change(4, b0=0.6, b1=0.6, b2=0.6, b3=0.6)).oldest == 1
        choice = choose(blocks, now, change(4, b0=0.4))
        assert choice.blocks.tolist() == choice.clean.tolist() == list(range(4, 16))
        assert choice.oldest == 1

    def test_age_one_reuses_nothing_but_an_identical_frame(self) -> None:
        now = setting(max_age=1)
        blocks = started(now)
        assert choose(blocks, now, change()).blocks.size == 0
        assert choose(blocks, now, change(b0=0.1)).why == "scene"

    def test_dilated(self) -> None:
        one = np.zeros((5, 5), bool)
        one[0, 3] = True
        assert np.argwhere(dilated(one, 1)).tolist() == [[y, x] for y in (0, 1) for x in (2, 3, 4)]
        assert dilated(one, 0).sum() == 1 and dilated(one, 10**6).all()
        corner = np.zeros((5, 5), bool)
        corner[0, 0] = True
        assert np.argwhere(dilated(corner, 1)).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
        assert not dilated(np.zeros((5, 5), bool), 2).any()


class Camera:
    """A camera and everything that a decision is held to, counted by itself."""

    def __init__(self, now: Setting, random: np.random.Generator) -> None:
        self.blocks, self.random = CameraBlocks(), random
        self.now: Setting | None = None
        self.frame = np.where(now.free(), random.random(now.side**2), 0).astype(np.float32)

    def call(self, now: Setting, frame: np.ndarray) -> Choice:
        known = self.now == now
        moved = np.abs(frame - self.reference) if known else np.zeros(0)
        choice = self.blocks.choose(now, lambda: moved.astype(np.float32))
        if known:
            self.check(now, moved, choice)
        else:
            assert choice.keyframe
        self.count(choice, frame, identical=known and self.whole and not moved.any())
        assert choice.oldest == self.age[now.free()].max()
        # Whatever happened: no block but padding is used that is as old as the cache's limit.
        assert choice.oldest < now.cache.max_age
        if choice.why in ("first", "frame size", "prompt", "plan"):
            assert choice.blocks.size == frame.size
        else:
            assert now.free()[choice.blocks].all()
        self.now = now
        return choice

    def check(self, now: Setting, moved: np.ndarray, choice: Choice) -> None:
        total, chosen, cache, free = moved.size, np.zeros(moved.size, bool), now.cache, now.free()
        chosen[choice.blocks] = True
        above = moved > cache.threshold
        near = dilated(above.reshape(now.side, -1), cache.dilate).ravel() & free
        can_change = int(free.sum())
        if self.whole and not moved.any():
            assert not choice.keyframe and not chosen.any()
            return
        if self.calls + 1 >= cache.keyframe_every:
            assert choice.keyframe
        if cache.threshold == 0 and moved.any():
            assert choice.why == "changed"
        if choice.keyframe:
            assert (chosen == free).all() and choice.clean.size == 0
            assert choice.dirty == can_change / total
            return
        assert not (near & ~chosen).any()
        assert choice.blocks.size % max(1, total // 8) == 0 or choice.blocks.size == can_change
        assert choice.blocks.size < 3 * can_change // 4 + max(1, total // 8)
        assert choice.dirty == choice.blocks.size / total
        assert choice.blocks.size >= min(cache.check, can_change)
        assert choice.clean.tolist() == np.flatnonzero(chosen & ~above).tolist()
        assert (np.diff(choice.blocks) > 0).all()

    def count(self, choice: Choice, frame: np.ndarray, identical: bool) -> None:
        if choice.blocks.size == frame.size:
            self.age, self.calls, self.whole = np.zeros(frame.size, int), 0, True
            self.reference = frame.copy()
            return
        if choice.keyframe:
            self.calls, self.whole = 0, True
            self.age += 1
            self.age[choice.blocks] = 0
            self.reference[choice.blocks] = frame[choice.blocks]
            return
        if not identical:
            self.calls += 1
            self.age += 1
        self.age[choice.blocks] = 0
        self.reference[choice.blocks] = frame[choice.blocks]
        self.whole = self.whole and not choice.blocks.size


def settings(random: np.random.Generator) -> Setting:
    side = int(random.choice([1, 2, 3, 4, 8]))
    padding = [0, 0]
    padding[random.integers(2)] = int(random.choice([0, 1, 2]))
    top, left = (min(n, side - 1) for n in padding)
    return setting(
        side,
        top,
        left,
        threshold=float(random.choice([0, 0.05, 0.3, 10])),
        keyframe_every=int(random.choice([1, 2, 7, 1000])),
        max_age=int(random.choice([1, 2, 5, 1000])),
        dilate=int(random.choice([0, 1, 2])),
        check=int(random.choice([0, 1, 3])),
    )


def next_frame(frame: np.ndarray, random: np.random.Generator, now: Setting) -> np.ndarray:
    """The same, a little noise, some blocks changed, or another scene; padding as it is."""
    return np.where(now.free(), _next_frame(frame, random), 0).astype(np.float32)


def _next_frame(frame: np.ndarray, random: np.random.Generator) -> np.ndarray:
    kind = random.integers(5)
    if kind == 0:
        return frame
    if kind == 1:
        return random.random(frame.size).astype(np.float32)
    strength = 0.02 if kind == 2 else 1.0
    where = random.random(frame.size) < (1 if kind == 2 else random.random() ** 3)
    return (frame + where * strength * random.standard_normal(frame.size)).astype(np.float32)


@pytest.mark.parametrize("seed", range(60))
def test_any_life_of_a_camera(seed: int) -> None:
    random = np.random.default_rng(seed)
    now = settings(random)
    camera = Camera(now, random)
    choices = []
    for _ in range(50):
        event = random.integers(20)
        if event == 0:
            camera.blocks.forget()
            camera.now = None
        elif event == 1:
            now = replace(now, prompt=(*now.prompt, int(random.integers(9))))
        elif event == 2:
            now = replace(now, skipped=(int(random.integers(9)),))
        elif event == 3 and now.cache.padding:  # a frame of another shape
            now = replace(now, padding=now.padding[::-1])
            camera.frame = next_frame(camera.frame, random, now)
        elif event == 4:  # the camera is gone for a while: its scene moves on
            camera.frame = next_frame(camera.frame, random, now)
            continue
        else:
            camera.frame = next_frame(camera.frame, random, now)
        choices.append(camera.call(now, camera.frame))
    assert choices[0].why == "first"
    if now.cache.threshold == 0:
        assert {choice.dirty for choice in choices} <= {0, now.free().mean(), 1}


def test_lives_reach_every_kind_of_call() -> None:
    """Otherwise the test above would show less than it says."""
    seen = set()
    for seed in range(20):
        random = np.random.default_rng(seed)
        now = settings(random)
        camera = Camera(now, random)
        for _ in range(50):
            camera.frame = next_frame(camera.frame, random, now)
            choice = camera.call(now, camera.frame)
            kind = choice.why or ("partial" if choice.blocks.size else "reuse")
            seen.add((kind, now.cache.padding))
    kinds = ("first", "changed", "every n", "scene", "partial", "reuse")
    assert seen == {(kind, padding) for kind in kinds for padding in (False, True)}
