"""The plans that a search may choose from: a few numbers each, and what they mean as a Plan.

Every number is always drawn, also where another one switches it off (a cache's threshold without a
cache): samplers that learn from earlier trials then see the same numbers in each of them. Draws
that come to the same plan are judged once (search.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from smolvla_edge.config import ModelConfig
from smolvla_edge.errors import PlanError
from smolvla_edge.plan import PARTS, SOLVERS, Cache, Plan, Skip

Params = Mapping[str, Any]
Ranking = Mapping[str, Sequence[int]]
"""For each part its layers, least influence on the actions first."""

KNOBS = ("steps", "solver", "stop", "cache", *(f"skip.{part}" for part in PARTS))
_ONLY_PART = 2  # of a part's layers at most one in so many is left out: beyond it nothing survives
_MOST_ROUNDED = 3  # digits of a drawn real number, so that a plan can be read and typed


class Draw(Protocol):
    """What chooses numbers: an Optuna trial."""

    def suggest_int(self, name: str, low: int, high: int, /) -> int: ...

    def suggest_float(self, name: str, low: float, high: float, /, *, log: bool) -> float: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any], /) -> Any: ...


@dataclass(frozen=True)
class Space:
    """Which knobs are turned and how far. Everything JSON-able, and part of a search's identity.

    horizon: rows that are computed, those that are executed; it is exact. knobs: of KNOBS, those
    that are not the exact plan's. order: of each part the layers that may be left out, in the order
    in which they are: a plan says how many.
    """

    horizon: int
    knobs: tuple[str, ...]
    steps: tuple[int, int]
    stop: tuple[float, float] = (0.003, 0.3)
    threshold: tuple[float, float] = (0.002, 0.1)
    keyframe_every: tuple[int, int] = (2, 40)
    max_age: tuple[int, int] = (1, 20)
    dilate: tuple[int, int] = (0, 2)
    order: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @staticmethod
    def of(
        model: ModelConfig, horizon: int, ranking: Ranking, only: Sequence[str] | None = None
    ) -> Space:
        """The space of a policy, narrowed to `only`. Raises PlanError for an unknown knob."""
        knobs = find_knobs(only)
        order = []
        for part in PARTS:
            if f"skip.{part}" in knobs:
                layers = tuple(ranking[part])
                order.append((part, layers[: len(layers) // _ONLY_PART]))
        return Space(horizon, knobs, (1, model.num_steps), order=tuple(order))

    def draw(self, trial: Draw) -> dict[str, Any]:
        """The numbers of one plan."""
        params: dict[str, Any] = {}
        if "steps" in self.knobs:
            params["steps"] = trial.suggest_int("steps", *self.steps)
        if "solver" in self.knobs:
            params["solver"] = trial.suggest_categorical("solver", SOLVERS)
        if "stop" in self.knobs:
            params["stops"] = trial.suggest_categorical("stops", (False, True))
            params["stop"] = trial.suggest_float("stop", *self.stop, log=True)
        if "cache" in self.knobs:
            params["caches"] = trial.suggest_categorical("caches", (False, True))
            params["threshold"] = trial.suggest_float("threshold", *self.threshold, log=True)
            for name in ("keyframe_every", "max_age", "dilate"):
                params[name] = trial.suggest_int(name, *getattr(self, name))
        for part, layers in self.order:
            params[part] = trial.suggest_int(part, 0, len(layers))
        return params

    def plan(self, params: Params) -> Plan:
        """What the numbers mean; a number that is not there is the exact plan's."""
        steps = params.get("steps", self.steps[1])
        cache = None
        if params.get("caches"):
            cache = Cache(
                _readable(params["threshold"]),
                keyframe_every=params["keyframe_every"],
                # At a keyframe every block is new: a larger age never comes.
                max_age=min(params["max_age"], params["keyframe_every"]),
                dilate=params["dilate"],
            )
        skip: dict[str, Any] = {
            part: tuple(sorted(layers[: params.get(part, 0)])) for part, layers in self.order
        }
        return Plan(
            steps=steps,
            # One step is Euler's whatever the solver, and there is no second estimate to stop at.
            solver=params.get("solver", SOLVERS[0]) if steps > 1 else SOLVERS[0],
            stop=_readable(params["stop"]) if params.get("stops") and steps > 1 else None,
            horizon=self.horizon,
            skip=Skip(**skip),
            cache=cache,
        )

    def first(self) -> list[dict[str, Any]]:
        """Sensible plans to begin with: the horizon alone, few steps, a careful and a bold cache,
        and both together."""
        plain = self._plain()
        most = self.steps[1]
        counts = [n for n in (4, 2, 1) if n < most] if "steps" in self.knobs else []
        caches = [0.01, 0.02] if "cache" in self.knobs else []
        cached = [
            {"caches": True, "threshold": t, "keyframe_every": 10, "max_age": 8, "dilate": 1}
            for t in caches
        ]
        solver = {"solver": SOLVERS[1]} if "solver" in self.knobs else {}
        changes: list[dict[str, Any]] = [
            {},
            *({"steps": n} for n in counts),
            *cached,
            *({"steps": n, **(solver if n > 1 else {}), **c} for n in counts[:2] for c in cached),
            *({part: 1} for part, layers in self.order if layers),
        ]
        return [{**plain, **change} for change in changes]

    def _plain(self) -> dict[str, Any]:
        """Every number, at the exact plan's value or where it is switched off."""
        return self.draw(_Plain(self))

    def describe(self) -> list[tuple[str, str]]:
        """(knob, how far), for people."""
        lines = [("horizon", f"{self.horizon}, the actions that are executed (exact)")]
        if "steps" in self.knobs:
            lines.append(("steps", f"{self.steps[0]} to {self.steps[1]}"))
        if "solver" in self.knobs:
            lines.append(("solver", " or ".join(SOLVERS)))
        if "stop" in self.knobs:
            lines.append(("stop", f"off, or {_span(self.stop)}"))
        if "cache" in self.knobs:
            spans = ", ".join(
                f"{name} {_span(getattr(self, name))}"
                for name in ("threshold", "keyframe_every", "max_age", "dilate")
            )
            lines.append(("cache", f"off, or {spans}"))
        for part, layers in self.order:
            names = ", ".join(map(str, layers)) or "none"
            lines.append((f"skip.{part}", f"0 to {len(layers)} layers, in the order {names}"))
        return lines

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "order": {part: list(layers) for part, layers in self.order}}


