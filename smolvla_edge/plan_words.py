"""Plans as people type them: "steps=4,solver=ab2,cache.threshold=0.02", or a .json file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from smolvla_edge.errors import PlanError
from smolvla_edge.plan import Plan
from smolvla_edge.strict_json import read_json_object

JOINT = "+"  # of the items of a list
STEPS = "/"  # of the lists of skip.reuse, one a step
# What a cache is when its threshold alone is said.
CACHE = {"keyframe_every": 10, "max_age": 8}
_OFF = {"padding": False, "attended": 0}  # of a cache: not said
_PADDING = {"keep": True, "compute": False}
_MOST_BYTES = 1 << 20  # of a file


def is_words(text: str) -> bool:
    """Whether this is meant to be a plan in words or in a file, not the name of one."""
    return "=" in text or text.endswith(".json")


def read_plan(text: str, num_steps: int) -> Plan:
    """The exact plan of `num_steps` changed by words, or the plan of a file.

    A list's items are joined by "+": "skip.vlm=14+15", "schedule=1+0.6+0.3+0" (which says the
    number of steps too), "cache.cameras=top+side". skip.reuse has a list a step, "/" between them:
    "steps=4,skip.reuse=/3+5//3+5". A cache that is not told more has keyframe_every 10, max_age 8.
    Raises PlanError.
    """
    if text.endswith(".json"):
        return _from_file(Path(text))
    data: dict[str, Any] = {"steps": num_steps}
    for word in text.split(","):
        name, _, value = (part.strip() for part in word.partition("="))
        if name not in _READERS:
            raise PlanError(
                f"plan: expected exact, a preset, a .json file, or words like "
                f"{'=, '.join(_READERS)}=, got {word!r}"
            )
        try:
            read = _READERS[name](value)
        except ValueError as cause:
            raise PlanError(f"plan: {name}: {cause}") from None
        outer, _, inner = name.rpartition(".")
        (data.setdefault(outer, {}) if outer else data)[inner] = read
    if "schedule" in data and not any(word.strip().startswith("steps") for word in text.split(",")):
        data["steps"] = len(data["schedule"]) - 1
    if "cache" in data:
        data["cache"] = {**CACHE, **data["cache"]}
    return Plan.from_json(data)


def write_words(plan: Plan, num_steps: int) -> str:
    """The inverse: what `read_plan` makes this plan of; "exact" for the exact one."""
    given, usual = plan.to_json(), Plan.exact(num_steps).to_json()
    words = []
    for name, write in _WRITERS.items():
        outer, _, inner = name.rpartition(".")
        if outer == "cache" and given["cache"] is None:
            continue
        value = given[outer][inner] if outer else given[inner]
        if outer == "cache":
            default = _OFF.get(inner)
        else:
            default = usual[outer][inner] if outer else usual[inner]
        if value != default:
            words.append(f"{name}={write(value)}")
    return ",".join(words) or "exact"


def _from_file(path: Path) -> Plan:
    data = read_json_object(path, PlanError, _MOST_BYTES)
    try:
        return Plan.from_json(data)
    except PlanError as cause:
        raise PlanError(f"{path}: {cause}") from cause


def _number(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"expected a number, got {text!r}") from None

    return read


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"expected true or false, got {text!r}")
    return text == "true"


def _padding(text: str) -> bool:
    if text not in _PADDING:
        raise ValueError(f"expected {' or '.join(_PADDING)}, got {text!r}")
    return _PADDING[text]


def _list(read: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: [read(item.strip()) for item in text.split(JOINT) if item.strip()]


def _joined(values: Any) -> str:
    return JOINT.join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def _lower(value: Any) -> str:
    return str(value).lower()


_INT, _FLOAT = _number(int), _number(float)
_LAYERS = _list(_INT)
_READERS: dict[str, Callable[[str], Any]] = {
    "steps": _INT,
    "solver": str,
    "schedule": _list(_FLOAT),
    "horizon": _INT,
    "warm_start": _FLOAT,
    "adaptive": _list(_FLOAT),
    "stop": _FLOAT,
    "late_state": _truth,
    "exit": _INT,
    "skip.vision": _LAYERS,
    "skip.vlm": _LAYERS,
    "skip.expert": _LAYERS,
    "skip.reuse": lambda text: [_LAYERS(step) for step in text.split(STEPS)],
    "cache.threshold": _FLOAT,
    "cache.keyframe_every": _INT,
    "cache.max_age": _INT,
    "cache.dilate": _INT,
    "cache.check": _INT,
    "cache.padding": _padding,
    "cache.attended": _INT,
    "cache.cameras": _list(str),
}
_WRITERS: dict[str, Callable[[Any], str]] = {
    **dict.fromkeys(_READERS, str),
    "late_state": _lower,
    "cache.padding": {kept: word for word, kept in _PADDING.items()}.__getitem__,
    "skip.reuse": lambda steps: STEPS.join(_joined(layers) for layers in steps),
    **dict.fromkeys(
        ("schedule", "adaptive", "skip.vision", "skip.vlm", "skip.expert", "cache.cameras"), _joined
    ),
}
