"""config.json of any age, the VLM's sizes, and everything that is refused."""

from __future__ import annotations

import json

import pytest
from checkpoint_helpers import GOLDEN, GOLDEN_EXTRA, golden_index

from smolvla_edge.config import (
    KNOWN_VLMS,
    ModelConfig,
    build_model_config,
    find_vlm_config,
    parse_policy_config,
    parse_vlm_config,
    read_policy_config,
)
from smolvla_edge.errors import CheckpointError, InputError
from smolvla_edge.vlm_config import vlm_config_json

VLM = KNOWN_VLMS["HuggingFaceTB/SmolVLM2-500M-Video-Instruct"]
FEATURES = {
    "input_features": {
        "observation.state": {"type": "STATE", "shape": [6]},
        "observation.images.top": {"type": "VISUAL", "shape": [3, 480, 640]},
    },
    "output_features": {"action": {"type": "ACTION", "shape": [6]}},
}
MINIMAL = {"type": "smolvla", **FEATURES}
CASES = {
    (folder, case): variant
    for folder in (GOLDEN / "tiny", GOLDEN_EXTRA)
    for case, variant in golden_index(folder)["variants"].items()
}
FAILURES = {
    (folder, case): failure
    for folder in (GOLDEN / "tiny", GOLDEN_EXTRA)
    for case, failure in golden_index(folder)["reference_failures"].items()
    if not failure.get("rtc")  # those are about a call, not about a configuration
}
# LeRobot returns fewer actions than the features promise; the contract would be a lie.
REFUSED_THOUGH_IT_RUNS = {"action_too_wide"}


def model(policy=None, vlm=VLM, **changes):
    return build_model_config(parse_policy_config({**MINIMAL, **(policy or {}), **changes}), vlm)


@pytest.mark.parametrize(("folder", "case"), CASES, ids=lambda value: getattr(value, "name", value))
def test_every_golden_configuration_is_read(folder, case):
    policy = read_policy_config(folder / case / "config.json")
    config = build_model_config(policy, parse_vlm_config(CASES[folder, case]["vlm"]))
    raw = json.loads((folder / case / "config.json").read_text())
    assert config.chunk_size == raw["chunk_size"]
    assert config.max_cameras == len(CASES[folder, case]["image_keys"])
    assert list(policy.cameras) == CASES[folder, case]["image_keys"]
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("folder", "case"), FAILURES, ids=lambda value: getattr(value, "name", value)
)
def test_what_fails_in_lerobot_is_refused_and_what_runs_there_works(folder, case):
    failure = FAILURES[folder, case]
    base = "base" if folder.name == "tiny" else "one_step"
    raw = json.loads((folder / base / "config.json").read_text()) | failure["overrides"]
    if case == "state_too_wide":
        raw["input_features"]["observation.state"]["shape"] = [12]
    if case == "action_too_wide":
        raw["output_features"]["action"]["shape"] = [12]
    vlm = parse_vlm_config(CASES[folder, base]["vlm"])
    if failure["result"] == "ran" and case not in REFUSED_THOUGH_IT_RUNS:
        build_model_config(parse_policy_config(raw), vlm)
    else:
        with pytest.raises(CheckpointError):
            build_model_config(parse_policy_config(raw), vlm)


def test_a_minimal_old_file_gets_lerobots_defaults():
    config = model(some_key_of_the_future={"a": [1]})
    assert config == model()
    assert (config.chunk_size, config.num_steps, config.text_layers) == (50, 10, 16)
    assert (config.expert_width, config.expert_mlp, config.expert_layers) == (720, 2048, 16)
    assert config.resize == (512, 512) and config.tokens_per_image(512, 512) == 64
    assert config.cross_attention and config.self_attn_every_n == 2
    assert [config.is_self_layer(i) for i in range(3)] == [True, False, True]
    assert config.rope_theta == 10000.0
    assert config.last_used_text_layer == 15
    assert (config.fake_token_id, config.global_token_id) == (49189, 49152)


def test_zero_and_negative_counts_mean_off():
    assert model(num_expert_layers=0, prefix_length=0) == model()
    assert model(num_vlm_layers=0).text_layers == 32
    assert model(num_vlm_layers=-1, num_expert_layers=-1).expert_layers == 32
    assert model(num_vlm_layers=99).text_layers == 32  # slicing [:99] in LeRobot
    assert not model(self_attn_every_n_layers=0).is_self_layer(0)


