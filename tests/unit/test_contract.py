"""The contract: cameras, renames, features, and its JSON form read from nobody in particular."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from smolvla_edge.checkpoint import read_checkpoint
from smolvla_edge.contract import Contract, TokenizerRules
from smolvla_edge.errors import CheckpointError, ContractError, InputError
from smolvla_edge.rtc import RtcSettings
from smolvla_edge.statistics import FeatureStatistics, Mode
from smolvla_edge.synthetic import make_checkpoint

CAM = "observation.images.camera"
EMPTY = "observation.images.empty_camera_"


def make(**changes: Any) -> Contract:
    values = [0.5, -1.25, 3.0]
    fields: dict[str, Any] = {
        "cameras": (f"{CAM}1", f"{CAM}2", f"{CAM}3"),
        "empty_cameras": 0,
        "state_dim": 3,
        "action_dim": 3,
        "max_state_dim": 8,
        "max_action_dim": 8,
        "state": FeatureStatistics(
            Mode.MEAN_STD, {"mean": tuple(values), "std": (1.0, 2.0, 0.125)}, source="here"
        ),
        "action": FeatureStatistics(
            Mode.QUANTILES, {"q01": tuple(values), "q99": (9.0, 9.0, 9.0)}, source="there"
        ),
        "tokenizer": TokenizerRules(48),
        "chunk_size": 50,
        "n_action_steps": 10,
        "num_steps": 10,
    }
    return Contract(**{**fields, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "checkpoint", "tiny")


def edit_config(folder: Path, change: Any) -> None:
    path = folder / "config.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def rename_step(folder: Path, names: object) -> None:
    path = folder / "policy_preprocessor.json"
    data = json.loads(path.read_text())
    data["steps"][0]["config"]["rename_map"] = names
    path.write_text(json.dumps(data))


class TestFrames:
    def test_config_order_not_argument_order(self) -> None:
        images = {f"{CAM}3": "c", f"{CAM}1": "a", f"{CAM}2": "b"}
        assert [frame for _, frame in make().select_frames(images)] == ["a", "b", "c"]

    def test_missing_is_refused(self) -> None:
        with pytest.raises(InputError, match=rf"missing.*{CAM}2;.*Expected.*got"):
            make().select_frames({f"{CAM}1": "a", f"{CAM}3": "c"})

    def test_missing_when_allowed_is_dropped(self) -> None:
        chosen = make().select_frames({f"{CAM}1": "a", f"{CAM}3": "c"}, allow_missing=True)
        assert chosen == [(f"{CAM}1", "a"), (f"{CAM}3", "c")]

    def test_blanks_come_last(self) -> None:
        cameras = (f"{CAM}1", f"{EMPTY}0", f"{CAM}2", f"{EMPTY}1")
        contract = make(cameras=cameras, empty_cameras=2)
        chosen = contract.select_frames({f"{CAM}2": "b", f"{CAM}1": "a"})
        assert [frame for _, frame in chosen] == ["a", "b", None, None]

    def test_no_more_blanks_than_configured(self) -> None:
        """LeRobot's rule in its golden case: the first of three absent, one blank appended."""
        contract = make(cameras=(f"{CAM}1", f"{CAM}2", f"{CAM}3", f"{EMPTY}0"), empty_cameras=1)
        images = {f"{CAM}2": "b", f"{CAM}3": "c"}
        with pytest.raises(InputError, match=r"missing camera.*camera1, .*empty_camera_0"):
            contract.select_frames(images)
        chosen = contract.select_frames(images, allow_missing=True)
        assert [frame for _, frame in chosen] == ["b", "c", None]

    def test_an_empty_camera_may_be_filled(self) -> None:
        contract = make(cameras=(f"{EMPTY}0", f"{CAM}1"), empty_cameras=1)
        chosen = contract.select_frames({f"{CAM}1": "a", f"{EMPTY}0": "e"})
        assert [frame for _, frame in chosen] == ["e", "a"]

    def test_none_is_missing(self) -> None:
        with pytest.raises(InputError, match="missing"):
            make().select_frames({f"{CAM}1": "a", f"{CAM}2": None, f"{CAM}3": "c"})

    def test_unknown_camera(self) -> None:
        with pytest.raises(InputError, match=r"unknown camera 'top'.*camera1.*got 'top'.*rename"):
            make().select_frames({"top": "a"})

    @pytest.mark.parametrize("images", [{}, {f"{CAM}1": None}])
    @pytest.mark.parametrize("allow", [False, True])
    def test_no_camera_at_all(self, images: dict[str, None], allow: bool) -> None:
        with pytest.raises(InputError, match="no camera image at all"):
            make(empty_cameras=3).select_frames(images, allow_missing=allow)


