"""The token cache: blocks that the expert looked at are computed in the next call."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from needs import needs
from token_blocks_helpers import BLOCKS, change, choose, setting, started

with needs("torch"):
    import torch

    from smolvla_edge.model.layers import attend, attention_mass
    from smolvla_edge.model.prefix import embed_prefix, image_places
from smolvla_edge.errors import PlanError
from smolvla_edge.plan import Cache, Plan
from smolvla_edge.plan_fit import check_fit
from smolvla_edge.source import Source, open_source
from smolvla_edge.synthetic import make_checkpoint


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_source(make_checkpoint(tmp_path_factory.mktemp("t") / "c", "tiny"))


def mass(**blocks: float) -> np.ndarray:
    """Of the blocks b<number>; little, and the less the later, of the others."""
    return np.linspace(0.1, 0, BLOCKS, dtype=np.float32) + change(**blocks)


class TestChoice:
    NOW = setting(attended=3)

    def test_the_most_looked_at(self) -> None:
        blocks = started(self.NOW)
        blocks.attend(mass(b60=2, b5=1, b33=3, b9=0.5))
        choice = choose(blocks, self.NOW, change(b20=0.6))
        looked_at, filled = [5, 33, 60], [0, 1, 2, 3]
        assert choice.blocks.tolist() == sorted([*looked_at, *filled, 20])
        assert 20 not in choice.clean and set(looked_at) <= set(choice.clean)

    def test_the_first_of_equals(self) -> None:
        blocks = started(self.NOW)
        blocks.attend(np.ones(BLOCKS, np.float32))
        choice = choose(blocks, self.NOW, change(b63=0.4))
        assert {0, 1, 2} <= set(choice.blocks) and choice.blocks.size == 8

    def test_only_the_next_call(self) -> None:
        blocks = started(self.NOW)
        blocks.attend(mass(b60=2))
        assert choose(blocks, self.NOW, change(b20=0.1)).blocks.size == 8
        assert choose(blocks, self.NOW, change(b20=0.1)).blocks.size == 0

    def test_an_identical_frame_needs_none(self) -> None:
        blocks = started(self.NOW)
        blocks.attend(mass(b60=2))
        assert choose(blocks, self.NOW, change()).blocks.size == 0

    @pytest.mark.parametrize("other", [replace(NOW, prompt=(1,)), replace(NOW, size=(128, 128))])
    def test_nothing_of_another_setting(self, other: object) -> None:
        blocks = started(self.NOW)
        blocks.attend(mass(b60=2))
        assert choose(blocks, other, change()).blocks.size == BLOCKS
        assert choose(blocks, other, change(b20=0.1)).blocks.size == 0

    def test_forgotten(self) -> None:
        blocks = started(self.NOW)
        blocks.attend(mass(b60=2))
        blocks.forget()
        choose(blocks, self.NOW, change())
        assert choose(blocks, self.NOW, change(b20=0.1)).blocks.size == 0

    def test_counts_for_a_scene(self) -> None:
        now = setting(attended=1)
        moved = change()
        moved[:48] = 0.6
        for block, why in ((47, None), (48, "scene")):
            blocks = started(now)
            blocks.attend(mass(**{f"b{block}": 1}))
            assert choose(blocks, now, moved).why == why

    def test_padding_is_not_looked_at(self) -> None:
        now = setting(top=2, attended=2)
        blocks = started(now)
        blocks.attend(mass(b3=9, b40=1, b50=2))
        choice = choose(blocks, now, change(b20=0.1))
        assert {40, 50} <= set(choice.blocks) and (choice.blocks >= 16).all()

    def test_no_numbers_say_nothing(self) -> None:
        blocks = started(self.NOW)
        blocks.attend(mass(b3=np.nan))
        assert choose(blocks, self.NOW, change(b20=0.1)).blocks.size == 0


def test_mass_is_what_attention_multiplies_values_with() -> None:
    """Values that name their key: what comes out is the weights."""
    random = torch.Generator().manual_seed(1)
    q = torch.randn(2, 5, 6, 8, generator=random)
    k = torch.randn(2, 8, 3, 8, generator=random)
    mask = torch.rand(2, 5, 8, generator=random) < 0.7
    mask[:, :, 0] = True
    names = torch.eye(8)[None, :, None].expand(2, 8, 3, 8)
    want = attend(q, k, names, mask).unflatten(2, (6, 8)).sum((1, 2))
    torch.testing.assert_close(attention_mass(q, k, mask), want)
    assert want.sum() == pytest.approx(2 * 5 * 6)


@pytest.mark.parametrize("special", [False, True])
def test_places_of_images(source: Source, special: bool) -> None:
    ids = {"fake_token_id": 1, "global_token_id": 2}
    config = replace(source.model, add_image_special_tokens=special, **ids)
    images = [torch.full((1, n, config.text_width), float(n)) for n in (4, 9)]
    prefix = embed_prefix(
        config,
        torch.nn.Embedding(config.vocab, config.text_width),
        torch.nn.Linear(config.max_state_dim, config.text_width),
        images,
        torch.ones(1, 2, dtype=torch.bool),
        torch.tensor([[3]]),
        torch.ones(1, 1, dtype=torch.bool),
        torch.zeros(1, config.max_state_dim),
    )
    for place, image in zip(image_places(config, images), images, strict=True):
        want = image * config.text_width**0.5
        torch.testing.assert_close(prefix.embeddings[:, place], want)


def test_an_expert_without_cross_attention(source: Source) -> None:
    plan = Plan(cache=Cache(0.1, 10, 8, attended=1))
    check_fit(plan, source.model, source.contract)
    with pytest.raises(PlanError, match=r"cache\.attended.*cross"):
        check_fit(plan, replace(source.model, cross_attention=False), source.contract)
