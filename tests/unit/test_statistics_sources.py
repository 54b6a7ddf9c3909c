"""Where statistics are found, and every way they can be missing, unmatched or unusable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_helpers import change_tensors, read_tensors, write_tensors

from smolvla_edge.checkpoint import read_checkpoint
from smolvla_edge.contract import Contract
from smolvla_edge.errors import ContractError
from smolvla_edge.statistics import Mode
from smolvla_edge.synthetic import make_checkpoint

PRE_STATE = "policy_preprocessor_step_5_normalizer_processor.safetensors"
POST_STATE = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
STATE_MEAN = np.arange(6, dtype=np.float32)
STATE_STD = np.full(6, 2, np.float32)
ACTION_MEAN = np.arange(6, dtype=np.float32) * 10
ACTION_STD = np.full(6, 3, np.float32)
PLAIN = {
    "observation.state.mean": STATE_MEAN,
    "observation.state.std": STATE_STD,
    "action.mean": ACTION_MEAN,
    "action.std": ACTION_STD,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny checkpoint whose processors hold PLAIN."""
    path = make_checkpoint(tmp_path / "checkpoint", "tiny")
    write_statistics(path, PLAIN)
    return path


def write_statistics(folder: Path, values: dict[str, np.ndarray]) -> None:
    for name in (PRE_STATE, POST_STATE):
        write_flat(folder / name, values)


def write_flat(path: Path, values: dict[str, np.ndarray]) -> None:
    write_tensors(path, {key: ("F32", np.asarray(v, np.float32)) for key, v in values.items()})


def edit_json(path: Path, change: Any) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def set_mode(folder: Path, kind: str, mode: str) -> None:
    for file, step in (("policy_preprocessor.json", 5), ("policy_postprocessor.json", 0)):
        edit_json(
            folder / file,
            lambda data, step=step: data["steps"][step]["config"]["norm_map"].update({kind: mode}),
        )


def make_legacy(folder: Path, buffers: dict[str, np.ndarray]) -> None:
    """The layout up to LeRobot 0.3.3: no processor files, statistics inside the model file."""
    for path in folder.glob("policy_p*"):
        path.unlink()
    change_tensors(
        folder,
        lambda tensors: tensors.update({key: ("F32", value) for key, value in buffers.items()}),
    )


def legacy_buffers(label: str = "", shift: float = 0.0) -> dict[str, np.ndarray]:
    prefix = f"{label}_" if label else ""
    return {
        f"normalize_inputs.{prefix}buffer_observation_state.mean": STATE_MEAN + np.float32(shift),
        f"normalize_inputs.{prefix}buffer_observation_state.std": STATE_STD,
        f"normalize_targets.{prefix}buffer_action.mean": ACTION_MEAN + np.float32(99),
        f"normalize_targets.{prefix}buffer_action.std": ACTION_STD,
        f"unnormalize_outputs.{prefix}buffer_action.mean": ACTION_MEAN + np.float32(shift),
        f"unnormalize_outputs.{prefix}buffer_action.std": ACTION_STD,
    }


def contract(folder: Path, **options: Any) -> Contract:
    return read_checkpoint(folder, **options).contract


def refused(folder: Path, *parts: str, **options: Any) -> None:
    """Reading is refused with a message that holds every part."""
    with pytest.raises(ContractError) as caught:
        contract(folder, **options)
    for part in parts:
        assert part in str(caught.value)


