"""The token cache in the torch reference: what it computes, from what, and how far that is off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from needs import needs

from smolvla_edge.cache_report import CacheReport
from smolvla_edge.errors import InputError
from smolvla_edge.plan import Cache, Plan, Skip
from smolvla_edge.source import open_source
from smolvla_edge.synthetic import TINY_VLM, make_checkpoint

with needs("torch"):
    import torch

    from smolvla_edge.model import load_model
    from smolvla_edge.model.layers import split_heads
    from smolvla_edge.model.token_cache import CameraCache, block_change, token_drift
    from smolvla_edge.model.vision import KeptKeys, block_rows, pixel_shuffle

SIDE, PATCH = 64, 8  # of the frame and its patches: 8 x 8 of them, in 4 x 4 blocks, by twos
BLOCK = 16
PROMPT = (5, 9)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    vlm = replace(TINY_VLM, patch_size=PATCH, vision_layers=3)
    source = open_source(make_checkpoint(tmp_path_factory.mktemp("t") / "c", "tiny", vlm=vlm))
    with torch.inference_mode():
        yield load_model(source.model, source.tensors)


def picture(seed: int) -> Any:
    """A frame of coloured blotches [1, 3, 64, 64] in [-1, 1]."""
    coarse = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bilinear") * 1.6 - 0.8


def noise(seed: int, strength: float) -> Any:
    """Of this strength in units of [0, 1]."""
    random = torch.Generator().manual_seed(seed)
    return (torch.rand(1, 3, SIDE, SIDE, generator=random) * 2 - 1) * 2 * strength


def cache(threshold: float, **more: Any) -> Cache:
    plain = {"keyframe_every": 1000, "max_age": 1000, "dilate": 0, "check": 0}
    return Cache(threshold, **{**plain, **more})


class Camera:
    def __init__(self, model: Any, settings: Cache, skip: Skip | None = None) -> None:
        self.model, self.settings, self.kept = model, settings, CameraCache()
        self.plan = Plan(cache=settings, skip=skip or Skip())

    def see(self, frame: Any, prompt: tuple[int, ...] = PROMPT) -> tuple[Any, Any]:
        return self.kept.encode(self.model, frame, prompt, self.plan, self.settings)

    def report(self, frame: Any) -> Any:
        return self.see(frame)[1]

    def exact(self, frame: Any) -> Any:
        return self.model.encode_image(frame, skip=self.plan.skip.vision)


def close(got: Any, want: Any) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=2e-6 * float(want.abs().max()))


class TestPasses:
    @pytest.mark.parametrize("skip", [(), (1,)])
    def test_over_all_blocks_is_a_whole_pass(self, model: Any, skip: tuple[int, ...]) -> None:
        """Whatever was kept before; to rounding, since the rows come in another order."""
        frame, kept = picture(1), KeptKeys()
        first = model.encode_image(picture(2), skip=skip, kept=kept)
        got = model.encode_blocks(frame, torch.arange(16), kept, skip)
        want = model.encode_image(frame, skip=skip)
        close(got, want)
        assert float((first - want).abs().max()) > 0.1 * float(want.abs().max())
        again = model.encode_blocks(frame, torch.tensor([3, 4, 9]), kept, skip)
        close(again, want[:, [3, 4, 9]])

    def test_a_whole_pass_that_keeps_is_the_same_to_the_bit(self, model: Any) -> None:
        frame = picture(1)
        assert torch.equal(model.encode_image(frame, kept=KeptKeys()), model.encode_image(frame))

    def test_over_some_blocks_by_hand(self, model: Any) -> None:
        """Chosen rows read the kept keys and values of all others."""
        old, new, blocks = picture(1), picture(2), torch.tensor([2, 7, 8])
        kept = KeptKeys()
        model.encode_image(old, kept=kept)
        got = model.encode_blocks(new, blocks, kept)
        vision = model.vision
        rows = [int(r) for r in block_rows(blocks, 8, 2)]
        inputs, x = [], vision.embed(old)
        for layer in vision.layers:
            inputs.append(x)
            x = layer(x)
        x = vision.embed(new)[:, rows]
        for layer, before in zip(vision.layers, inputs, strict=True):
            read = layer.norm1(before)
            read[:, rows] = layer.norm1(x)
            attn = layer.attn
            q, k, v = (
                split_heads(m(y), attn.head_dim).transpose(1, 2)
                for m, y in ((attn.q, read[:, rows]), (attn.k, read), (attn.v, read))
            )
            scores = (q @ k.transpose(2, 3) * attn.head_dim**-0.5).softmax(-1)
            x = x + attn.o((scores @ v).transpose(1, 2).flatten(2))
            x = x + layer.mlp(layer.norm2(x))
        want = model.connector(vision.norm(x).view(1, 3, -1))
        close(got, want)

    @pytest.mark.parametrize("side, scale", [(8, 2), (8, 4), (3, 1), (6, 3)])
    def test_rows_of_blocks_as_the_pixel_shuffle_stacks_them(self, side: int, scale: int) -> None:
        blocks = torch.randperm((side // scale) ** 2)
        numbers = torch.arange(side * side).view(1, -1, 1)
        want = pixel_shuffle(numbers, scale)[0, blocks].flatten()
        assert torch.equal(block_rows(blocks, side, scale), want)


class TestChange:
    @pytest.mark.parametrize("height, width", [(64, 64), (71, 66)])
    def test_is_of_the_patch_that_changed_most(self, height: int, width: int) -> None:
        random = np.random.default_rng(3)
        a, b = (random.random((3, height, width)).astype(np.float32) * 2 - 1 for _ in range(2))
        got = block_change(torch.from_numpy(b)[None], torch.from_numpy(a)[None], PATCH, 2)
        difference = np.abs(b.astype(np.float64) - a) / 2  # of frames in [0, 1]
        for block in range(16):
            patches = [
                difference[:, y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH].mean()
                for y in (block // 4 * 2, block // 4 * 2 + 1)
                for x in (block % 4 * 2, block % 4 * 2 + 1)
            ]
            assert float(got[block]) == pytest.approx(max(patches), rel=1e-5)

    def test_one_pixel(self) -> None:
        a = torch.zeros(1, 3, SIDE, SIDE)
        b = a.clone()
        b[0, 1, 17, 40] = 2 / 255
        change = block_change(b, a, PATCH, 2)
        assert change.nonzero().flatten().tolist() == [6]
        assert float(change[6]) == pytest.approx(1 / 255 / (3 * PATCH * PATCH))

    def test_drift_is_the_worst_token(self) -> None:
        new = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]])
        old = torch.tensor([[3.0, 4.5], [0.0, 0.0], [1.0, 0.2]])
        assert token_drift(new, old) == pytest.approx(0.2)
        assert token_drift(new[:2], new[:2]) == 0


class TestExact:
    """A threshold of 0."""

    def test_all_or_nothing_to_the_bit(self, model: Any) -> None:
        camera = Camera(model, cache(0, check=1, dilate=1, max_age=1))
        frame = picture(1)
        pixel = frame.clone()
        pixel[0, 2, 63, 0] += 1 / 128
        frames = [frame, frame.clone(), pixel, pixel, frame, picture(2), picture(2)]
        seen = [camera.see(frame) for frame in frames]
        for frame, (tokens, _) in zip(frames, seen, strict=True):
            assert torch.equal(tokens, camera.exact(frame))
        whys = ["first", None, "changed", None, "changed", "changed", None]
        assert [report.why for _, report in seen] == whys
        assert [report.dirty for _, report in seen] == [1, 0, 1, 0, 1, 1, 0]
        assert all(report.drift is None and report.oldest == 0 for _, report in seen)

    def test_prompt_and_forgetting(self, model: Any) -> None:
        camera = Camera(model, cache(0))
        assert camera.see(picture(1))[1].why == "first"
        assert camera.see(picture(1), (5,))[1].why == "prompt"
        camera.plan = replace(camera.plan, skip=Skip(vision=(0,)))
        tokens, report = camera.see(picture(1), (5,))
        assert report.why == "plan" and torch.equal(tokens, camera.exact(picture(1)))


class TestReuse:
    def test_everything_under_a_huge_threshold(self, model: Any) -> None:
        camera = Camera(model, cache(10))
        first, _ = camera.see(picture(1))
        for age in (1, 2, 3):
            tokens, report = camera.see(picture(1 + age))
            assert torch.equal(tokens, first)
            assert report == CacheReport(False, None, 0.0, age, None)

    def test_a_thing_that_moves(self, model: Any) -> None:
        """Its old and its new place are computed, the rest is of the frame before."""
        camera = Camera(model, cache(0.02))
        frames = []
        for place in (0, 1, 2):  # blocks of the second row
            frame = picture(1)
            frame[:, :, BLOCK : 2 * BLOCK, place * BLOCK : (place + 1) * BLOCK] *= -1
            frames.append(frame)
        tokens, _ = camera.see(frames[0])
        for number, changed in ((1, [4, 5]), (2, [5, 6])):
            now, report = camera.see(frames[number])
            assert report == CacheReport(False, None, 2 / 16, number, None)
            differ = (now != tokens).any(2)[0].nonzero().flatten().tolist()
            assert differ == changed
            exact = camera.exact(frames[number])[0, changed]
            old, new = ((x[0, changed] - exact).norm(dim=1) for x in (tokens, now))
            assert (new < 0.5 * old).all()
            tokens = now

    def test_neighbours_are_computed_with_it(self, model: Any) -> None:
        camera = Camera(model, cache(0.02, dilate=1))
        before, _ = camera.see(picture(1))
        frame = picture(1)
        frame[:, :, :BLOCK, :BLOCK] *= -1
        now, report = camera.see(frame)
        assert (now != before).any(2)[0].nonzero().flatten().tolist() == [0, 1, 4, 5]
        drift = token_drift(now[0, [1, 4, 5]], before[0, [1, 4, 5]])
        assert report == CacheReport(False, None, 4 / 16, 1, drift)

    @pytest.mark.parametrize("moved", ["camera", "scene"])
    def test_when_most_changes_all_is_computed(self, model: Any, moved: str) -> None:
        camera = Camera(model, cache(0.02))
        camera.see(picture(1))
        frame = picture(1).roll((5, 3), (2, 3)) if moved == "camera" else picture(2)
        tokens, report = camera.see(frame)
        assert report == CacheReport(True, "scene", 1.0, 0, None)
        assert torch.equal(tokens, camera.exact(frame))
        assert torch.equal(camera.see(frame)[0], tokens)

    def test_flicker_is_not_seen(self, model: Any) -> None:
        """Nothing is computed but the blocks of the check, and they are nearly what they were."""
        still, checked = Camera(model, cache(0.02)), Camera(model, cache(0.02, check=2))
        first, _ = still.see(picture(1))
        checked.see(picture(1))
        for number in range(1, 12):
            frame = picture(1) + noise(number, 0.01)
            tokens, report = still.see(frame)
            assert torch.equal(tokens, first) and report.dirty == 0 and report.oldest == number
            tokens, report = checked.see(frame)
            assert report.dirty == 2 / 16 and report.oldest == min(number, 7)
            assert report.drift is not None and 0 < report.drift < 0.1

    def test_slow_light_is_seen_in_the_end(self, model: Any) -> None:
        """Against the frame that the tokens are of, not against the last one."""
        camera = Camera(model, cache(0.01))
        whys = [camera.report(picture(1) + 2 * 0.004 * n).why for n in range(8)]
        assert whys == ["first", None, None, "scene", None, None, "scene", None]

    def test_slow_light_in_a_corner(self, model: Any) -> None:
        """A block that was computed starts anew, the others do not."""
        camera = Camera(model, cache(0.01))
        slow, fast = [5, 6, 7, 9, 10, 11], [14, 15]
        light = torch.zeros(1, 3, SIDE, SIDE)
        light[:, :, BLOCK : 3 * BLOCK, BLOCK:] = 2 * 0.004
        light[:, :, 3 * BLOCK :, 2 * BLOCK :] = 2 * 0.008
        computed, before = [], camera.see(picture(1))[0]
        for n in range(1, 7):
            now, report = camera.see(picture(1) + n * light)
            computed.append((now != before).any(2)[0].nonzero().flatten().tolist())
            before = now
            assert not report.keyframe
        assert computed == [[], fast, slow, fast, [], [*slow, *fast]]

    def test_drift_is_of_clean_blocks(self, model: Any) -> None:
        """What reusing them would have meant; the one that changed does not count."""
        camera = Camera(model, cache(0.02))
        before, _ = camera.see(picture(1))
        frame = picture(1) + noise(7, 0.005)
        frame[:, :, :BLOCK, :BLOCK] *= -1
        now, report = camera.see(frame)
        error = ((now - before).norm(dim=2) / now.norm(dim=2))[0]
        changed, filled = error.nonzero().flatten().tolist()
        assert changed == 0 and error[changed] > 2 * error[filled]
        assert report.drift == pytest.approx(float(error[filled]))

    def test_ages(self, model: Any) -> None:
        """The first block is computed in every call and keeps the others company for three."""
        camera = Camera(model, cache(0.02, max_age=3, keyframe_every=7))
        reports = []
        for number in range(10):
            frame = picture(1)
            frame[:, :, :BLOCK, :BLOCK] *= (-1) ** number
            reports.append(camera.report(frame))
        whys = ["first", None, None, "scene", None, None, "scene", None, None, "scene"]
        assert [report.why for report in reports] == whys
        assert [report.oldest for report in reports] == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]

    def test_every_n(self, model: Any) -> None:
        camera = Camera(model, cache(0.02, keyframe_every=3))
        frames = [picture(1) + noise(n, 0.005) for n in range(7)]
        whys = [camera.report(frame).why for frame in frames]
        assert whys == ["first", None, None, "every n", None, None, "every n"]

    def test_padding_that_is_kept(self, model: Any) -> None:
        """Black at the top, and the camera moves: three quarters are computed, against that."""
        camera = Camera(model, cache(0.02, padding=True))
        frames = [picture(1), picture(2)]
        for frame in frames:
            frame[:, :, :BLOCK] = -1
        before = camera.kept.encode(
            model, frames[0], PROMPT, camera.plan, camera.settings, (48, 64)
        )[0]
        now, report = camera.kept.encode(
            model, frames[1], PROMPT, camera.plan, camera.settings, (48, 64)
        )
        assert report == CacheReport(True, "scene", 0.75, 0, None)
        assert torch.equal(now[:, :4], before[:, :4])
        kept = KeptKeys()
        model.encode_image(frames[0], kept=kept)
        close(now[:, 4:], model.encode_blocks(frames[1], torch.arange(4, 16), kept))
        assert not torch.allclose(now[:, 4:], camera.exact(frames[1])[:, 4:])

    def test_with_layers_left_out(self, model: Any) -> None:
        camera = Camera(model, cache(0.02), Skip(vision=(0, 2)))
        camera.see(picture(1))
        frame = picture(1)
        frame[:, :, :BLOCK, :BLOCK] *= -1
        tokens, report = camera.see(frame)
        assert report.dirty == 2 / 16
        exact = camera.exact(frame)
        assert float((tokens - exact)[0, 0].norm() / exact[0, 0].norm()) < 1e-3


class TestNothingKept:
    def test_a_frame_that_is_not_square(self, model: Any) -> None:
        """The pixel shuffle mixes patches of 4 x 16 over the picture."""
        camera = Camera(model, cache(10))
        wide = torch.cat((picture(1), picture(2)), 3)[:, :, : SIDE // 2]
        for _ in range(2):
            tokens, report = camera.see(wide)
            assert report is None and torch.equal(tokens, camera.exact(wide))
        first = camera.see(picture(1))
        camera.see(wide)
        again = camera.see(picture(2))
        assert first[1].why == "first" and again[1] == CacheReport(False, None, 0.0, 1, None)
        assert torch.equal(again[0], first[0])

    def test_another_size(self, model: Any) -> None:
        camera = Camera(model, cache(10))
        assert camera.report(picture(1)).why == "first"
        small = picture(1)[:, :, :32, :32]
        tokens, report = camera.see(small)
        assert report.why == "frame size" and torch.equal(tokens, camera.exact(small))

    def test_a_size_that_fits_nothing(self, model: Any) -> None:
        camera = Camera(model, cache(10))
        camera.see(picture(1))
        with pytest.raises(InputError, match="divides by 2"):
            camera.see(picture(1)[:, :, :24, :24])
        assert camera.report(picture(1)).why == "first"

    @pytest.mark.parametrize("method", ["encode_image", "encode_blocks"])
    def test_after_a_failure(
        self, model: Any, monkeypatch: pytest.MonkeyPatch, method: str
    ) -> None:
        camera = Camera(model, cache(0.02, keyframe_every=2))
        frame = picture(1)
        frame[:, :, :BLOCK, :BLOCK] *= -1
        camera.see(picture(1))
        if method == "encode_image":
            camera.see(frame)

        def fail(*arguments: Any, **named: Any) -> Any:
            raise MemoryError("no room")

        with monkeypatch.context() as broken:
            broken.setattr(model, method, fail)
            with pytest.raises(MemoryError):
                camera.see(frame)
        tokens, report = camera.see(frame)
        assert report.why == "first" and torch.equal(tokens, camera.exact(frame))