class TestRename:
    def test_robot_names(self) -> None:
        contract = make(rename={"top": f"{CAM}2", f"{CAM}2": f"{CAM}1", "wrist": f"{CAM}3"})
        chosen = contract.select_frames({"top": "b", "wrist": "c", f"{CAM}2": "a"})
        assert chosen == [(f"{CAM}1", "a"), (f"{CAM}2", "b"), (f"{CAM}3", "c")]
        assert contract.robot_names()[f"{CAM}1"] == f"{CAM}2"

    def test_given_twice(self) -> None:
        contract = make(rename={"top": f"{CAM}1"})
        with pytest.raises(InputError, match="two images"):
            contract.select_frames({"top": 1, f"{CAM}1": 2, f"{CAM}2": 3, f"{CAM}3": 4})

    def test_unknown_target(self) -> None:
        with pytest.raises(ContractError, match=r"'wrist' goes to 'camera9'.*camera1.*camera3"):
            make(rename={"wrist": "camera9"})

    def test_two_to_one(self) -> None:
        with pytest.raises(ContractError, match="'a' and 'b' both go to"):
            make(rename={"a": f"{CAM}1", "b": f"{CAM}1"})

    def test_a_camera_left_without_name(self) -> None:
        with pytest.raises(ContractError, match=f"no name is left for.*{CAM}1"):
            make(rename={f"{CAM}1": f"{CAM}2"})

    @pytest.mark.parametrize("names", [{"top": 1}, {1: f"{CAM}1"}, [("a", "b")], "top=camera1"])
    def test_not_a_mapping_of_names(self, names: Any) -> None:
        with pytest.raises(ContractError, match="rename: expected a mapping"):
            make().with_rename(names)

    def test_state_may_be_renamed(self) -> None:
        assert make(rename={"observation.joints": "observation.state"}).cameras

    def test_from_the_checkpoint(self, folder: Path) -> None:
        rename_step(folder, {"top": f"{CAM}1"})
        assert read_checkpoint(folder).contract.rename == {"top": f"{CAM}1"}
        # The caller's map replaces it, as LeRobot's override does.
        assert read_checkpoint(folder, rename={"up": f"{CAM}1"}).contract.rename == {
            "up": f"{CAM}1"
        }
        assert read_checkpoint(folder, rename={}).contract.rename == {}

    @pytest.mark.parametrize("names", [[], {"a": 1}, {"a": "nowhere"}])
    def test_bad_map_in_the_checkpoint(self, folder: Path, names: object) -> None:
        rename_step(folder, names)
        with pytest.raises(ContractError, match="rename"):
            read_checkpoint(folder)


class TestFeatures:
    @pytest.mark.parametrize("kind", ["ENV", "STATE", "LANGUAGE", "REWARD"])
    def test_unread_input(self, folder: Path, kind: str) -> None:
        extra = {"type": kind, "shape": [4]}
        edit_config(folder, lambda d: d["input_features"].update({"observation.extra": extra}))
        with pytest.raises(
            ContractError, match=r"observation\.extra.*observation\.state \(STATE\)"
        ):
            read_checkpoint(folder)

    def test_unwritten_output(self, folder: Path) -> None:
        extra = {"type": "ACTION", "shape": [4]}
        edit_config(folder, lambda d: d["output_features"].update({"gripper": extra}))
        with pytest.raises(ContractError, match="gripper"):
            read_checkpoint(folder)

    def test_unknown_kind(self, folder: Path) -> None:
        extra = {"type": "AUDIO", "shape": [4]}
        edit_config(folder, lambda d: d["input_features"].update({"microphone": extra}))
        with pytest.raises(CheckpointError, match="microphone"):
            read_checkpoint(folder)

    def test_state_wider_than_the_model(self, folder: Path) -> None:
        state = {"type": "STATE", "shape": [12]}
        edit_config(folder, lambda d: d["input_features"].update({"observation.state": state}))
        with pytest.raises(CheckpointError, match="max_state_dim"):
            read_checkpoint(folder)

    def test_tokenizer_limit_of_the_preprocessor(self, folder: Path) -> None:
        path = folder / "policy_preprocessor.json"
        data = json.loads(path.read_text())
        data["steps"][3]["config"]["max_length"] = 7
        path.write_text(json.dumps(data))
        assert read_checkpoint(folder).contract.tokenizer.max_length == 7
        data["steps"][3]["config"]["max_length"] = 4000
        path.write_text(json.dumps(data))
        with pytest.raises(ContractError, match="4000 tokens"):
            read_checkpoint(folder)

    def test_no_newline_step_no_newline(self, folder: Path) -> None:
        path = folder / "policy_preprocessor.json"
        data = json.loads(path.read_text())
        del data["steps"][2]
        path.write_text(json.dumps(data))
        assert not read_checkpoint(folder).contract.tokenizer.newline


