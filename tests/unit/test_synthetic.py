"""The synthetic checkpoint is LeRobot's file tensor by tensor, with the golden values."""

from __future__ import annotations

import json

import numpy as np
import pytest
from checkpoint_helpers import GOLDEN, golden_index
from tokenizers import Tokenizer

from smolvla_edge.checkpoint import read_checkpoint
from smolvla_edge.config import (
    KNOWN_VLMS,
    build_model_config,
    parse_vlm_config,
    read_policy_config,
)
from smolvla_edge.counter_values import CHUNK_ELEMS, counter_values, narrow, weight_chunks
from smolvla_edge.errors import CheckpointError
from smolvla_edge.safetensors_file import SafetensorsFile, SafetensorsWriter
from smolvla_edge.synthetic import make_checkpoint, weight_layouts, write_weights

FULL_FILE_BYTES = 906_712_552  # of lerobot/smolvla_base
# weights file -> a case that uses it; P is pure float32
GROUPS = {v["weights"]: c for c, v in golden_index(GOLDEN / "tiny")["variants"].items()}


def golden_model(case):
    variant = golden_index(GOLDEN / "tiny")["variants"][case]
    policy = read_policy_config(GOLDEN / "tiny" / case / "config.json")
    return build_model_config(policy, parse_vlm_config(variant["vlm"]))


def test_the_full_checkpoint_has_the_names_shapes_and_dtypes_of_smolvla_base():
    policy = read_policy_config(GOLDEN / "full" / "config.json")
    layouts = weight_layouts(build_model_config(policy, KNOWN_VLMS[policy.vlm_model_name]))
    listed = {}
    for line in (GOLDEN / "state_dict_full.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, shape, dtype, *_ = line.split("\t")
            listed[name] = (tuple(json.loads(shape)), dtype)
    assert {item.name: (item.shape, item.dtype) for item in layouts} == listed


def test_the_full_file_has_smolvla_bases_size_to_the_byte(tmp_path):
    policy = read_policy_config(GOLDEN / "full" / "config.json")
    layouts = weight_layouts(build_model_config(policy, KNOWN_VLMS[policy.vlm_model_name]))
    writer = SafetensorsWriter(tmp_path / "unwritten", layouts, {"format": "pt"})
    assert writer.file_bytes == FULL_FILE_BYTES


@pytest.mark.parametrize("weights", GROUPS)
def test_golden_weights_are_rebuilt_bit_for_bit(weights, tmp_path):
    dtypes = "F32" if weights.startswith("weights_P") else "mixed"
    write_weights(tmp_path / "w", golden_model(GROUPS[weights]), dtypes)
    assert (tmp_path / "w").read_bytes() == (GOLDEN / "tiny" / weights).read_bytes()


def test_golden_inputs_come_from_the_same_generator():
    """Seed 1, center and amp 0.5: the images that the full golden case does not store."""
    values = counter_values("in.image.0", 1, 0.5, 0.5, 1000)
    assert values.dtype == np.float32 and values.min() >= 0 and values.max() < 1
    assert abs(values.mean() - 0.5) < 0.03


def test_chunks_join_to_the_whole():
    name, count = "model.some.weight", CHUNK_ELEMS + 77
    chunks = [c.size for c in weight_chunks(name, (count, 1), "F32")]
    assert chunks == [CHUNK_ELEMS, 77]
    whole = counter_values(name, 3, 0.5, 0.25, count)
    parts = [counter_values(name, 3, 0.5, 0.25, n, s) for s, n in ((0, 10), (10, count - 10))]
    assert np.array_equal(whole, np.concatenate(parts))


def test_bfloat16_rounds_to_nearest_even():
    bits = np.array([0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001, 0xBF80FFFF], np.uint32)
    assert narrow(bits.view(np.float32), "BF16").tolist() == [
        0x3F80, 0x3F80, 0x3F82, 0x3F81, 0xBF81,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="I8"):
        narrow(bits.view(np.float32), "I8")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("synthetic") / "new" / "tiny", "tiny")