class _Plain:
    """Draws what leaves a plan exact."""

    def __init__(self, space: Space) -> None:
        self._space = space

    def suggest_int(self, name: str, low: int, high: int, /) -> int:
        usual = {"steps": high, "keyframe_every": 10, "max_age": 8, "dilate": 1}
        return min(max(usual.get(name, 0), low), high)

    def suggest_float(self, name: str, low: float, high: float, /, *, log: bool) -> float:
        return float((low * high) ** 0.5)

    def suggest_categorical(self, name: str, choices: Sequence[Any], /) -> Any:
        return choices[0]


def find_knobs(only: Sequence[str] | None) -> tuple[str, ...]:
    """The knobs of these words in the order of KNOBS, all without; "skip" is all three of them.

    Raises PlanError.
    """
    if only is None:
        return KNOBS
    wanted = {
        knob for word in only for knob in KNOBS if word == knob or knob.startswith(f"{word}.")
    }
    unknown = [w for w in only if not any(k == w or k.startswith(f"{w}.") for k in KNOBS)]
    if unknown or not wanted:
        raise PlanError(
            f"--only: expected some of {', '.join(KNOBS)} (or skip for the last three), got "
            f"{', '.join(unknown) or 'nothing'}"
        )
    return tuple(knob for knob in KNOBS if knob in wanted)


def _readable(value: float) -> float:
    return float(f"{value:.{_MOST_ROUNDED}g}")


def _span(ends: tuple[float, float]) -> str:
    return f"{ends[0]:g} to {ends[1]:g}"
