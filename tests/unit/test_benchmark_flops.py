"""Counted operations against hand numbers, and the list of operations against the count."""

from __future__ import annotations

import benchmark_helpers  # noqa: F401  (puts the repository on the path)
import pytest

from benchmarks.flops import exact_flops, image_tokens, reference_flops
from benchmarks.shapes import ATTENTIONS, LINEARS, AttentionShape, LinearShape, total_flops
from smolvla_edge.config import ModelConfig, build_model_config, parse_policy_config
from smolvla_edge.synthetic import _SIZES
from smolvla_edge.synthetic_files import lerobot_config


def model_of(size: str) -> ModelConfig:
    vlm, settings = _SIZES[size]
    config = lerobot_config(["observation.images.camera1"], 6, 6, settings)
    return build_model_config(parse_policy_config(config, "test"), vlm)


def test_one_linear_by_hand():
    assert LinearShape("x", 50, 720, 2048, 1).flops == 2 * 50 * 720 * 2048


def test_one_attention_by_hand():
    full = AttentionShape("x", 3, 5, heads=2, kv_heads=1, calls=1)
    assert full.lengths == [5, 5, 5]
    assert full.flops == 4 * 15 * 2 * 64  # q k and p v, a multiply and an add each
    causal = AttentionShape("x", 3, 5, heads=2, kv_heads=1, calls=1, causal=True)
    assert causal.lengths == [3, 4, 5]
    assert causal.flops == 4 * 12 * 2 * 64


def test_the_list_of_operations_is_the_whole_chunk():
    """No operation forgotten, none counted twice: 1 camera, 48 valid tokens, to the last flop."""
    assert total_flops() == exact_flops(model_of("full"), 1, 48)["total"]


def test_the_shapes_that_the_issue_names_are_in_the_list():
    shapes = {(s.rows, s.depth, s.out) for s in LINEARS}
    assert {(1024, 768, 3072), (1024, 3072, 768), (113, 2560, 960), (50, 2048, 720)} <= shapes
    assert {(s.rows, s.keys) for s in ATTENTIONS} == {
        (1024, 1024),
        (113, 113),
        (50, 163),
        (50, 113),
    }


def test_vision_by_hand():
    """12 layers of 768 wide over 1024 patches, mlp 3072; 64 tokens of 16 patches to 960."""
    layer = 2 * 1024 * 768 * (4 * 768 + 2 * 3072) + 4 * 1024 * 1024 * 768
    patches, connector = 2 * 1024 * 768 * 768, 2 * 64 * 12288 * 960
    model = model_of("full")
    assert image_tokens(model) == 64
    assert exact_flops(model, 1, 12)["vision"] == 12 * layer + patches + connector
    assert exact_flops(model, 3, 12)["vision"] == 3 * exact_flops(model, 1, 12)["vision"]


def test_lerobots_count_is_that_of_torchs_counter():
    """Measured with torch's flop counter: 36.3 GFLOP prefix, 106.1 flow (113 rows, 10 steps)."""
    counts = reference_flops(model_of("full"), 1, 48)
    assert counts["prefix"] * 1e-9 == pytest.approx(36.3, abs=0.05)
    assert counts["flow"] * 1e-9 == pytest.approx(106.1, abs=0.05)
    assert counts["total"] * 1e-9 == pytest.approx(357.8, abs=0.1)


def test_the_exact_reductions_save_work_and_padding_costs_it():
    model = model_of("full")
    assert exact_flops(model, 1, 48)["total"] < reference_flops(model, 1, 48)["total"]
    assert exact_flops(model, 1, 12)["total"] < exact_flops(model, 1, 48)["total"]


def test_libero_has_every_vlm_layer_and_a_narrow_expert():
    model = model_of("libero")
    assert (model.text_layers, model.expert_layers) == (32, 32)
    assert (model.expert_width, model.expert_mlp) == (480, 1280)
    rows, inner, kv = 64 + 12 + 1, 960, 320
    layer = 2 * rows * 960 * (2 * inner + 2 * kv) + 4 * rows**2 * inner + 6 * rows * 960 * 2560
    last = 2 * rows * 960 * 2 * kv  # only keys and values of the last layer are read
    hoisted = 16 * 2 * rows * kv * 2 * kv
    assert exact_flops(model, 1, 12)["prefix"] == 31 * layer + last + hoisted
