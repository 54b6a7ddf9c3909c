"""Every tensor accounted for; every other kind of folder refused by name."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from checkpoint_helpers import (
    GOLDEN,
    change_json,
    change_tensors,
    golden_index,
)

from smolvla_edge.checkpoint import read_checkpoint
from smolvla_edge.config import parse_vlm_config
from smolvla_edge.errors import (
    CheckpointError,
    ContractError,
    TokenizerError,
)
from smolvla_edge.names import canonical_name, expected_tensors
from smolvla_edge.safetensors_file import SafetensorsFile
from smolvla_edge.synthetic import make_checkpoint

VARIANTS = golden_index(GOLDEN / "tiny")["variants"]
TEXT = "model.vlm_with_expert.vlm.model.text_model."
EXPERT = "model.vlm_with_expert.lm_expert."


@pytest.mark.parametrize("case", VARIANTS)
def test_golden_checkpoints(case, tmp_path):
    """Every case as a user's folder: config.json, weights, the VLM's sizes, perhaps processors."""
    target = shutil.copytree(GOLDEN / "tiny" / case, tmp_path / case)
    shutil.copy(GOLDEN / "tiny" / VARIANTS[case]["weights"], target / "model.safetensors")
    (target / "vlm_config.json").write_text(json.dumps(VARIANTS[case]["vlm"]))
    piped = case.startswith("pipeline")
    checkpoint = read_checkpoint(target, allow_unnormalized=not piped)
    stored = SafetensorsFile(target / "model.safetensors").entries
    assert len(checkpoint.tensors) + len(checkpoint.dead) == len(stored)
    assert len(checkpoint.dead) == 8
    for name, entry in checkpoint.tensors.items():
        assert canonical_name(entry.name) == name and stored[entry.name] == entry
    if piped:
        assert checkpoint.tokenizer_file == target / "tokenizer" / "tokenizer.json"


def test_what_a_checkpoint_tells(pristine):
    checkpoint = read_checkpoint(str(pristine))
    assert checkpoint.path == pristine
    assert checkpoint.model.text_layers == 4 and checkpoint.policy.num_vlm_layers == 4
    assert checkpoint.dtype_counts == {"F32": 14, "BF16": 102}
    assert checkpoint.tokenizer_file == pristine / "tokenizer" / "tokenizer.json"
    assert checkpoint.contract.cameras == checkpoint.policy.cameras
    assert checkpoint.provenance == {
        "source": str(pristine),
        "vlm_config": "vlm_config.json",
        "weights": [
            {
                "file": "model.safetensors",
                "bytes": (pristine / "model.safetensors").stat().st_size,
            }
        ],
    }


@pytest.mark.parametrize("dtypes", ["F32", "BF16", "F16"])
def test_pure_dtypes(dtypes, tmp_path):
    checkpoint = read_checkpoint(make_checkpoint(tmp_path / "c", "tiny", dtypes=dtypes))
    assert checkpoint.dtype_counts == {dtypes: 116}


@pytest.mark.parametrize(
    "overrides",
    [
        {"num_vlm_layers": 0},
        {"num_vlm_layers": 6, "num_expert_layers": 2, "self_attn_every_n_layers": -1},
        {"num_expert_layers": 2, "self_attn_every_n_layers": 4},
        {"num_expert_layers": 1, "attention_mode": "cross_attn", "self_attn_every_n_layers": 0},
        {"attention_mode": "self_attn"},
        {"self_attn_every_n_layers": 3},
        {"expert_width_multiplier": 0.5},
        {"expert_width_multiplier": 1.25},
        {"add_image_special_tokens": True},
        {"prefix_length": 40},
        {"empty_cameras": 2},
        {"pad_language_to": "max_length"},
        {"resize_imgs_with_padding": None},
        {"resize_imgs_with_padding": [128, 32]},
    ],
    ids=str,
)
def test_every_layout_is_read_back(overrides, tmp_path):
    checkpoint = read_checkpoint(make_checkpoint(tmp_path / "c", "tiny", overrides=overrides))
    specs = expected_tensors(checkpoint.model)
    assert checkpoint.tensors.keys() == {n for n, spec in specs.items() if not spec.dead}
    assert checkpoint.dead.keys() == {n for n, spec in specs.items() if spec.dead}


def test_aloha(tmp_path):
    made = make_checkpoint(
        tmp_path / "c",
        "tiny",
        state_dim=14,
        action_dim=14,
        overrides={"adapt_to_pi_aloha": True, "max_state_dim": 16, "max_action_dim": 16},
    )
    assert read_checkpoint(made).model.adapt_to_pi_aloha


def test_compiled_names(folder):
    def wrap(tensors):
        for name in list(tensors):
            tensors[name.replace("model.", "model._orig_mod.", 1)] = tensors.pop(name)

    expected = read_checkpoint(folder).tensors.keys()
    change_tensors(folder, wrap)
    assert read_checkpoint(folder).tensors.keys() == expected


def test_dead_tensors_may_be_absent(folder):
    def drop(tensors):
        del tensors["model.vlm_with_expert.vlm.lm_head.weight"]
        del tensors[TEXT + "norm.weight"]
        del tensors[TEXT + "layers.3.mlp.up_proj.weight"]

    change_tensors(folder, drop)
    assert len(read_checkpoint(folder).dead) == 5


def test_more_vlm_layers_in_the_file_than_the_policy_keeps(folder):
    """LeRobot loads the first num_vlm_layers and ignores the rest; so do we, by name."""

    def extend(tensors):
        for name in [n for n in tensors if n.startswith(TEXT + "layers.0.")]:
            for layer in (4, 5):
                tensors[name.replace("layers.0.", f"layers.{layer}.")] = tensors[name]

    change_tensors(folder, extend)
    checkpoint = read_checkpoint(folder)
    assert checkpoint.model.text_layers == 4
    assert len(checkpoint.dead) == 8 + 2 * 9
    assert "text.layers.5.attn.k.weight" in checkpoint.dead


def test_32_layers(tmp_path):
    """All layers of the known VLM's depth, at a tiny width."""
    raw = json.loads((make_checkpoint(tmp_path / "t", "tiny") / "vlm_config.json").read_text())
    raw["text_config"]["num_hidden_layers"] = 32
    made = make_checkpoint(
        tmp_path / "c", "tiny", vlm=parse_vlm_config(raw), overrides={"num_vlm_layers": 0}
    )
    checkpoint = read_checkpoint(made)
    assert checkpoint.model.text_layers == checkpoint.model.expert_layers == 32
    change_json(made / "config.json", num_vlm_layers=16)
    with pytest.raises(CheckpointError, match=r"144 tensors.*16 VLM and 16 expert.*and 124 more"):
        read_checkpoint(made)


