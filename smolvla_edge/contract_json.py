"""The contract as JSON, for bundle.json. Reading trusts nothing: exact keys, types and ranges."""

from __future__ import annotations

from typing import Any

from smolvla_edge.config_fields import MAX_CAMERAS, MAX_COUNT, MAX_DIM
from smolvla_edge.contract import ACTION, STATE, Contract, TokenizerRules
from smolvla_edge.errors import ContractError
from smolvla_edge.rtc import RtcSettings
from smolvla_edge.statistics import statistics_from_json

_COUNTS = {
    "empty_cameras": (0, MAX_CAMERAS),
    "state_dim": (1, MAX_DIM),
    "action_dim": (1, MAX_DIM),
    "max_state_dim": (1, MAX_DIM),
    "max_action_dim": (1, MAX_DIM),
    "chunk_size": (1, MAX_COUNT),
    "n_action_steps": (1, MAX_COUNT),
    "num_steps": (1, MAX_COUNT),
}
_RTC_TYPES = {
    "enabled": bool,
    "schedule": str,
    "max_guidance_weight": float,
    "execution_horizon": int,
}
_KEYS = frozenset({"cameras", "state", "action", "tokenizer", "rtc", "rename", *_COUNTS})


def contract_to_json(contract: Contract) -> dict[str, Any]:
    return {
        "cameras": list(contract.cameras),
        **{name: getattr(contract, name) for name in _COUNTS},
        "state": contract.state.to_json(),
        "action": contract.action.to_json(),
        "tokenizer": {
            "max_length": contract.tokenizer.max_length,
            "newline": contract.tokenizer.newline,
        },
        "rtc": {name: getattr(contract.rtc, name) for name in _RTC_TYPES},
        "rename": dict(contract.rename),
    }


def contract_from_json(data: object) -> Contract:
    """Raises ContractError naming the field."""
    fields = _object(data, "contract", _KEYS)
    for name, (low, high) in _COUNTS.items():
        _require(
            type(fields[name]) is int and low <= fields[name] <= high,
            name,
            f"an integer from {low} to {high}",
            fields[name],
        )
    cameras = fields["cameras"]
    _require(
        isinstance(cameras, list)
        and 1 <= len(cameras) <= MAX_CAMERAS
        and all(isinstance(name, str) and name for name in cameras),
        "cameras",
        f"a list of 1 to {MAX_CAMERAS} names",
        cameras,
    )
    rename = fields["rename"]
    _require(
        isinstance(rename, dict) and all(isinstance(name, str) for name in rename.values()),
        "rename",
        "an object of names",
        rename,
    )
    return Contract(
        cameras=tuple(cameras),
        **{name: fields[name] for name in _COUNTS},
        state=statistics_from_json(fields["state"], STATE, fields["state_dim"], ContractError),
        action=statistics_from_json(fields["action"], ACTION, fields["action_dim"], ContractError),
        tokenizer=_tokenizer(fields["tokenizer"]),
        rtc=_rtc(fields["rtc"]),
        rename=dict(rename),
    )


def _tokenizer(data: object) -> TokenizerRules:
    fields = _object(data, "tokenizer", frozenset({"max_length", "newline"}))
    length, newline = fields["max_length"], fields["newline"]
    in_range = type(length) is int and 1 <= length <= MAX_COUNT
    _require(in_range, "tokenizer.max_length", f"an integer from 1 to {MAX_COUNT}", length)
    _require(isinstance(newline, bool), "tokenizer.newline", "true or false", newline)
    return TokenizerRules(length, newline)


def _rtc(data: object) -> RtcSettings:
    fields = _object(data, "rtc", frozenset(_RTC_TYPES))
    for name, kind in _RTC_TYPES.items():
        _require(type(fields[name]) is kind, f"rtc.{name}", kind.__name__, fields[name])
    return RtcSettings(**fields)


def _object(data: object, where: str, keys: frozenset[str]) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ContractError(f"{where}: expected an object, got {type(data).__name__}")
    if data.keys() != keys:
        missing, unknown = sorted(keys - data.keys()), sorted(data.keys() - keys)
        raise ContractError(
            f"{where}: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}"
        )
    return data


def _require(valid: bool, name: str, expected: str, got: object) -> None:
    if not valid:
        raise ContractError(f"contract: {name}: expected {expected}, got {got!r:.80}")
