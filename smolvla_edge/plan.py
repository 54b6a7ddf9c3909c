"""Plan: every run-time knob that trades work for accuracy, in one frozen dataclass.

The exact plan takes the checkpoint's Euler steps, skips nothing and caches nothing. Everything else
is asked for by name, and a backend that does not implement a field refuses the plan: a knob is
never ignored. (Precision is no knob: it belongs to the bundle.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

from smolvla_edge.errors import PlanError

SOLVERS = ("euler", "ab2")
PARTS = ("vision", "vlm", "expert")
MAX_STEPS = 1000
MAX_COUNT = 1_000_000


@dataclass(frozen=True)
class Cache:
    """Reuse of visual tokens between frames that hardly differ.

    A block is what becomes one token: scale_factor x scale_factor patches.

    threshold: largest change of a block that still counts as "the same": the mean absolute
    difference of a patch's pixels, of frames in [0, 1], in the patch that changed most. With 0 the
    cache is exact: an identical frame reuses everything, any other none.  keyframe_every: calls
    from one full computation to the next.  max_age: the same of a block.  cameras: names, None for
    all.  dilate: blocks around a changed one that are computed with it.  check: unchanged
    blocks computed in each call, to see how far the reused ones are off.  padding: keep the blocks
    that a letterbox fills with padding alone, whatever else is computed, until nothing kept fits a
    call. Their tokens are then of an older frame: with a threshold of 0 too, only the frame that
    they are of is exact.  attended: the blocks that the expert's cross-attention looked at most in
    the last call, so many of each camera, are computed too.
    """

    threshold: float
    keyframe_every: int
    max_age: int
    cameras: tuple[str, ...] | None = None
    dilate: int = 1
    check: int = 1
    padding: bool = False
    attended: int = 0

    def __post_init__(self) -> None:
        if not _is_number(self.threshold) or not self.threshold >= 0:
            raise PlanError(f"cache.threshold must be a number >= 0, got {self.threshold!r}")
        least_of = {"keyframe_every": 1, "max_age": 1, "dilate": 0, "check": 0, "attended": 0}
        for name, least in least_of.items():
            if not _is_count(getattr(self, name), least):
                raise PlanError(
                    f"cache.{name} must be an integer from {least} to {MAX_COUNT}, "
                    f"got {getattr(self, name)!r}"
                )
        if not isinstance(self.padding, bool):
            raise PlanError(f"cache.padding must be True or False, got {self.padding!r}")
        if self.cameras is not None:
            names = _tuple(self.cameras, "cache.cameras")
            if not all(isinstance(name, str) for name in names):
                raise PlanError(f"cache.cameras must be camera names, got {self.cameras!r}")
            object.__setattr__(self, "cameras", names)


@dataclass(frozen=True)
class Skip:
    """Layers left out, by part; indices as in the checkpoint, strictly increasing.

    A skipped layer of the language model still gives its keys and values to the expert. reuse: for
    every evaluation of the velocity (as many as steps, or none at all) the expert's layers that are
    not computed in it, but add what they added when they last ran (after DeepCache, Ma et al.
    2023); none in the first.
    """

    vision: tuple[int, ...] = ()
    vlm: tuple[int, ...] = ()
    expert: tuple[int, ...] = ()
    reuse: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        for part in PARTS:
            object.__setattr__(self, part, _layers(getattr(self, part), f"skip.{part}"))
        reuse = tuple(
            _layers(layers, f"skip.reuse[{k}]")
            for k, layers in enumerate(_tuple(self.reuse, "skip.reuse"))
        )
        if reuse and reuse[0]:
            raise PlanError(f"skip.reuse[0] must be empty: nothing ran before; got {reuse[0]!r}")
        both = sorted(set(self.expert) & set().union(*reuse))
        if both:
            raise PlanError(f"skip.reuse names layers that skip.expert leaves out: {both}")
        object.__setattr__(self, "reuse", reuse)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, every field present."""
        parts: dict[str, Any] = {part: list(getattr(self, part)) for part in PARTS}
        return {**parts, "reuse": [list(layers) for layers in self.reuse]}