def change_first(name, change):
    def apply(tensors):
        dtype, values = tensors[name]
        tensors[name] = (dtype, change(values))

    return apply


def rename(old, new):
    return lambda tensors: tensors.update({new: tensors.pop(old)})


STATE = "model.state_proj.weight"
BAD_TENSORS = {
    "unknown": (
        lambda t: t.update({"model.extra.weight": ("F32", np.zeros(1, np.float32))}),
        "1 tensors .* belong to nothing.*model.extra.weight",
    ),
    "live missing": (lambda t: t.pop(STATE), "1 tensors are missing.*model.state_proj.weight"),
    "a layer missing": (
        lambda t: [t.pop(n) for n in list(t) if n.startswith(TEXT + "layers.3.")],
        r"asks for 4 VLM layers \(the file holds 3\)",
    ),
    "wrong shape": (
        change_first(STATE, lambda a: a[:, :5].copy()),
        r"state_proj.weight: expected \[96, 10\], got \[96, 5\]",
    ),
    "wrong shape of a dead one": (
        change_first(TEXT + "norm.weight", lambda a: a[:5].copy()),
        r"norm.weight: expected \[96\], got \[5\]",
    ),
    "transposed": (change_first(STATE, lambda a: a.T.copy()), r"expected \[96, 10\], got \[10"),
    "integers": (
        lambda t: t.update({STATE: ("I32", np.zeros((96, 10), np.int32))}),
        r"F32, BF16, F16, got model.state_proj.weight \(I32\)",
    ),
    "doubles": (
        lambda t: t.update({STATE: ("F64", np.zeros((96, 10)))}),
        r"state_proj.weight \(F64\)",
    ),
    "same tensor twice": (
        lambda t: t.update({"model._orig_mod.state_proj.weight": t[STATE]}),
        "are the same tensor",
    ),
    "adapter weights": (
        rename(STATE, "base_model.model.model.state_proj.lora_A.weight"),
        "lora_A.weight belongs to a PEFT adapter",
    ),
    "adapter's base": (rename(STATE, "model.state_proj.base_layer.weight"), "PEFT adapter"),
    "one expert layer more": (
        lambda t: t.update(
            {EXPERT + "layers.4.input_layernorm.weight": ("F32", np.ones(72, np.float32))}
        ),
        "4 VLM and 4 expert layers: .*layers.4.input_layernorm",
    ),
}


