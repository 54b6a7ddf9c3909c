"""The contract: what a policy expects of a robot, and what it promises back.

Cameras in order, state and action widths, statistics, renames, tokenizer rules, chunk and steps.
It is settled when a checkpoint is read, stored in the bundle, and checked again when one is loaded;
`select_frames` holds each observation to it. Where something is missing or could mean two things,
nothing is guessed: ContractError or InputError says what was expected and what came.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from smolvla_edge.errors import ContractError, InputError
from smolvla_edge.policy_config import ACTION, EMPTY_CAMERA, STATE
from smolvla_edge.processors import Processors, read_processors
from smolvla_edge.rtc import Guidance, RtcSettings
from smolvla_edge.statistics import FeatureStatistics
from smolvla_edge.statistics_sources import Wanted, find_statistics

if TYPE_CHECKING:
    from smolvla_edge.config import ModelConfig, PolicyConfig
    from smolvla_edge.safetensors_file import TensorEntry

_Frame = TypeVar("_Frame")


@dataclass(frozen=True)
class TokenizerRules:
    """How a task becomes token ids. `newline`: a "\\n" is appended unless the task ends with it."""

    max_length: int
    newline: bool = True


@dataclass(frozen=True)
class Contract:
    """See the module. `cameras` are the model's names in config order, blank ones included;
    `rename` maps the robot's names to the model's."""

    cameras: tuple[str, ...]
    empty_cameras: int
    state_dim: int
    action_dim: int
    max_state_dim: int
    max_action_dim: int
    state: FeatureStatistics
    action: FeatureStatistics
    tokenizer: TokenizerRules
    chunk_size: int
    n_action_steps: int
    num_steps: int
    rtc: RtcSettings = field(default_factory=RtcSettings)
    rename: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_cameras(self.cameras, self.empty_cameras)
        _check_rename(self.rename, self.cameras)
        for name, value, limit in (
            ("state_dim", self.state_dim, self.max_state_dim),
            ("action_dim", self.action_dim, self.max_action_dim),
            ("n_action_steps", self.n_action_steps, self.chunk_size),
        ):
            if not 1 <= value <= limit:
                raise ContractError(f"{name} must be between 1 and {limit}, got {value}")

    @property
    def unnormalized(self) -> tuple[str, ...]:
        """Features that run without normalisation only because `allow_unnormalized` said so."""
        pairs = ((STATE, self.state), (ACTION, self.action))
        return tuple(name for name, statistics in pairs if statistics.unnormalized)

    def engine_stats(self) -> dict[str, dict[str, Any]]:
        """The `stats` argument of `_core.Engine`."""
        return {"state": self.state.to_engine(), "action": self.action.to_engine()}

    def robot_names(self) -> dict[str, str]:
        """Model camera name -> the name that the robot uses for it, in config order."""
        theirs = {ours: name for name, ours in self.rename.items()}
        return {name: theirs.get(name, name) for name in self.cameras}

    def robot_cameras(self) -> list[str]:
        """The robot's names of the cameras that it has: all but the empty ones, in config order."""
        names = self.robot_names()
        return [names[name] for name in self.cameras if not name.startswith(EMPTY_CAMERA)]

    def with_rename(self, rename: Mapping[str, str]) -> Contract:
        """The same contract under other robot names. Raises ContractError."""
        return replace(self, rename=_checked_names(rename))

    def with_stats(self, stats: str | os.PathLike[str]) -> Contract:
        """The same contract with statistics from a file (or FILE|SET); modes stay as they are.

        Raises ContractError.
        """
        modes = {"STATE": self.state.mode.value, "ACTION": self.action.mode.value}
        if self.unnormalized:
            raise ContractError(
                f"{', '.join(self.unnormalized)} was converted with allow_unnormalized, so its "
                "mode is not known any more: convert the checkpoint again with --stats"
            )
        found = find_statistics(
            _wanted(self.state_dim, self.action_dim),
            processors=None,
            legacy_buffers={},
            config_modes=modes,
            stats=stats,
            allow_unnormalized=False,
        )
        # The formula, and eps in it, is the checkpoint's; only the numbers are the file's.
        return replace(
            self,
            state=replace(found[STATE], eps=self.state.eps),
            action=replace(found[ACTION], eps=self.action.eps),
        )

    def guidance(
        self, prev_chunk_left_over: Any, inference_delay: Any, execution_horizon: Any
    ) -> Guidance | None:
        """One call's real-time chunking arguments, checked. See `RtcSettings.guidance`."""
        return self.rtc.guidance(
            prev_chunk_left_over,
            inference_delay,
            execution_horizon,
            chunk_size=self.chunk_size,
            max_action_dim=self.max_action_dim,
        )

    def select_frames(
        self,
        images: Mapping[str, _Frame | None],
        *,
        allow_missing: bool = False,
        renamed: bool = False,
    ) -> list[tuple[str, _Frame | None]]:
        """(model camera, frame) in the order the model sees them; None is a blank camera.

        LeRobot's rule: cameras that are present, in config order, then blanks for missing ones, at
        most `empty_cameras` of them. `images` are under the robot's names (the model's when
        `renamed`); a value of None counts as missing. Raises InputError for an unknown name, a
        camera given twice, more missing than blanks allow (unless `allow_missing`), or none at all.
        """
        if not isinstance(images, Mapping):
            raise InputError(
                f"images: expected a mapping of camera names to frames, got {type(images).__name__}"
            )
        given: dict[str, _Frame] = {}
        for name, frame in images.items():
            ours = name if renamed else self.rename.get(name, name)
            if ours not in self.cameras:
                raise InputError(f"unknown camera {name!r}. {self._expected_and_came(images)}")
            if frame is None:
                continue
            if ours in given:
                raise InputError(
                    f"two images for camera {ours!r}: {name!r} is renamed to it, and it came under "
                    f"another name too. {self._expected_and_came(images)}"
                )
            given[ours] = frame
        present: list[tuple[str, _Frame | None]] = [
            (name, given[name]) for name in self.cameras if name in given
        ]
        missing = [name for name in self.cameras if name not in given]
        if not present:
            raise InputError(f"no camera image at all. {self._expected_and_came(images)}")
        if len(missing) > self.empty_cameras and not allow_missing:
            raise InputError(
                f"missing camera(s): {', '.join(missing)}; the policy was trained with at most "
                f"{self.empty_cameras} empty. {self._expected_and_came(images)} Pass "
                "allow_missing_cameras=True (--allow-missing-cameras) to run without"
            )
        return present + [(name, None) for name in missing[: self.empty_cameras]]

    def _expected_and_came(self, images: Mapping[str, object]) -> str:
        names = [
            theirs if theirs == ours else f"{theirs} (the model's {ours})"
            for ours, theirs in self.robot_names().items()
        ]
        return (
            f"Expected {', '.join(names)}; got {', '.join(map(repr, images)) or 'none'}. "
            "Use rename={'your name': 'model name'} (--rename) for other names."
        )

    def describe(self) -> list[tuple[str, str]]:
        """(what, value) rows for `inspect`, in the order a robot builder needs them."""
        rows = []
        for index, (ours, theirs) in enumerate(self.robot_names().items()):
            note = " (empty camera)" if ours.startswith(EMPTY_CAMERA) else ""
            came = "" if ours == theirs else f", given as {theirs}"
            rows.append((f"camera {index}", f"{ours}{note}{came}"))
        rows += [
            ("blank cameras allowed", str(self.empty_cameras)),
            (STATE, f"{self.state_dim} values (padded to {self.max_state_dim})"),
            (f"{STATE} statistics", _describe_statistics(self.state)),
            (ACTION, f"{self.action_dim} values (padded to {self.max_action_dim})"),
            (f"{ACTION} statistics", _describe_statistics(self.action)),
            (
                "task",
                f"at most {self.tokenizer.max_length} tokens"
                + (", newline appended" if self.tokenizer.newline else ", no newline appended"),
            ),
            ("chunk", f"{self.chunk_size} actions, {self.n_action_steps} used by step()"),
            ("denoising steps", str(self.num_steps)),
            (
                "real-time chunking",
                f"{'on' if self.rtc.enabled else 'on request'}: {self.rtc.schedule}, "
                f"weight <= {self.rtc.max_guidance_weight:g}, "
                f"horizon {self.rtc.execution_horizon}",
            ),
        ]
        return rows

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `contract_json.contract_from_json` reads it back."""
        from smolvla_edge.contract_json import contract_to_json

        return contract_to_json(self)

    @classmethod
    def from_json(cls, data: object) -> Contract:
        """The inverse of `to_json` for untrusted data. Raises ContractError."""
        from smolvla_edge.contract_json import contract_from_json

        return contract_from_json(data)


def build_contract(
    policy: PolicyConfig,
    model: ModelConfig,
    folder: Path,
    legacy_buffers: Mapping[str, TensorEntry],
    *,
    rename: Mapping[str, str] | None = None,
    stats: str | os.PathLike[str] | None = None,
    allow_unnormalized: bool = False,
) -> Contract:
    """The contract of a LeRobot checkpoint.

    `legacy_buffers` are the normalisation tensors that old checkpoints keep in the model file.
    `rename` replaces the checkpoint's own rename_map, as LeRobot's override does.
    Raises ContractError.
    """
    processors = read_processors(folder)
    _check_kinds(policy)
    _check_visual_mode(policy, processors)
    if rename is None:
        rename = processors.rename_map if processors is not None else {}
    statistics = find_statistics(
        _wanted(policy.state_dim, policy.action_dim),
        processors=processors,
        legacy_buffers=legacy_buffers,
        config_modes=policy.normalization_mapping,
        stats=stats,
        allow_unnormalized=allow_unnormalized,
    )
    return Contract(
        cameras=policy.cameras,
        empty_cameras=policy.empty_cameras,
        state_dim=policy.state_dim,
        action_dim=policy.action_dim,
        max_state_dim=policy.max_state_dim,
        max_action_dim=policy.max_action_dim,
        state=statistics[STATE],
        action=statistics[ACTION],
        tokenizer=_tokenizer_rules(model.tokenizer_max_length, processors),
        chunk_size=policy.chunk_size,
        n_action_steps=policy.n_action_steps,
        num_steps=policy.num_steps,
        rtc=policy.rtc,
        rename=_checked_names(rename),
    )


def _wanted(state_dim: int, action_dim: int) -> tuple[Wanted, ...]:
    return (
        Wanted(STATE, "STATE", state_dim, output=False),
        Wanted(ACTION, "ACTION", action_dim, output=True),
    )


def _check_kinds(policy: PolicyConfig) -> None:
    """Every feature must be one that the model reads or writes; LeRobot ignores others silently."""
    for item in policy.input_features:
        if item.kind != "VISUAL" and (item.kind, item.name) != ("STATE", STATE):
            raise ContractError(
                f"config.json: input feature {item.name!r} of kind {item.kind} is not read by "
                f"SmolVLA: expected VISUAL features and {STATE!r} of kind STATE, got "
                f"{', '.join(f'{f.name} ({f.kind})' for f in policy.input_features)}. Remove it "
                "from input_features if the policy was trained without it"
            )
    for item in policy.output_features:
        if (item.kind, item.name) != ("ACTION", ACTION):
            raise ContractError(
                f"config.json: output feature {item.name!r} of kind {item.kind} is not written by "
                f"SmolVLA: expected {ACTION!r} of kind ACTION alone. Remove it from output_features"
            )


def _check_visual_mode(policy: PolicyConfig, processors: Processors | None) -> None:
    if processors is not None and processors.normalizer is not None:
        mode = processors.normalizer.modes.get("VISUAL")
        name, where = "IDENTITY" if mode is None else mode.value, processors.normalizer.where
    else:
        name = policy.normalization_mapping.get("VISUAL", "IDENTITY")
        where = "config.json: normalization_mapping"
    if name != "IDENTITY":
        raise ContractError(
            f"{where}: images are normalised with {name}, expected IDENTITY: SmolVLA scales "
            "frames to [-1, 1] itself, and nothing else is implemented here"
        )


def _tokenizer_rules(max_length: int, processors: Processors | None) -> TokenizerRules:
    if processors is None:
        return TokenizerRules(max_length)
    stored = processors.tokenizer_max_length
    if stored is not None and stored > max_length:
        raise ContractError(
            f"policy_preprocessor.json allows {stored} tokens, config.json's tokenizer_max_length "
            f"{max_length}: expected the first to be no more than the second. Make them equal"
        )
    return TokenizerRules(max_length if stored is None else stored, processors.newline)


def _check_cameras(cameras: tuple[str, ...], empty_cameras: int) -> None:
    if not cameras:
        raise ContractError("expected at least one camera (VISUAL input feature), got none")
    if len(set(cameras)) != len(cameras):
        raise ContractError(f"a camera name appears twice: {', '.join(cameras)}")
    if empty_cameras < 0:
        raise ContractError(f"empty_cameras must be >= 0, got {empty_cameras}")


def _checked_names(rename: object) -> dict[str, str]:
    if not isinstance(rename, Mapping) or not all(
        isinstance(name, str) and name for pair in rename.items() for name in pair
    ):
        raise ContractError(
            f"rename: expected a mapping of your names to the model's names, got {rename!r:.200}"
        )
    return dict(rename)


def _check_rename(rename: Mapping[str, str], cameras: tuple[str, ...]) -> None:
    known = f"The model's names are {', '.join((*cameras, STATE))}"
    sources: dict[str, str] = {}
    for theirs, ours in rename.items():
        if ours not in cameras and ours != STATE:
            raise ContractError(
                f"rename: {theirs!r} goes to {ours!r}, which does not exist. {known}"
            )
        if ours in sources:
            raise ContractError(
                f"rename: {sources[ours]!r} and {theirs!r} both go to {ours!r}; expected one each"
            )
        sources[ours] = theirs
    for ours in cameras:
        # Its own name was given to another camera and nothing was given to it in return.
        if ours in rename and ours not in sources and not ours.startswith(EMPTY_CAMERA):
            raise ContractError(
                f"rename: {ours!r} is mapped to {rename[ours]!r}, so no name is left for the "
                f"model's camera {ours!r}; expected a name for each. {known}"
            )


def _describe_statistics(statistics: FeatureStatistics) -> str:
    if statistics.unnormalized:
        return f"NOT NORMALISED ({statistics.source})"
    return f"{statistics.mode.value} from {statistics.source}"