class TestProcessorFiles:
    def test_found_and_named(self, folder: Path) -> None:
        found = contract(folder)
        assert found.state.mode is Mode.MEAN_STD
        np.testing.assert_array_equal(found.state.arrays()[0], STATE_MEAN)
        np.testing.assert_array_equal(found.action.arrays()[1], ACTION_STD)
        assert PRE_STATE in found.state.source
        assert POST_STATE in found.action.source

    @pytest.mark.parametrize(
        "mode, low, high",
        [("MIN_MAX", "min", "max"), ("QUANTILES", "q01", "q99"), ("QUANTILE10", "q10", "q90")],
    )
    def test_range_modes_read_their_own_statistics(
        self, folder: Path, mode: str, low: str, high: str
    ) -> None:
        set_mode(folder, "ACTION", mode)
        write_statistics(
            folder, {**PLAIN, f"action.{low}": ACTION_MEAN, f"action.{high}": ACTION_MEAN + 5}
        )
        engine = contract(folder).engine_stats()["action"]
        assert engine["mode"] == "RANGE"
        assert engine["eps_in_range"] is False
        np.testing.assert_array_equal(engine["b"] - engine["a"], np.full(6, 5, np.float32))

    def test_identity_needs_nothing(self, folder: Path) -> None:
        set_mode(folder, "STATE", "IDENTITY")
        write_statistics(folder, {k: v for k, v in PLAIN.items() if k.startswith("action")})
        found = contract(folder)
        assert found.state.mode is Mode.IDENTITY
        assert found.unnormalized == ()

    def test_missing_is_refused_with_what_there_is(self, folder: Path) -> None:
        write_statistics(folder, {k: v for k, v in PLAIN.items() if k != "observation.state.std"})
        refused(folder, "observation.state.std", "holds:", "observation.state.mean [6]", "--stats")

    def test_statistics_of_no_feature_are_refused(self, folder: Path) -> None:
        """What smolvla_base holds: its keys match nothing, and LeRobot runs un-normalised."""
        write_statistics(
            folder, {"so100.buffer.action.mean": ACTION_MEAN, "so100.buffer.action.std": ACTION_STD}
        )
        refused(folder, "observation.state.mean", "so100.buffer.action.mean [6]")
        refused(folder, "observation.state", "so100.buffer.action.std", stats="so100.buffer")
        found = contract(folder, allow_unnormalized=True)
        assert found.unnormalized == ("observation.state", "action")
        assert "allow_unnormalized" in found.state.source

    def test_a_named_set_is_used(self, folder: Path) -> None:
        write_statistics(folder, {f"so100.buffer.{key}": value for key, value in PLAIN.items()})
        refused(folder, "--stats SET", "so100.buffer")
        np.testing.assert_array_equal(
            contract(folder, stats="so100.buffer").state.arrays()[0], STATE_MEAN
        )

    def test_an_unknown_set_is_refused(self, folder: Path) -> None:
        refused(folder, "'koch'", "koch.observation.state.mean", stats="koch")

    def test_feature_not_listed_by_the_step(self, folder: Path) -> None:
        edit_json(
            folder / "policy_preprocessor.json",
            lambda data: data["steps"][5]["config"]["features"].pop("observation.state"),
        )
        refused(folder, "does not list", "observation.state")

    def test_keys_left_out_by_the_step(self, folder: Path) -> None:
        edit_json(
            folder / "policy_preprocessor.json",
            lambda d: d["steps"][5]["config"].update(normalize_observation_keys=["other"]),
        )
        refused(folder, "normalize_observation_keys", "observation.state")

    def test_no_normaliser_step(self, folder: Path) -> None:
        edit_json(folder / "policy_postprocessor.json", lambda d: d["steps"].pop(0))
        refused(folder, "un-normalises actions")
        assert contract(folder, allow_unnormalized=True).unnormalized == ("action",)

    def test_no_mode_for_the_kind(self, folder: Path) -> None:
        edit_json(
            folder / "policy_preprocessor.json",
            lambda data: data["steps"][5]["config"]["norm_map"].pop("STATE"),
        )
        refused(folder, "no mode for STATE", "IDENTITY")

    @pytest.mark.parametrize("name", ["policy_preprocessor.json", "policy_postprocessor.json"])
    def test_half_a_pair(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        refused(folder, name, "alone")

    def test_statistics_file_missing(self, folder: Path) -> None:
        (folder / PRE_STATE).unlink()
        refused(folder, PRE_STATE, "missing", "--stats FILE")
        assert contract(folder, allow_unnormalized=True).unnormalized

    def test_stats_replace_a_missing_file(self, folder: Path) -> None:
        """Every file it needs is named by the user, so what is missing does not matter."""
        kept = folder.parent / "kept.safetensors"
        (folder / PRE_STATE).rename(kept)
        assert not contract(folder, stats=str(kept)).unnormalized

    @pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a\\b", "", "..", 7])
    def test_statistics_file_outside(self, folder: Path, name: object) -> None:
        edit_json(
            folder / "policy_preprocessor.json", lambda d: d["steps"][5].update(state_file=name)
        )
        refused(folder, "plain file name")

    def test_unknown_step(self, folder: Path) -> None:
        step = {"registry_name": "delta_action_processor", "config": {}}
        edit_json(folder / "policy_postprocessor.json", lambda d: d["steps"].append(step))
        refused(folder, "delta_action_processor", "unnormalizer_processor")

    def test_custom_step(self, folder: Path) -> None:
        step = {"class": "evil.module.Step", "config": {}}
        edit_json(folder / "policy_preprocessor.json", lambda d: d["steps"].append(step))
        refused(folder, "evil.module.Step")

    def test_repeated_step(self, folder: Path) -> None:
        edit_json(folder / "policy_preprocessor.json", lambda d: d["steps"].append(d["steps"][5]))
        refused(folder, "twice")

    @pytest.mark.parametrize("eps", [0.0, -1e-8, 1.0, "1e-8", None])
    def test_bad_eps(self, folder: Path, eps: object) -> None:
        edit_json(
            folder / "policy_preprocessor.json", lambda d: d["steps"][5]["config"].update(eps=eps)
        )
        refused(folder, "eps")

    def test_eps_of_each_step(self, folder: Path) -> None:
        for file, step, eps in (
            ("policy_preprocessor", 5, 1e-4),
            ("policy_postprocessor", 0, 1e-5),
        ):
            edit_json(
                folder / f"{file}.json",
                lambda d, step=step, eps=eps: d["steps"][step]["config"].update(eps=eps),
            )
        found = contract(folder)
        assert (found.state.eps, found.action.eps) == (1e-4, 1e-5)

    def test_images_normalised(self, folder: Path) -> None:
        set_mode(folder, "VISUAL", "MEAN_STD")
        refused(folder, "images", "IDENTITY")

    def test_integer_statistics(self, folder: Path) -> None:
        values = {key: ("F32", value) for key, value in PLAIN.items()}
        values["observation.state.mean"] = ("I32", np.arange(6, dtype=np.int32))
        write_tensors(folder / PRE_STATE, values)
        refused(folder, "I32", "floating-point")


class TestUnusable:
    @pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
    @pytest.mark.parametrize("key", sorted(PLAIN))
    def test_not_finite(self, folder: Path, key: str, bad: float) -> None:
        broken = PLAIN[key].copy()
        broken[3] = bad
        write_statistics(folder, {**PLAIN, key: broken})
        refused(folder, key, "index 3", "finite")

    @pytest.mark.parametrize("std", [0.0, -1.0, 1e-9])
    def test_zero_std(self, folder: Path, std: float) -> None:
        broken = STATE_STD.copy()
        broken[[1, 4]] = std
        write_statistics(folder, {**PLAIN, "observation.state.std": broken})
        refused(folder, "observation.state", "[1, 4]", "--stats FILE")

    @pytest.mark.parametrize("width", [0.0, -1.0])
    def test_empty_or_reversed_range(self, folder: Path, width: float) -> None:
        set_mode(folder, "ACTION", "MIN_MAX")
        high = ACTION_MEAN + 1
        high[2] = ACTION_MEAN[2] + width
        write_statistics(folder, {**PLAIN, "action.min": ACTION_MEAN, "action.max": high})
        refused(folder, "max - min", "index 2")

    @pytest.mark.parametrize("length", [0, 5, 7])
    def test_wrong_length(self, folder: Path, length: int) -> None:
        write_statistics(folder, {**PLAIN, "action.mean": np.zeros(length, np.float32)})
        refused(folder, "action.mean", "expected 6 values", f"[{length}]")

    def test_wrong_rank(self, folder: Path) -> None:
        write_statistics(folder, {**PLAIN, "action.mean": np.zeros((1, 6), np.float32)})
        refused(folder, "action.mean", "[1, 6]")

    def test_allow_unnormalized_says_so(self, folder: Path) -> None:
        write_statistics(folder, {**PLAIN, "observation.state.std": np.zeros(6)})
        found = contract(folder, allow_unnormalized=True)
        assert found.unnormalized == ("observation.state",)
        assert found.action.mode is Mode.MEAN_STD
        assert "NOT NORMALISED" in dict(found.describe())["observation.state statistics"]


class TestLegacyBuffers:
    def test_plain(self, folder: Path) -> None:
        make_legacy(folder, legacy_buffers())
        found = contract(folder)
        np.testing.assert_array_equal(found.state.arrays()[0], STATE_MEAN)
        np.testing.assert_array_equal(found.action.arrays()[0], ACTION_MEAN)
        assert "unnormalize_outputs.buffer_action.mean" in found.action.source
        assert found.state.eps_in_range

    def test_none(self, folder: Path) -> None:
        make_legacy(folder, {})
        refused(folder, "no statistics", "neither in processor files nor in the model file")

    def test_never_filled_in(self, folder: Path) -> None:
        buffers = legacy_buffers()
        buffers["normalize_inputs.buffer_observation_state.mean"] = np.full(6, np.inf, np.float32)
        make_legacy(folder, buffers)
        refused(folder, "never filled in")

    def test_different_sets_are_refused_unless_named(self, folder: Path) -> None:
        make_legacy(folder, {**legacy_buffers("so100"), **legacy_buffers("so100-red", shift=1.0)})
        refused(folder, "so100, so100-red", "--stats")
        found = contract(folder, stats="so100-red")
        np.testing.assert_array_equal(found.state.arrays()[0], STATE_MEAN + 1)
        np.testing.assert_array_equal(found.action.arrays()[0], ACTION_MEAN + 1)
        assert "so100-red_buffer_action" in found.action.source

    def test_sets_that_agree_are_used(self, folder: Path) -> None:
        make_legacy(folder, {**legacy_buffers("so100"), **legacy_buffers("so100-blue")})
        np.testing.assert_array_equal(contract(folder).state.arrays()[0], STATE_MEAN)

    def test_one_set_alone_is_used(self, folder: Path) -> None:
        make_legacy(folder, legacy_buffers("so100"))
        np.testing.assert_array_equal(contract(folder).state.arrays()[0], STATE_MEAN)

    def test_unknown_set(self, folder: Path) -> None:
        make_legacy(folder, legacy_buffers("so100"))
        refused(folder, "'koch'", "so100", stats="koch")

    def test_state_only(self, folder: Path) -> None:
        buffers = {k: v for k, v in legacy_buffers().items() if k.startswith("normalize_inputs")}
        make_legacy(folder, buffers)
        refused(folder, "'action'", "normalize_inputs.buffer_observation_state.mean [6]")

    def test_processor_files_win(self, folder: Path) -> None:
        change_tensors(
            folder,
            lambda tensors: tensors.update(
                {key: ("F32", value) for key, value in legacy_buffers(shift=5.0).items()}
            ),
        )
        np.testing.assert_array_equal(contract(folder).state.arrays()[0], STATE_MEAN)


class TestStatsOption:
    def test_dataset_json(self, folder: Path, tmp_path: Path) -> None:
        file = tmp_path / "stats.json"
        dataset = {
            "observation.state": {"mean": [1.0] * 6, "std": [2] * 6, "count": [9]},
            "action": {"mean": [3.0] * 6, "std": [4.0] * 6},
            "observation.images.top": {"mean": [[[0.5]], [[0.5]], [[0.5]]]},
            "timestamp": {"mean": [0.1]},
        }
        file.write_text(json.dumps(dataset))
        for stats in (str(file), file):
            found = contract(folder, stats=stats)
            assert found.state.values["mean"] == (1.0,) * 6
            assert found.action.values["std"] == (4.0,) * 6
            assert "stats.json" in found.state.source

    def test_set_in_a_file(self, folder: Path, tmp_path: Path) -> None:
        file = tmp_path / "stats.json"
        one = {"observation.state": {"mean": [1.0] * 6, "std": [2.0] * 6}}
        both = {**one, "action": {"mean": [3.0] * 6, "std": [4.0] * 6}}
        file.write_text(json.dumps({"so100": both, "koch": one}))
        assert contract(folder, stats=f"{file}|so100").action.values["mean"] == (3.0,) * 6
        refused(folder, "'action'", "so100.action.mean [6]", stats=f"{file}|koch")
        refused(folder, "(koch, so100)", stats=str(file))

    def test_safetensors_file(self, folder: Path, tmp_path: Path) -> None:
        write_flat(tmp_path / "other.safetensors", {**PLAIN, "action.mean": ACTION_MEAN + 7})
        found = contract(folder, stats=str(tmp_path / "other.safetensors"))
        np.testing.assert_array_equal(found.action.arrays()[0], ACTION_MEAN + 7)

    def test_old_model_as_the_file(self, folder: Path, tmp_path: Path) -> None:
        write_flat(tmp_path / "old.safetensors", legacy_buffers("so100"))
        found = contract(folder, stats=f"{tmp_path / 'old.safetensors'}|so100")
        np.testing.assert_array_equal(found.state.arrays()[0], STATE_MEAN)

    def test_other_numbers_in_the_same_formula(self, folder: Path, tmp_path: Path) -> None:
        """What `load(bundle, stats=...)` does: modes and eps stay the checkpoint's."""
        set_mode(folder, "STATE", "QUANTILES")
        edit_json(
            folder / "policy_preprocessor.json", lambda d: d["steps"][5]["config"].update(eps=1e-4)
        )
        numbers = {
            **PLAIN,
            "observation.state.q01": STATE_MEAN,
            "observation.state.q99": STATE_MEAN + 4,
        }
        write_statistics(folder, numbers)
        numbers["observation.state.q99"] = STATE_MEAN + 8
        write_flat(tmp_path / "new.safetensors", numbers)
        other = contract(folder).with_stats(tmp_path / "new.safetensors")
        assert other.state.mode is Mode.QUANTILES and other.action.mode is Mode.MEAN_STD
        assert (other.state.eps, other.action.eps) == (1e-4, 1e-8)
        np.testing.assert_array_equal(other.state.arrays()[1], STATE_MEAN + 8)
        assert other == contract(folder, stats=tmp_path / "new.safetensors")

    def test_no_formula_to_put_numbers_in(self, folder: Path, tmp_path: Path) -> None:
        write_flat(tmp_path / "new.safetensors", PLAIN)
        write_statistics(folder, {})
        bare = contract(folder, allow_unnormalized=True)
        with pytest.raises(ContractError, match="convert the checkpoint again with --stats"):
            bare.with_stats(tmp_path / "new.safetensors")

    def test_file_beats_broken_statistics(self, folder: Path, tmp_path: Path) -> None:
        write_flat(tmp_path / "good.safetensors", PLAIN)
        write_statistics(folder, {**PLAIN, "observation.state.std": np.zeros(6)})
        assert contract(folder, stats=str(tmp_path / "good.safetensors")).unnormalized == ()

    @pytest.mark.parametrize("stats", ["no/such/file", "missing.json", "x.safetensors", "f.json|a"])
    def test_no_such_file(self, folder: Path, stats: str) -> None:
        refused(folder, "no file", stats=stats)

    def test_empty(self, folder: Path) -> None:
        refused(folder, "empty string", stats=" ")

    @pytest.mark.parametrize("text", ["[]", "{", '{"a": 1, "a": 2}', "\xff"])
    def test_malformed_json(self, folder: Path, tmp_path: Path, text: str) -> None:
        (tmp_path / "stats.json").write_bytes(text.encode("latin-1"))
        refused(folder, "stats.json", stats=str(tmp_path / "stats.json"))

    def test_nan_in_json(self, folder: Path, tmp_path: Path) -> None:
        values = {
            key: {"mean": [1.0] * 6, "std": [2.0] * 6} for key in ("observation.state", "action")
        }
        values["action"]["std"] = [float("nan")] * 6
        (tmp_path / "stats.json").write_text(json.dumps(values))
        refused(folder, "action.std", "nan", stats=str(tmp_path / "stats.json"))


def test_helpers_read_back(folder: Path) -> None:
    """The fixture really wrote what the tests above rely on."""
    assert set(read_tensors(folder / PRE_STATE)) == set(PLAIN)