@pytest.mark.parametrize("kind", BAD_TENSORS)
def test_tensors_that_do_not_fit_are_refused(kind, folder):
    change, message = BAD_TENSORS[kind]
    change_tensors(folder, change)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expert_width_multiplier": 0.5}, r"expected \[\d+, 48\], got \[\d+, 72\]"),
        ({"num_vlm_layers": 3}, "belong to nothing"),
        ({"num_vlm_layers": 6}, r"6 VLM layers \(the file holds 4\)"),
        ({"self_attn_every_n_layers": 1}, r"k_proj.weight: expected \[32, 72\], got \[32, 32\]"),
        ({"max_state_dim": 32}, r"state_proj.weight: expected \[96, 32\], got \[96, 10\]"),
        ({"n_obs_steps": 3}, "n_obs_steps"),
        ({"use_peft": True}, "PEFT"),
        ({"type": "pi0"}, "'smolvla', got 'pi0'"),
    ],
    ids=str,
)
def test_a_configuration_that_contradicts_the_file_is_refused(changes, message, folder):
    change_json(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(folder)


def test_vlm_sizes_are_checked_against_the_shapes(folder):
    raw = json.loads((folder / "vlm_config.json").read_text())
    raw["vision_config"]["patch_size"] = 8
    (folder / "vlm_config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=r"expected \[64, 3, 8, 8\], got \[64, 3, 16, 16\]"):
        read_checkpoint(folder)
    (folder / "vlm_config.json").unlink()  # the known 500 M sizes do not fit either
    with pytest.raises(CheckpointError, match=r"missing|another shape"):
        read_checkpoint(folder)


def test_statistics_inside_the_model_reach_the_contract(folder):
    for path in [*folder.glob("policy_*")]:
        path.unlink()
    mean, std = np.arange(6, dtype=np.float32), np.ones(6, np.float32)

    def add(tensors):
        for key in (
            "normalize_inputs.buffer_observation_state",
            "unnormalize_outputs.buffer_action",
        ):
            tensors[key + ".mean"] = ("F32", mean)
            tensors[key + ".std"] = ("F32", std)

    change_tensors(folder, add)
    checkpoint = read_checkpoint(folder)
    assert len(checkpoint.tensors) == 116
    assert checkpoint.contract.state.values["mean"] == tuple(mean)
    assert checkpoint.contract.action.values["std"] == tuple(std)


# Folders


def test_an_adapter_folder_is_refused_by_name(folder):
    (folder / "adapter_config.json").write_text("{}")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_config\.json.*merge_and_unload"):
        read_checkpoint(folder)


def test_pickled_weights_are_never_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*never read"):
        read_checkpoint(folder)


def test_a_folder_without_policy_names_the_one_inside(folder, tmp_path):
    run = tmp_path / "run"
    folder_inside = run / "checkpoints" / "000100" / "pretrained_model"
    folder_inside.parent.mkdir(parents=True)
    folder.rename(folder_inside)
    with pytest.raises(CheckpointError, match=r"did you mean .*000100/pretrained_model"):
        read_checkpoint(run)
    with pytest.raises(CheckpointError, match="found none there"):
        read_checkpoint(folder_inside / "tokenizer")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"type": 1, "type": 2}', b"\xff", b"{" * 10**5])
def test_a_damaged_config_is_refused(content, folder):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json: expected a JSON object"):
        read_checkpoint(folder)


@pytest.mark.parametrize("depth", [33, 500, *range(900, 1000)])
def test_nesting_that_the_parser_allows_is_refused_too(depth, folder):
    """Python's parser stops near 1000 levels; who prints or hashes such a value, a bit earlier."""
    text = '{"type": "smolvla", "n_obs_steps": ' + "[" * depth + "]" * depth + "}"
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="nested too deeply"):
        read_checkpoint(folder)


@pytest.mark.parametrize("name", ["policy_preprocessor.json", "policy_postprocessor.json"])
def test_a_named_pipe_does_not_hang(name, folder):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ContractError, match="regular file"):
        read_checkpoint(folder)


def test_a_gigantic_config_is_refused(folder):
    with open(folder / "config.json", "wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(CheckpointError, match="larger than"):
        read_checkpoint(folder)


# The tokenizer


def test_no_tokenizer_is_no_error_until_it_is_needed(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no cache"))
    shutil.rmtree(folder / "tokenizer")
    assert read_checkpoint(folder).tokenizer_file is None


def test_an_explicit_tokenizer_must_exist(folder):
    with pytest.raises(TokenizerError, match=r"nowhere\.json"):
        read_checkpoint(folder, tokenizer="nowhere.json")
