"""The token cache's decision where padding is kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from token_blocks_helpers import change, choose, setting, started

FREE = list(range(16, 64))  # two rows at the top of 8 x 8 blocks are padding, as of a frame of 4:3


class TestPadding:
    @pytest.mark.parametrize(
        "why, changes",
        [
            ("frame size", {"padding": (1, 0)}),
            ("frame size", {"padding": (0, 2)}),
            ("frame size", {"size": (128, 128), "padding": (1, 0)}),
            ("prompt", {"prompt": (5,), "padding": (1, 0)}),
            ("plan", {"skipped": (1,), "padding": (1, 0)}),
            ("plan", {"cache": setting().cache, "padding": (0, 0)}),
        ],
    )
    def test_is_computed_when_nothing_fits(self, why: str, changes: dict[str, Any]) -> None:
        blocks = started(setting(top=2))
        choice = choose(blocks, replace(setting(top=2), **changes), change())
        assert (choice.why, choice.blocks.size, choice.dirty) == (why, 64, 1)

    def test_is_computed_after_forgetting(self) -> None:
        blocks = started(setting(top=2))
        blocks.forget()
        assert choose(blocks, setting(top=2), change()).blocks.size == 64

    @pytest.mark.parametrize(
        "why, cache, moved",
        [
            ("changed", {"threshold": 0}, change(b20=1e-6)),
            ("every n", {"keyframe_every": 1}, change(b20=0.1)),
            ("scene", {}, np.repeat(np.float32([0, 0.6]), [27, 37])),
        ],
    )
    def test_stays_at_other_keyframes(
        self, why: str, cache: dict[str, Any], moved: np.ndarray
    ) -> None:
        now = setting(top=2, **cache)
        blocks = started(now)
        for _ in range(2):
            choice = choose(blocks, now, moved)
            assert (choice.why, choice.blocks.tolist()) == (why, FREE)
            assert (choice.dirty, choice.oldest, choice.clean.size) == (0.75, 0, 0)
            assert choose(blocks, now, change()).blocks.size == 0

    def test_a_scene_is_three_quarters_of_what_can_change(self) -> None:
        now = setting(top=2)
        moved = change()
        moved[16 : 16 + 36] = 0.6
        assert choose(started(now), now, moved).blocks.size == 40
        moved[16 + 36] = 0.6
        assert choose(started(now), now, moved).why == "scene"

    def test_is_no_neighbour_and_fills_nothing(self) -> None:
        now = setting(left=2, dilate=1, check=1)
        choice = choose(started(now), now, change(b26=0.6))
        ring, checked, filled = [18, 19, 26, 27, 34, 35], [2], [3]
        assert choice.blocks.tolist() == sorted(ring + checked + filled)

    def test_has_no_age(self) -> None:
        now = setting(top=2, max_age=3)
        blocks = started(now)
        oldest = [choose(blocks, now, change(b20=0.1)).oldest for _ in range(2)]
        choice = choose(blocks, now, change(b20=0.1))
        assert oldest == [1, 2]
        assert (choice.why, choice.blocks.tolist(), choice.oldest) == ("scene", FREE, 0)

    def test_a_bucket_ends_with_the_frame(self) -> None:
        """Of 5 x 5 blocks, in buckets of three, five can change: one below the other."""
        now = setting(5, left=4)
        blocks = started(now)
        moved = change(5, b4=0.6, b9=0.6, b14=0.6)
        assert choose(blocks, now, moved).blocks.tolist() == [4, 9, 14]
        moved[19] = 0.6
        assert choose(blocks, now, moved).why == "scene"
