"""Names in both directions, shapes, and which tensors are dead."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from checkpoint_helpers import GOLDEN, golden_index

from smolvla_edge.config import (
    KNOWN_VLMS,
    build_model_config,
    parse_vlm_config,
    read_policy_config,
)
from smolvla_edge.names import (
    canonical_name,
    expected_tensors,
    is_statistics_name,
    lerobot_name,
    text_layer_count,
)
from smolvla_edge.safetensors_file import SafetensorsFile

DEAD_PARTS = ("attn.q", "attn.o", "norm2", "mlp.gate", "mlp.up", "mlp.down")


def full_model():
    policy = read_policy_config(GOLDEN / "full" / "config.json")
    return build_model_config(policy, KNOWN_VLMS[policy.vlm_model_name])


def full_list():
    for line in (GOLDEN / "state_dict_full.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, shape, dtype, *_ = line.split("\t")
            yield name, tuple(json.loads(shape)), dtype


def test_the_full_model_is_lerobots_500_tensors():
    specs = expected_tensors(full_model())
    listed = {canonical_name(name): shape for name, shape, _ in full_list()}
    assert len(listed) == 500
    assert listed == {name: spec.shape for name, spec in specs.items()}


def test_names_round_trip():
    for name, _, _ in full_list():
        assert lerobot_name(canonical_name(name)) == name


def test_eight_tensors_of_the_full_model_are_dead():
    dead = {name for name, spec in expected_tensors(full_model()).items() if spec.dead}
    assert dead == {"text.norm.weight", "text.head.weight"} | {
        f"text.layers.15.{part}.weight" for part in DEAD_PARTS
    }


@pytest.mark.parametrize("case", golden_index(GOLDEN / "tiny")["variants"])
def test_every_golden_checkpoint_holds_exactly_the_expected_tensors(case):
    variant = golden_index(GOLDEN / "tiny")["variants"][case]
    policy = read_policy_config(GOLDEN / "tiny" / case / "config.json")
    specs = expected_tensors(build_model_config(policy, parse_vlm_config(variant["vlm"])))
    file = SafetensorsFile(GOLDEN / "tiny" / variant["weights"])
    stored = {canonical_name(name): entry.shape for name, entry in file.entries.items()}
    assert stored == {name: spec.shape for name, spec in specs.items()}


def test_layers_after_the_last_one_read_are_dead():
    """Two expert layers over four VLM layers, all cross: layer 2 is the last one read."""
    model = replace(full_model(), text_layers=4, expert_layers=2, self_attn_every_n=-1)
    specs = expected_tensors(model, stored_text_layers=5)
    live = {name for name, spec in specs.items() if not spec.dead and "text.layers" in name}
    assert all(f"text.layers.1.{part}.weight" in live for part in DEAD_PARTS)
    assert {name for name in live if "layers.2." in name} == {
        f"text.layers.2.{part}.weight" for part in ("norm1", "attn.k", "attn.v")
    }
    assert not any("layers.3." in name or "layers.4." in name for name in live)
    assert "text.layers.4.mlp.up.weight" in specs
    assert text_layer_count(specs) == 5


def test_cross_layers_project_the_keys_of_the_vlm():
    specs = expected_tensors(full_model())
    assert specs["expert.layers.0.attn.k.weight"].shape == (320, 720)
    assert specs["expert.layers.1.attn.k.weight"].shape == (320, 320)
    assert specs["expert.layers.1.attn.q.weight"].shape == (960, 720)


def test_compiled_names_are_the_same_tensors():
    plain = "model.vlm_with_expert.lm_expert.layers.3.self_attn.q_proj.weight"
    compiled = plain.replace("model.", "model._orig_mod.", 1)
    assert canonical_name(compiled) == canonical_name(plain) == "expert.layers.3.attn.q.weight"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "model",
        "state_proj.weight",
        "model.state_proj.weights",
        "model.vlm_with_expert.lm_expert.layers.01.mlp.up_proj.weight",
        "model.vlm_with_expert.lm_expert.layers.-1.mlp.up_proj.weight",
        "model.vlm_with_expert.lm_expert.layers.x.mlp.up_proj.weight",
        "model.vlm_with_expert.lm_expert.layers.1.mlp.up_proj",
        "model.vlm_with_expert.lm_expert.layers.1.mlp.up_proj.bias",
        "model.vlm_with_expert.lm_expert.layers.99999.mlp.up_proj.weight",
        "model.vlm_with_expert.lm_expert.embed_tokens.weight",
        "vision.patch.weight",
    ],
)
def test_unknown_names_are_none(name):
    assert canonical_name(name) is None


def test_a_name_that_is_not_ours_is_a_key_error():
    with pytest.raises(KeyError, match=r"expert\.layers\.0\.attn\.q\.bias"):
        lerobot_name("expert.layers.0.attn.q.bias")


@pytest.mark.parametrize(
    "name",
    [
        "normalize_inputs.buffer_observation_state.mean",
        "normalize_inputs.so100-red_buffer_observation_state.std",
        "normalize_targets.buffer_action.max",
        "unnormalize_outputs.so100_buffer_action.mean",
    ],
)
def test_statistics_of_the_older_layout_are_no_weights(name):
    assert is_statistics_name(name) and canonical_name(name) is None