def test_the_folder_is_complete(tiny):
    assert sorted(path.name for path in tiny.iterdir()) == [
        "config.json",
        "model.safetensors",
        "policy_postprocessor.json",
        "policy_postprocessor_step_0_unnormalizer_processor.safetensors",
        "policy_preprocessor.json",
        "policy_preprocessor_step_5_normalizer_processor.safetensors",
        "tokenizer",
        "vlm_config.json",
    ]
    assert list(tiny.parent.iterdir()) == [tiny]
    contract = read_checkpoint(tiny).contract
    assert contract.state.mode.value == contract.action.mode.value == "MEAN_STD"
    assert len(contract.state.values["mean"]) == 6


def test_the_statistics_are_ordered(tiny):
    file = SafetensorsFile(tiny / "policy_preprocessor_step_5_normalizer_processor.safetensors")
    order = ["min", "q01", "q10", "q50", "q90", "q99", "max"]
    for feature in ("observation.state", "action"):
        values = np.array([file.read(f"{feature}.{stat}") for stat in order])
        assert (np.diff(values, axis=0) > 0).all()
        assert (file.read(f"{feature}.std") > 0).all()


@pytest.mark.parametrize("mode", ["IDENTITY", "MIN_MAX", "QUANTILES", "QUANTILE10"])
def test_every_normalisation_mode_finds_its_statistics(mode, tmp_path):
    mapping = {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode}
    made = make_checkpoint(tmp_path / "c", "tiny", overrides={"normalization_mapping": mapping})
    assert read_checkpoint(made).contract.state.mode.value == mode


def test_the_tokenizer_encodes_anything(tiny):
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer" / "tokenizer.json"))
    for text in ("pick up the red cube\n", "añade café ☕\n", "\x00\x7f", ""):
        ids = tokenizer.encode(text).ids
        assert len(ids) == len(text.encode())
        assert tokenizer.decode(ids) == text
    assert tokenizer.token_to_id("<|im_end|>") == 2


def test_the_same_seed_gives_the_same_bytes(tiny, tmp_path):
    same = make_checkpoint(tmp_path / "same", "tiny")
    other = make_checkpoint(tmp_path / "other", "tiny", seed=1)
    for path in tiny.iterdir():
        if path.is_file():
            assert (same / path.name).read_bytes() == path.read_bytes()
    weights = "model.safetensors"
    assert (other / weights).read_bytes() != (tiny / weights).read_bytes()


def test_progress_ends_at_the_whole(tmp_path):
    seen = []
    made = make_checkpoint(tmp_path / "c", "tiny", progress=lambda *step: seen.append(step))
    done = [step[0] for step in seen]
    assert done == sorted(done) and done[0] == 0
    file = SafetensorsFile(made / "model.safetensors")
    total = sum(entry.nbytes for entry in file.entries.values())
    assert seen[-1] == (total, total, "")
    assert {name for _, _, name in seen[:-1]} == set(file.entries)


def test_cameras_and_dimensions(tmp_path):
    made = make_checkpoint(
        tmp_path / "c", "tiny", cameras=["observation.images.wrist"], state_dim=3, action_dim=4
    )
    checkpoint = read_checkpoint(made)
    assert checkpoint.policy.cameras == ("observation.images.wrist",)
    assert (checkpoint.model.state_dim, checkpoint.model.action_dim) == (3, 4)


def test_an_existing_folder_is_never_overwritten(tiny, tmp_path):
    with pytest.raises(CheckpointError, match="exists already"):
        make_checkpoint(tiny, "tiny")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="exists already"):
        make_checkpoint(tmp_path / "file", "tiny")
    (tmp_path / "empty").mkdir()
    assert make_checkpoint(tmp_path / "empty", "tiny").is_dir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": "huge"}, "full, libero, tiny, got 'huge'"),
        ({"dtypes": "I8"}, "mixed, F32"),
        ({"overrides": {"colour": 1}}, "keys of config.json, got colour"),
        ({"overrides": {"num_steps": 0}}, "the configuration to write: num_steps"),
        ({"cameras": []}, "at least one VISUAL"),
        ({"vlm": parse_vlm_config(golden_index(GOLDEN / "tiny")["variants"]["base"]["vlm"])},
         "byte-level tokenizer needs 259"),
    ],
)  # fmt: skip
def test_impossible_settings_leave_nothing_behind(arguments, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        make_checkpoint(tmp_path / "c", **{"size": "tiny", **arguments})
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_nothing_behind(tmp_path):
    def interrupt(done, total, name):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_checkpoint(tmp_path / "c", "tiny", progress=interrupt)
    assert list(tmp_path.iterdir()) == []