class TestJson:
    def test_round_trip_is_exact(self) -> None:
        contract = make(rename={"top": f"{CAM}1"}, rtc=RtcSettings(True, "EXP", 5.0, 7))
        assert Contract.from_json(json.loads(json.dumps(contract.to_json()))) == contract

    def test_identity_round_trip(self) -> None:
        contract = make(action=FeatureStatistics(Mode.IDENTITY, source="x", unnormalized=True))
        assert Contract.from_json(contract.to_json()) == contract

    @pytest.mark.parametrize("value", [None, [], "x", 3])
    def test_not_an_object(self, value: object) -> None:
        with pytest.raises(ContractError):
            Contract.from_json(value)

    def test_every_field_of_every_kind(self) -> None:
        """Each leaf and branch in turn: removed, and replaced by values of other types."""
        good = make().to_json()
        changed = 0
        for path in _paths(good):
            for value in (_REMOVE, None, "x", -1, 0.5, True, [], {}, 1 << 70, float("nan")):
                bad = _with(good, path, value)
                if bad == good or _harmless(path, value):
                    continue
                with pytest.raises(ContractError):
                    Contract.from_json(bad)
                changed += 1
        assert changed > 150

    @pytest.mark.parametrize(
        "path, value",
        [
            (("state_dim",), 9),
            (("action_dim",), 4),
            (("n_action_steps",), 51),
            (("cameras",), [f"{CAM}1"] * 2),
            (("cameras",), [f"{CAM}{i}" for i in range(65)]),
            (("state", "values", "std"), [1.0, 0.0, 1.0]),
            (("state", "values", "mean"), [1.0, float("inf"), 1.0]),
            (("state", "values", "mean"), [1.0, 2.0]),
            (("state", "values", "mean"), [1e39, 2.0, 3.0]),
            (("action", "values"), {"min": [0.0] * 3, "max": [1.0] * 3}),
            (("action", "values", "q99"), [0.0, 0.0, 0.0]),
            (("state", "unnormalized"), True),
            (("rtc", "schedule"), "LOG"),
            (("rename",), {"top": "nowhere"}),
        ],
    )
    def test_bad_values(self, path: tuple[str, ...], value: object) -> None:
        with pytest.raises(ContractError):
            Contract.from_json(_with(make().to_json(), path, value))


_REMOVE = object()


def _paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [
            p
            for key, item in value.items()
            for p in [prefix + (key,)] + _paths(item, prefix + (key,))
        ]
    if isinstance(value, list):
        return [
            p for i, item in enumerate(value) for p in [prefix + (i,)] + _paths(item, prefix + (i,))
        ]
    return []


def _with(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    data = copy.deepcopy(data)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    if value is _REMOVE:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return data


def _harmless(path: tuple[Any, ...], value: object) -> bool:
    """Replacements that are legal values of their field."""
    name = path[-1]
    if name == "source" or (path[0] == "cameras" and len(path) == 2):
        return isinstance(value, str) or value is _REMOVE
    if name in ("enabled", "newline", "eps_in_range"):
        return isinstance(value, bool)
    if "values" in path[:-1] or name == "max_guidance_weight":
        return isinstance(value, float) and value == value
    return name == "rename" and value == {}