@dataclass(frozen=True)
class Plan:
    """One setting of all knobs. Raises PlanError for a bad value.

    steps: denoising steps.  solver: "euler" or "ab2".  schedule: the times of the steps from 1 down
    to 0, `steps + 1` of them, None for equal steps.  horizon: compute only the first rows of the
    chunk (exact: the expert is causal), None for all.  skip: a Skip or a mapping {"vlm": (14, 15)}.
    warm_start: start the flow at this time in (0, 1) from the rest of the previous chunk, where
    there is one, and noise: x = time * noise + (1 - time) * rest; all times shrink with it.
    adaptive: (high, low), cosines between the velocities at the start and half way: above high one
    more step ends the flow, above low three, below it half of `steps`.  stop: end the flow when two
    successive estimates of the chunk, x - t v, differ by no more (normalised units).
    late_state: compute the prefix before the state is read.  exit: run this many layers of the
    language model, and those of the expert beside them, alone: one of what the checkpoint declares
    as its exits.
    """

    steps: int = 10
    solver: str = "euler"
    schedule: tuple[float, ...] | None = None
    horizon: int | None = None
    skip: Skip = field(default_factory=Skip)
    cache: Cache | None = None
    warm_start: float | None = None
    adaptive: tuple[float, float] | None = None
    stop: float | None = None
    late_state: bool = False
    exit: int | None = None

    def __post_init__(self) -> None:
        if self.exit is not None and not (_is_count(self.exit, 1)):
            raise PlanError(f"exit must be None or a number of layers >= 1, got {self.exit!r}")
        if type(self.steps) is not int or not 1 <= self.steps <= MAX_STEPS:
            raise PlanError(f"steps must be an integer from 1 to {MAX_STEPS}, got {self.steps!r}")
        if self.solver not in SOLVERS:
            raise PlanError(f"solver must be one of {', '.join(SOLVERS)}, got {self.solver!r}")
        if self.horizon is not None and (type(self.horizon) is not int or self.horizon < 1):
            raise PlanError(f"horizon must be None or an integer >= 1, got {self.horizon!r}")
        if not isinstance(self.late_state, bool):
            raise PlanError(f"late_state must be True or False, got {self.late_state!r}")
        if self.warm_start is not None and not (
            _is_number(self.warm_start) and 0 < self.warm_start < 1
        ):
            raise PlanError(f"warm_start must be None or in (0, 1), got {self.warm_start!r}")
        if self.cache is not None and not isinstance(self.cache, Cache):
            raise PlanError(f"cache must be None or a Cache, got {self.cache!r}")
        if isinstance(self.skip, Mapping):
            object.__setattr__(self, "skip", _from_mapping(Skip, self.skip, "skip"))
        elif not isinstance(self.skip, Skip):
            raise PlanError(f"skip must be a Skip or a mapping of {PARTS}, got {self.skip!r}")
        if self.skip.reuse and len(self.skip.reuse) != self.steps:
            raise PlanError(
                f"skip.reuse must have an entry for each of {self.steps} steps, got "
                f"{len(self.skip.reuse)}"
            )
        if self.stop is not None and not (_is_number(self.stop) and self.stop >= 0):
            raise PlanError(f"stop must be None or a number >= 0, got {self.stop!r}")
        self._check_schedule()
        self._check_adaptive()

    def _check_adaptive(self) -> None:
        if self.adaptive is None:
            return
        cosines = _tuple(self.adaptive, "adaptive")
        if not (
            len(cosines) == 2
            and all(_is_number(cosine) for cosine in cosines)
            and 1 >= cosines[0] >= cosines[1] >= -1
        ):
            raise PlanError(
                f"adaptive must be two cosines, 1 >= high >= low >= -1, got {self.adaptive!r}"
            )
        others = {
            "schedule": self.schedule is not None,
            "solver": self.solver != "euler",
            "stop": self.stop is not None,
            "skip.reuse": bool(self.skip.reuse),
        }
        clash = [name for name, given in others.items() if given]
        if clash:
            raise PlanError(f"adaptive chooses the steps itself; remove {', '.join(clash)}")
        object.__setattr__(self, "adaptive", (float(cosines[0]), float(cosines[1])))

    def _check_schedule(self) -> None:
        if self.schedule is None:
            return
        times = _tuple(self.schedule, "schedule")
        falling = all(_is_number(time) for time in times) and all(
            later < earlier for earlier, later in pairwise(times)
        )
        ends = len(times) == self.steps + 1 and times[0] == 1 and times[-1] == 0
        if not (falling and ends):
            raise PlanError(
                f"schedule must hold steps + 1 = {self.steps + 1} times falling from 1 to 0, "
                f"got {self.schedule!r}"
            )
        object.__setattr__(self, "schedule", tuple(float(time) for time in times))

    @classmethod
    def exact(cls, num_steps: int) -> Plan:
        """The reference: the checkpoint's number of Euler steps, nothing left out."""
        return cls(steps=num_steps)

    def is_exact(self, num_steps: int) -> bool:
        """Whether every action computed equals the reference's (a shorter horizon still does)."""
        return replace(self, horizon=None) == Plan.exact(num_steps)

    def rows(self, chunk_size: int) -> int:
        """Rows of the chunk that are computed. Raises PlanError when the horizon exceeds it."""
        if self.horizon is None:
            return chunk_size
        if self.horizon > chunk_size:
            raise PlanError(f"horizon must be at most the chunk's {chunk_size}, got {self.horizon}")
        return self.horizon

    def require(self, implemented: Iterable[str], backend: str) -> None:
        """Refuse fields that differ from the exact plan and that `backend` does not implement."""
        known = {*implemented, "steps"}
        default = Plan()
        asked = [
            item.name
            for item in fields(self)
            if getattr(self, item.name) != getattr(default, item.name) and item.name not in known
        ]
        if asked:
            values = ", ".join(f"{name}={getattr(self, name)!r}" for name in asked)
            raise PlanError(
                f"the {backend} backend implements {', '.join(sorted(known))}, not {values}. "
                "Remove it from the plan or choose another backend"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, every field present."""
        result: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        result["schedule"] = None if self.schedule is None else list(self.schedule)
        result["adaptive"] = None if self.adaptive is None else list(self.adaptive)
        result["skip"] = self.skip.to_json()
        if self.cache is not None:
            result["cache"] = {item.name: getattr(self.cache, item.name) for item in fields(Cache)}
            if self.cache.cameras is not None:
                result["cache"]["cameras"] = list(self.cache.cameras)
        return result

    @classmethod
    def from_json(cls, data: object) -> Plan:
        """The inverse of `to_json` for untrusted data; missing fields keep their default.

        Raises PlanError for an unknown field or a bad value.
        """
        if not isinstance(data, dict):
            raise PlanError(f"a plan must be an object, got {type(data).__name__}")
        values = dict(data)
        if values.get("cache") is not None:
            values["cache"] = _from_mapping(Cache, values["cache"], "cache")
        plan: Plan = _from_mapping(cls, values, "plan")
        return plan


def _from_mapping(kind: type, data: object, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise PlanError(f"{where} must be an object, got {data!r:.80}")
    known = {item.name for item in fields(kind)}
    unknown = sorted(str(name) for name in data.keys() - known)
    if unknown:
        raise PlanError(
            f"{where}: unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
    try:
        return kind(**data)
    except TypeError as cause:  # a required field is missing
        raise PlanError(f"{where}: {cause}") from cause


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and value == value and abs(value) != float("inf")  # type: ignore[arg-type]


def _is_count(value: object, least: int) -> bool:
    return type(value) is int and least <= value <= MAX_COUNT


def _layers(value: object, where: str) -> tuple[int, ...]:
    layers = _tuple(value, where)
    if not all(_is_count(layer, 0) for layer in layers):
        raise PlanError(f"{where} must be layer indices >= 0, got {layers!r:.80}")
    if list(layers) != sorted(set(layers)):
        raise PlanError(f"{where} must be strictly increasing, got {layers!r:.80}")
    return layers


def _tuple(value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise PlanError(f"{where} must be a sequence, got {value!r:.80}")
    return tuple(value)
