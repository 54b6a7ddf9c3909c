"""The native core does with every field of a plan what the torch reference does with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from needs import needs

from smolvla_edge.noise import normal
from smolvla_edge.plan import Cache, Plan, Skip
from smolvla_edge.source import Source, open_source
from smolvla_edge.synthetic import TINY_VLM, make_checkpoint

with needs("torch"):
    from smolvla_edge.backends.torch import TorchBackend
from smolvla_edge.backends.native import NativeBackend

BOUND = 2e-5  # of the largest action, as for golden cases
PATCH = 8  # 8 x 8 of them in a frame, in 4 x 4 blocks
TOKENS = np.array([5, 9, 31])
LEFT_OVER = normal(3, 3, 6) * 0.3
CACHE = Cache(0.05, 1000, 1000, dilate=0, check=0)

PLANS = {
    "fewer steps": Plan(steps=2),
    "more steps": Plan(steps=7),
    "horizon": Plan(steps=4, horizon=3),
    "schedule": Plan(steps=3, schedule=(1, 0.7, 0.2, 0)),
    "ab2": Plan(steps=5, solver="ab2"),
    "ab2 of a schedule": Plan(steps=3, solver="ab2", schedule=(1, 0.7, 0.2, 0)),
    "warm start": Plan(steps=3, warm_start=0.6),
    "warm start, ab2, schedule": Plan(
        steps=3, solver="ab2", schedule=(1, 0.7, 0.2, 0), warm_start=0.6
    ),
    "adaptive, one more": Plan(steps=6, adaptive=(-1.0, -1.0)),
    "adaptive, three more": Plan(steps=6, adaptive=(1.0, -1.0)),
    "adaptive, the rest": Plan(steps=7, adaptive=(1.0, 1.0)),
    "adaptive from a warm start": Plan(steps=7, adaptive=(1.0, -1.0), warm_start=0.5),
    "stops at once": Plan(steps=6, stop=100.0),
    "never stops": Plan(steps=6, stop=0.0),
    "stop of ab2": Plan(steps=6, solver="ab2", stop=100.0),
    "skip vision": Plan(steps=4, skip=Skip(vision=(1,))),
    "skip all of vision": Plan(steps=4, skip=Skip(vision=(0, 1))),
    "skip the language model": Plan(steps=4, skip=Skip(vlm=(1, 2))),
    "skip all of the language model": Plan(steps=4, skip=Skip(vlm=(0, 1, 2, 3))),
    "skip the expert": Plan(steps=4, skip=Skip(expert=(0, 3))),
    "skip everywhere": Plan(steps=4, skip=Skip(vision=(0,), vlm=(2,), expert=(1,))),
    "reuse": Plan(steps=4, skip=Skip(reuse=((), (1, 2), (1,), (0, 1, 2, 3)))),
    "reuse, skip, ab2, warm start": Plan(
        steps=4, solver="ab2", warm_start=0.5, skip=Skip(expert=(3,), reuse=((), (1,), (), (2,)))
    ),
    "exit": Plan(steps=4, exit=3),
    "exit at once": Plan(steps=4, exit=1),
    "exit, skip, reuse": Plan(
        steps=4, exit=3, skip=Skip(vlm=(1,), expert=(1,), reuse=((), (0, 3), (), (2,)))
    ),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    vlm = replace(TINY_VLM, patch_size=PATCH, vision_layers=3)
    made = open_source(make_checkpoint(tmp_path_factory.mktemp("t") / "c", "tiny", vlm=vlm))
    return replace(made, model=replace(made.model, exits=(1, 2, 3)))


@pytest.fixture(scope="module")
def both(source: Source) -> tuple[NativeBackend, TorchBackend]:
    parts = source.model, source.tensors, source.contract
    # One thread of torch's: tests run in two processes, and its threads wait by turning.
    return NativeBackend(*parts, threads=2), TorchBackend(*parts, threads=1)


@pytest.fixture
def pair(both: tuple[Any, Any]) -> Iterator[tuple[Any, Any]]:
    for backend in both:
        backend.reset()
    yield both


def state(source: Source) -> np.ndarray:
    return np.linspace(-1, 1, source.model.state_dim, dtype=np.float32)


def noise(source: Source) -> np.ndarray:
    return normal(1, source.model.chunk_size, source.model.max_action_dim)


def frame(seed: int) -> np.ndarray:
    """Blotches: what is near is alike, as in a picture."""
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)


def close(got: np.ndarray, want: np.ndarray) -> None:
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= BOUND * np.abs(want).max()


@pytest.mark.parametrize("guided", [False, True], ids=["", "guided"])
@pytest.mark.parametrize("name", PLANS)
def test_plans(pair: tuple[Any, Any], source: Source, name: str, guided: bool) -> None:
    plan = PLANS[name]
    if plan.warm_start is None and not guided:
        rest = None
    else:
        rest = source.contract.guidance(LEFT_OVER[:, : source.model.action_dim].copy(), 1, None)
    usual = []
    results = []
    for backend in pair:
        arguments = [frame(1), frame(2)], TOKENS, state(source), noise(source)
        results.append(backend.predict(*arguments, plan, rest))
        usual.append(backend.predict(*arguments, Plan(steps=4), rest if guided else None))
    native, torch_ = results
    close(native.normalized, torch_.normalized)
    assert native.evaluations == torch_.evaluations
    if "horizon" not in name and not ("skip all of the language" in name and guided):
        assert np.abs(native.normalized - usual[0].normalized).max() > 10 * BOUND


def test_seams_follow_the_plan(pair: tuple[Any, Any], source: Source) -> None:
    native, torch_ = pair
    size = source.model.image_size
    pixels = normal(5, 3 * size, size).reshape(1, 3, size, size).clip(-1, 1)
    yes = np.ones(1, bool)
    padded = np.zeros(source.model.max_state_dim, np.float32)
    prompt = (yes, TOKENS, np.ones(3, bool), padded, noise(source))
    plan = PLANS["skip everywhere"]
    close(
        native.sample_actions(pixels, *prompt, plan), torch_.sample_actions(pixels, *prompt, plan)
    )
    traces = [backend.trace(pixels, *prompt, plan) for backend in pair]
    for name in ("out.connector.0", "out.kv.2.key", "out.v_t.step3"):
        close(*(trace[name] for trace in traces))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_an_exit_is_the_model_with_so_many_layers(
    pair: tuple[Any, Any], source: Source, layers: int
) -> None:
    shorter = replace(source.model, text_layers=layers, expert_layers=layers, exits=())
    kept = {
        name: entry
        for name, entry in source.tensors.items()
        if not any(
            name.startswith(f"{part}.layers.{i}.")
            for part in ("text", "expert")
            for i in range(layers, source.model.text_layers)
        )
    }
    arguments = [frame(1), frame(2)], TOKENS, state(source), noise(source)
    for backend, kind in zip(pair, (NativeBackend, TorchBackend), strict=True):
        got = backend.predict(*arguments, Plan(steps=4, exit=layers))
        want = kind(shorter, kept, source.contract, threads=1).predict(*arguments, Plan(steps=4))
        close(got.normalized, want.normalized)


class TestCache:
    def see(self, pair: tuple[Any, Any], source: Source, frames: list[Any], plan: Plan) -> Any:
        """What both say of these frames, which must be the same, and the native actions."""
        native, torch_ = (
            backend.predict(frames, TOKENS, state(source), noise(source), plan) for backend in pair
        )
        close(native.normalized, torch_.normalized)
        for ours, theirs in zip(native.cache, torch_.cache, strict=True):
            assert (ours is None) == (theirs is None)
            if ours is None:
                continue
            assert replace(ours, drift=None) == replace(theirs, drift=None)
            assert (ours.drift is None) == (theirs.drift is None)
            if ours.drift is not None:
                assert ours.drift == pytest.approx(theirs.drift, rel=1e-2, abs=1e-5)
        return native.cache, native.normalized

    def changed(self, picture: np.ndarray, block: int, by: int) -> np.ndarray:
        result = picture.copy()
        y, x = block // 4 * 16, block % 4 * 16
        result[y : y + 16, x : x + 16] ^= by
        return result

    def test_a_camera_that_stands(self, pair: tuple[Any, Any], source: Source) -> None:
        """Something moves in front of it, block by block, and the rest flickers."""
        plan = Plan(steps=4, cache=CACHE)
        random = np.random.default_rng(0)
        kinds = []
        for call in range(8):
            now = self.changed(frame(1), 5 + call % 4, 0x80) if call else frame(1)
            now = np.where(now > 250, now, now + random.integers(0, 3, now.shape)).astype(np.uint8)
            (report, _), _ = self.see(pair, source, [now, frame(2)], plan)
            kinds.append((report.keyframe, report.dirty))
        assert kinds[0] == (True, 1.0) and all(0 < dirty < 0.5 for _, dirty in kinds[1:])

    @pytest.mark.parametrize(
        "rule",
        [
            replace(CACHE, dilate=1),
            replace(CACHE, check=3),
            replace(CACHE, max_age=2),
            replace(CACHE, keyframe_every=3),
            replace(CACHE, threshold=0),
            Cache(0.05, 5, 3, dilate=1, check=1),
        ],
        ids=["dilate", "check", "max_age", "keyframe_every", "zero", "all"],
    )
    def test_rules(self, pair: tuple[Any, Any], source: Source, rule: Cache) -> None:
        """Any sequence of changes, standstills, cuts and lost cameras."""
        plan = Plan(steps=4, cache=rule)
        random = np.random.default_rng(7)
        now = frame(1)
        for _ in range(14):
            kind = random.integers(0, 6)
            if kind == 0:
                now = frame(int(random.integers(0, 100)))
            elif kind < 3:
                now = self.changed(now, int(random.integers(0, 16)), int(random.integers(1, 256)))
            elif kind == 3:
                now = now ^ 1
            second = None if kind == 4 else frame(2)
            self.see(pair, source, [now, second], plan)

    @pytest.mark.parametrize(
        "rule",
        [
            CACHE,
            replace(CACHE, threshold=0),
            Cache(0.05, 5, 3, dilate=1, check=1),
        ],
        ids=["plain", "zero", "all"],
    )
    def test_padding(self, pair: tuple[Any, Any], source: Source, rule: Cache) -> None:
        """Frames of 4:3 and 3:4: a row of blocks at the top or a column at the left is padding."""
        plan = Plan(steps=4, cache=replace(rule, padding=True))
        random = np.random.default_rng(11)
        now, tall, kept = frame(1)[:48], False, set()
        for _ in range(20):
            kind = random.integers(0, 8)
            if kind == 0:
                now = frame(int(random.integers(0, 100)))[:48]
            elif kind < 4:
                now = self.changed(now, int(random.integers(0, 12)), int(random.integers(1, 256)))
            elif kind == 4:
                tall = not tall
            elif kind == 5:
                now = now ^ 1
            shown = now.transpose(1, 0, 2).copy() if tall else now
            second = None if kind == 6 else frame(2)
            (report, _), _ = self.see(pair, source, [shown, second], plan)
            kept.add((report.why, report.dirty))
        assert ("frame size", 1) in kept and any(why and dirty == 0.75 for why, dirty in kept)

    def test_padding_is_not_made_again(self, pair: tuple[Any, Any], source: Source) -> None:
        """Until a reset the other tokens of another scene see the padding of the first."""
        plan = Plan(steps=4, cache=replace(CACHE, padding=True))
        first, second = frame(1)[:48], frame(2)[:48]
        seen = {}
        for name, frames in {"late": [first, second], "early": [second]}.items():
            for picture in frames:
                (report, _), seen[name] = self.see(pair, source, [picture, None], plan)
            for backend in pair:
                backend.reset()
            assert report.dirty == (0.75 if name == "late" else 1)
        assert np.abs(seen["late"] - seen["early"]).max() > 10 * BOUND

    @pytest.mark.parametrize(
        "more",
        [
            Plan(steps=4),
            Plan(steps=6, stop=0.5),
            Plan(steps=6, adaptive=(1.0, 0.0), horizon=5),
            Plan(steps=2, skip=Skip(expert=(1,), reuse=((), (0,)))),
            Plan(steps=2, skip=Skip(reuse=((), (1, 3)))),
        ],
        ids=["", "stop", "adaptive", "reuse", "reuse all"],
    )
    def test_attended(self, pair: tuple[Any, Any], source: Source, more: Plan) -> None:
        """What flickers is computed where the expert looked, the same blocks by both: two whole
        buckets, since what fills one is chosen by changes, and these are often equal."""
        rule = replace(CACHE, attended=4, padding=True)
        random = np.random.default_rng(2)
        first, second = frame(1)[:48], frame(2)
        dirty = set()
        for call in range(8):
            first, second = (
                np.minimum(x, 250) + random.integers(0, 3, x.shape, np.uint8)
                for x in (first, second)
            )
            frames = [first, None if call == 4 else second]
            reports, _ = self.see(pair, source, frames, replace(more, cache=rule))
            dirty |= {report.dirty for report in reports[:1]} if call else set()
        looked = more.skip.reuse != ((), (1, 3))  # those of cross-attention
        assert dirty == ({0.25} if looked else {0.0})

    def test_without_padding_nothing_differs(self, pair: tuple[Any, Any], source: Source) -> None:
        native, answers = pair[0], []
        for padding in (False, True):
            rule = Cache(0.05, 4, 3, dilate=1, check=1, padding=padding)
            random, now = np.random.default_rng(5), frame(1)
            native.reset()
            answers.append([])
            for _ in range(10):
                now = self.changed(now, int(random.integers(16)), int(random.integers(1, 256)))
                result = native.predict(
                    [now, None], TOKENS, state(source), noise(source), Plan(steps=4, cache=rule)
                )
                answers[-1].append((result.actions.tobytes(), result.cache))
        assert answers[0] == answers[1]

    def test_prompt_reset_and_size(self, pair: tuple[Any, Any], source: Source) -> None:
        plan = Plan(steps=4, cache=CACHE)
        frames = [frame(1), frame(2)]
        self.see(pair, source, frames, plan)
        for backend in pair:
            result = backend.predict(frames, TOKENS[:2], state(source), noise(source), plan)
            assert [report.why for report in result.cache] == ["prompt", "prompt"]
            backend.reset()
        (report, _), _ = self.see(pair, source, frames, plan)
        assert report.why == "first"
        other = replace(plan, skip=Skip(vision=(2,)))
        (report, _), _ = self.see(pair, source, frames, other)
        assert report.why == "plan"

    def test_zero_is_exact_in_every_bit(self, pair: tuple[Any, Any], source: Source) -> None:
        native = pair[0]
        plan = Plan(steps=4, cache=replace(CACHE, threshold=0))
        random = np.random.default_rng(3)
        now = frame(1)
        reused = 0
        for _ in range(20):
            if random.integers(0, 2):
                now = now.copy()
                now[tuple(random.integers(0, (64, 64, 3)))] ^= 1
            arguments = [now, frame(2)], TOKENS, state(source), noise(source)
            cached = native.predict(*arguments, plan)
            exact = native.predict(*arguments, Plan(steps=4))
            assert cached.actions.tobytes() == exact.actions.tobytes()
            reused += cached.cache[0].dirty == 0
        assert 0 < reused < 20