def test_spread_expert_layers():
    config = model(num_expert_layers=4, self_attn_every_n_layers=-1)
    assert [config.expert_layer_of(i) for i in range(6)] == [0, None, None, None, 1, None]
    assert config.last_used_text_layer == 12


def test_self_attention_mode_has_no_cross_layers():
    config = model(attention_mode="self_attn")
    assert all(config.is_self_layer(i) for i in range(16))


@pytest.mark.parametrize(("multiplier", "width", "mlp"), [(0.5, 480, 1280), (1.0, 960, 2560)])
def test_expert_width(multiplier, width, mlp):
    config = model(expert_width_multiplier=multiplier)
    assert (config.expert_width, config.expert_mlp) == (width, mlp)


def test_empty_cameras_are_added_once_at_the_end():
    policy = parse_policy_config({**MINIMAL, "empty_cameras": 2})
    names = ("observation.images.top", "observation.images.empty_camera_0")
    assert policy.cameras == (*names, "observation.images.empty_camera_1")
    inputs = FEATURES["input_features"] | {names[1]: {"type": "VISUAL", "shape": [3, 480, 640]}}
    saved = parse_policy_config({**MINIMAL, "empty_cameras": 2, "input_features": inputs})
    assert saved.cameras == policy.cameras


def test_rtc_settings():
    assert parse_policy_config(MINIMAL).rtc.enabled is False
    rtc = {"enabled": True, "prefix_attention_schedule": "EXP", "max_guidance_weight": 5}
    settings = parse_policy_config({**MINIMAL, "rtc_config": rtc}).rtc
    assert (settings.enabled, settings.schedule, settings.max_guidance_weight) == (True, "EXP", 5.0)
    assert settings.execution_horizon == 10


def visual(shape):
    return {
        **FEATURES["input_features"],
        "observation.images.x": {"type": "VISUAL", "shape": shape},
    }


BAD_POLICIES = {
    "other policy": ({"type": "act"}, "'smolvla', got 'act'"),
    "no type": ({"type": None}, "'smolvla', got None"),
    "two observations": ({"n_obs_steps": 2}, "n_obs_steps.*1.*got 2"),
    "no cache": ({"use_cache": False}, "use_cache"),
    "delta actions": ({"use_delta_joint_actions_aloha": True}, "use_delta_joint_actions_aloha"),
    "adapter": ({"use_peft": True}, "PEFT adapter.*merge_and_unload"),
    "no inputs": ({"input_features": None}, "input_features: expected an object"),
    "no state": ({"input_features": visual([3, 4, 4]) | {"observation.state": 1}}, "state"),
    "state absent": (
        {"input_features": {"observation.images.top": {"type": "VISUAL", "shape": [3, 4, 4]}}},
        "feature named observation.state, got observation.images.top",
    ),
    "no camera": (
        {"input_features": {"observation.state": {"type": "STATE", "shape": [6]}}},
        "at least one VISUAL",
    ),
    "grey camera": ({"input_features": visual([1, 4, 4])}, r"RGB image.*\[1, 4, 4\]"),
    "camera without shape": ({"input_features": visual(None)}, "shape"),
    "unknown feature kind": (
        {"output_features": {"action": {"type": "TORQUE", "shape": [6]}}},
        "type: expected one of STATE",
    ),
    "no action": ({"output_features": {}}, "feature named action, got none"),
    "state wider than the model": ({"max_state_dim": 5}, r"at most 5 \(max_state_dim\)"),
    "action wider than the model": ({"max_action_dim": 5}, r"at most 5 \(max_action_dim\)"),
    "action matrix": (
        {"output_features": {"action": {"type": "ACTION", "shape": [2, 3]}}},
        r"vector.*\[2, 3\]",
    ),
    "more steps than the chunk": ({"n_action_steps": 51}, "from 1 to 50, got 51"),
    "no steps": ({"num_steps": 0}, "num_steps"),
    "steps as text": ({"num_steps": "10"}, "num_steps.*got '10'"),
    "steps as boolean": ({"num_steps": True}, "num_steps"),
    "huge chunk": ({"chunk_size": 10**9}, "chunk_size"),
    "resize of three": ({"resize_imgs_with_padding": [1, 2, 3]}, "null or"),
    "resize of nothing": ({"resize_imgs_with_padding": [0, 512]}, "null or"),
    "unknown padding": ({"pad_language_to": "shortest"}, "longest, max_length"),
    "period of zero": ({"min_period": 0}, "min_period"),
    "period beyond a bundle's limit": ({"max_period": 1e12}, r"max_period.*up to 1e\+09"),
    "dimensions beyond a bundle's limit": ({"max_state_dim": 1 << 17}, "max_state_dim"),
    "65 cameras": (
        {
            "input_features": FEATURES["input_features"]
            | {f"observation.images.{i}": {"type": "VISUAL", "shape": [3, 4, 4]} for i in range(64)}
        },
        "at most 64, got 65",
    ),
    "infinite period": ({"max_period": float("inf")}, "max_period"),
    "unknown normalisation": ({"normalization_mapping": {"STATE": "MAGIC"}}, "IDENTITY, MEAN_STD"),
    "flag as number": ({"adapt_to_pi_aloha": 1}, "true or false"),
    "aloha with six joints": ({"adapt_to_pi_aloha": True}, "at least 14 state dimensions"),
    "unknown guidance": ({"rtc_config": {"enabled": True, "mode": "magic"}}, "guided"),
    "unknown schedule": ({"rtc_config": {"prefix_attention_schedule": "COS"}}, "LINEAR, EXP"),
}


@pytest.mark.parametrize("kind", BAD_POLICIES)
def test_bad_policy_settings_are_refused(kind):
    changes, message = BAD_POLICIES[kind]
    with pytest.raises(CheckpointError, match=message):
        parse_policy_config({**MINIMAL, **changes}, "config.json")


BAD_MODELS = {
    "not spread evenly": ({"num_expert_layers": 5}, "cannot be spread evenly"),
    "more expert than VLM layers": ({"num_expert_layers": 32}, "at most text_layers = 16"),
    "built cross, run self": ({"num_expert_layers": 8}, "built for cross-attention but runs"),
    "self layer without expert": (
        {"num_expert_layers": 8, "self_attn_every_n_layers": 3},
        "self-attention layer without",
    ),
    "self mode without expert": (
        {"num_expert_layers": 8, "attention_mode": "self_attn"},
        "self-attention layer without",
    ),
    "odd expert width": ({"expert_width_multiplier": 0.7512}, "expert_width: expected an even"),
    "no expert width": ({"expert_width_multiplier": 1e-6}, "expert_width: expected a positive"),
    "patches no square": ({"resize_imgs_with_padding": [512, 256]}, "16x32 patches"),
    "root not divisible": ({"resize_imgs_with_padding": [480, 480]}, "30x30 patches"),
    "smaller than a patch": ({"resize_imgs_with_padding": [15, 15]}, "0x0 patches"),
}


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_models_that_lerobot_cannot_run_are_refused(kind):
    changes, message = BAD_MODELS[kind]
    with pytest.raises(CheckpointError, match=message):
        model(changes)


@pytest.mark.parametrize(
    ("size", "tokens"), [([256, 256], 16), ([1024, 256], 64), ([64, 1024], 16), ([520, 520], 64)]
)
def test_other_resizes_that_lerobot_can_run(size, tokens):
    config = model(resize_imgs_with_padding=size)
    assert config.tokens_per_image(*config.resize) == tokens


def test_no_resize_checks_each_frame_instead():
    config = model(resize_imgs_with_padding=None)
    assert config.resize is None
    assert config.tokens_per_image(512, 512) == 64
    with pytest.raises(InputError, match="640x480 pixels gives 30x40 patches"):
        config.tokens_per_image(640, 480)


def test_special_tokens_need_ids():
    assert model(add_image_special_tokens=True).add_image_special_tokens
    raw = vlm_config_json(VLM)
    del raw["image_special_tokens"]
    vlm = parse_vlm_config(raw)
    assert model(vlm=vlm).fake_token_id == -1
    with pytest.raises(CheckpointError, match="image_special_tokens"):
        model(vlm=vlm, add_image_special_tokens=True)


def test_vlm_config_round_trips_and_wins_over_the_table(tmp_path):
    assert parse_vlm_config(vlm_config_json(VLM)) == VLM
    assert find_vlm_config(tmp_path, next(iter(KNOWN_VLMS))) == (
        VLM,
        "known: HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
    )
    raw = vlm_config_json(VLM)
    raw["text_config"]["rms_norm_eps"] = 1e-3
    (tmp_path / "vlm_config.json").write_text(json.dumps(raw))
    assert find_vlm_config(tmp_path, "anything")[0].rms_eps == 1e-3
    assert find_vlm_config(tmp_path, "anything")[1] == "vlm_config.json"


def test_an_unknown_vlm_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(CheckpointError, match=r"'me/vlm'.*vlm_config\.json"):
        find_vlm_config(tmp_path, "me/vlm")


def test_absent_vlm_keys_have_transformers_class_defaults():
    """The Hub's own file leaves out what its classes default to."""
    vlm = parse_vlm_config(
        {
            "model_type": "smolvlm",
            "scale_factor": 4,
            "text_config": {
                "hidden_size": 960, "intermediate_size": 2560, "num_attention_heads": 15,
                "num_key_value_heads": 5, "vocab_size": 49280, "rms_norm_eps": 1e-5,
                "head_dim": None, "rope_theta": 100000, "dtype": "bfloat16",
            },
            "vision_config": {
                "hidden_size": 768, "image_size": 512, "num_attention_heads": 12, "patch_size": 16,
            },
            "image_special_tokens": {"fake": 49189, "glob": 49152},
        }
    )  # fmt: skip
    assert vlm == VLM


BAD_VLMS = {
    "no text": ({"text_config": None}, "text_config: expected an object"),
    "no width": ({"text_config": {}}, "hidden_size: expected an integer.*got nothing"),
    "text bias": ({"text_config": {"attention_bias": True}}, "attention_bias"),
    "text activation": ({"text_config": {"hidden_act": "gelu"}}, "hidden_act.*silu"),
    "vision activation": ({"vision_config": {"hidden_act": "gelu"}}, "gelu_pytorch_tanh"),
    "grey images": ({"vision_config": {"num_channels": 1}}, "num_channels"),
    "special id as text": ({"image_special_tokens": {"fake": "a", "glob": 1}}, "fake"),
    "special id missing": ({"image_special_tokens": {"fake": 1}}, "glob"),
    "too many layers": ({"text_config": {"hidden_size": 8, "num_hidden_layers": 10**6}}, "1024"),
}


@pytest.mark.parametrize("kind", BAD_VLMS)
def test_bad_vlm_configurations_are_refused(kind):
    changes, message = BAD_VLMS[kind]
    with pytest.raises(CheckpointError, match=message):
        parse_vlm_config({**vlm_config_json(VLM), **changes})


BAD_NUMBERS = {
    "heads shared unevenly": ({"kv_heads": 4}, "heads: expected a multiple of kv_heads = 4"),
    "odd rotary pairs": ({"head_dim": 63}, "head_dim: expected an even"),
    "vision heads": ({"vision_heads": 7}, "vision_width: expected a multiple"),
    "special id outside": ({"fake_token_id": 49280}, "below the vocabulary of 49280"),
    "patch over image": ({"patch_size": 1024}, "patch_size: expected at most image_size"),
    "zero layers": ({"text_layers": 0, "expert_layers": 0}, "text_layers: expected a positive"),
    "million layers": ({"text_layers": 10**6, "expert_layers": 1}, "at most 1024"),
    "text": ({"text_width": "960"}, "expected int, got '960'"),
    "boolean": ({"text_width": True}, "expected int, got True"),
    "number for a flag": ({"cross_attention": 1}, "expected bool"),
    "nan": ({"rms_eps": float("nan")}, "expected float"),
    "huge": ({"vocab": 10**30}, "vocab: expected a positive number up to 16777216"),
    "negative beyond the limit": ({"self_attn_every_n": -(1 << 25)}, "self_attn_every_n"),
    "huge float": ({"max_period": 1e12}, "max_period"),
    "huge resize": ({"resize": [1 << 20, 64]}, "sides from 1 to 16384"),
    "resize of nothing": ({"resize": [0, 64]}, "sides from 1 to 16384"),
    "resize": ({"resize": [512]}, "resize"),
    "unknown field": ({"more": 1}, r"unknown \['more'\]"),
}


@pytest.mark.parametrize("kind", BAD_NUMBERS)
def test_a_tampered_model_dict_is_refused(kind):
    changes, message = BAD_NUMBERS[kind]
    with pytest.raises(CheckpointError, match=message):
        ModelConfig.from_dict(model().to_dict() | changes)


def test_a_model_dict_with_a_field_missing_is_refused():
    raw = model().to_dict()
    del raw["vocab"]
    with pytest.raises(CheckpointError, match=r"missing \['vocab'\]"):
        ModelConfig.from_dict(raw)
