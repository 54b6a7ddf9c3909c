"""The native backend: `_core.Engine`, the C++ core on the CPU or on a GPU. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from smolvla_edge.backends import PredictResult, cached_cameras, check_finite
from smolvla_edge.cache_report import CacheReport
from smolvla_edge.errors import BackendError, PlanError
from smolvla_edge.plan import Plan
from smolvla_edge.plan_fit import check_fit

if TYPE_CHECKING:
    from smolvla_edge.config import ModelConfig
    from smolvla_edge.contract import Contract
    from smolvla_edge.rtc import Guidance
    from smolvla_edge.safetensors_file import TensorEntry

IMPLEMENTED = frozenset(
    {
        "steps",
        "horizon",
        "solver",
        "schedule",
        "skip",
        "cache",
        "warm_start",
        "adaptive",
        "stop",
        "exit",
    }
)


class NativeBackend:
    """See `backends.Backend` for shapes. One call at a time: the engine has a lock.

    On the CPU `threads` None means as many as this process may use. On "cuda" there are no threads,
    isa and packed; what a call allocates or records the first time, `warm_up` makes before.

    Raises BackendError when the extension is not built, the ISA forced by SMOLVLA_FORCE_ISA is not
    there, or, on "cuda", when the build, the driver, a GPU or memory is missing.
    """

    name = "native"

    def __init__(
        self,
        model: ModelConfig,
        tensors: Mapping[str, TensorEntry],
        contract: Contract,
        *,
        device: str = "cpu",
        threads: int | None = None,
        isa: str = "",
        compute: str = "float32",
        packed: Any = None,
    ) -> None:
        if threads is not None and (type(threads) is not int or threads < 1):
            raise BackendError(f"threads must be None or an integer >= 1, got {threads!r}")
        self._model = model
        self._contract = contract
        self._engine = load_core().Engine(
            model.to_dict(),
            [
                (
                    name,
                    entry.dtype,
                    entry.shape,
                    os.fsencode(entry.path),
                    entry.offset,
                    entry.nbytes,
                )
                for name, entry in tensors.items()
            ],
            contract.engine_stats(),
            threads or 0,
            isa,
            compute,
            packed,
            device,
        )

    def warm_up(
        self, plan: Plan, frame: tuple[int, int], progress: Callable[[int, int], None] | None = None
    ) -> None:
        """One call on black frames, then the recording of every stage that others can need.

        After it no call of any prompt, camera set, seed or guidance allocates or records anything
        on a GPU, while the plan is this one and frames have at most height x width pixels of uint8
        (of float32 a quarter); a policy that does not resize records other sizes when they come.
        On the CPU it is one call. `progress` is called with (done, in all).

        Raises InputError for an impossible frame, BackendError when memory runs out.
        """
        cameras = [] if plan.cache is None else list(range(self._model.max_cameras))
        self._engine.warm_up(*frame, self._plan(plan), cameras, progress)

    def write_packed(self, path: str | os.PathLike[str], bundle: str, config: str) -> None:
        """Keep the weights as they lie in memory; see packed_cache.py. Raises BackendError."""
        self._engine.write_packed(os.fsencode(path), bundle, config)

    def info(self) -> dict[str, Any]:
        return {
            "backend": self.name,
            **self._engine.info(),
            "plan_fields": sorted(IMPLEMENTED),
        }

    def linears(self) -> list[dict[str, Any]]:
        """Every linear layer as it lies in memory: name (tensor names joined by "+"), in, columns,
        bits, group (elements under one scale, 0 without scales), compute, kernel, bytes."""
        return [dict(row) for row in self._engine.linears()]

    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        exact = self._plan(None)
        image_tokens: np.ndarray = self._engine.encode_images(pixels, exact)
        return image_tokens

    def prefill(
        self,
        image_tokens: np.ndarray,
        camera_mask: np.ndarray,
        tokens: np.ndarray,
        token_mask: np.ndarray,
        state: np.ndarray,
    ) -> int:
        exact = self._plan(None)
        return int(
            self._engine.prefill(image_tokens, camera_mask, tokens, token_mask, state, exact)
        )

    def denoise(
        self,
        noise: np.ndarray,
        plan: Plan | None = None,
        inference_delay: int = 0,
        prev_chunk_left_over: np.ndarray | None = None,
        execution_horizon: int | None = None,
    ) -> np.ndarray:
        left_over = self._contract.guidance(
            prev_chunk_left_over, inference_delay, execution_horizon
        )
        flow = self._flow(plan, left_over)
        actions: np.ndarray = self._engine.denoise(noise, *flow)
        check_finite(actions)
        return actions

    def sample_actions(
        self,
        pixels: np.ndarray,
        camera_mask: np.ndarray,
        tokens: np.ndarray,
        token_mask: np.ndarray,
        state: np.ndarray,
        noise: np.ndarray,
        plan: Plan | None = None,
        inference_delay: int = 0,
        prev_chunk_left_over: np.ndarray | None = None,
        execution_horizon: int | None = None,
    ) -> np.ndarray:
        flow = self._alone(plan, prev_chunk_left_over, inference_delay, execution_horizon)
        actions: np.ndarray = self._engine.sample_actions(
            pixels, camera_mask, tokens, token_mask, state, noise, *flow
        )
        check_finite(actions)
        return actions

    def trace(
        self,
        pixels: np.ndarray,
        camera_mask: np.ndarray,
        tokens: np.ndarray,
        token_mask: np.ndarray,
        state: np.ndarray,
        noise: np.ndarray,
        plan: Plan | None = None,
        inference_delay: int = 0,
        prev_chunk_left_over: np.ndarray | None = None,
        execution_horizon: int | None = None,
    ) -> dict[str, np.ndarray]:
        flow = self._alone(plan, prev_chunk_left_over, inference_delay, execution_horizon)
        return dict(
            self._engine.trace(pixels, camera_mask, tokens, token_mask, state, noise, *flow)
        )

    def predict(
        self,
        frames: Sequence[np.ndarray | None],
        tokens: np.ndarray,
        state: np.ndarray,
        noise: np.ndarray,
        plan: Plan | None = None,
        rtc: Guidance | None = None,
        state_is_normalized: bool = False,
        cameras: Sequence[int] | None = None,
    ) -> PredictResult:
        plan_numbers, guidance, rest = self._flow(plan, rtc)
        kept = [] if plan is None else cached_cameras(plan, self._contract, frames, cameras)
        result = self._engine.predict(
            list(frames),
            tokens,
            state,
            noise,
            plan_numbers,
            guidance,
            rest,
            state_is_normalized,
            [-1 if place is None else place for place in kept],
        )
        return PredictResult(
            result["normalized"],
            result["actions"],
            result["timings"],
            result["evaluations"],
            tuple(None if did is None else CacheReport(**did) for did in result["cache"]),
        )

    def reset(self) -> None:
        """Forget the frames that the token cache keeps."""
        self._engine.reset()

    def start_recording(self, capacity: int) -> None:
        """Write down every operation from here on, at most the last `capacity`; see profile/.

        Raises BackendError on a GPU."""
        self._engine.start_recording(capacity)

    def take_records(self) -> dict[str, Any]:
        """End recording: {"ops": [...], "stages": [...], "overwritten": n}."""
        return dict(self._engine.take_records())

    def _plan(self, plan: Plan | None) -> dict[str, Any]:
        """The plan as the engine takes it. Raises PlanError."""
        plan = plan or Plan.exact(self._model.num_steps)
        plan.require(IMPLEMENTED, self.name)
        check_fit(plan, self._model, self._contract)
        return engine_plan(plan, plan.rows(self._model.chunk_size))

    def _alone(
        self, plan: Plan | None, prev: np.ndarray | None, delay: int, horizon: int | None
    ) -> tuple[dict[str, Any], dict[str, Any] | None, np.ndarray | None]:
        """`_flow` for a call whose frames follow no others."""
        if plan is not None and plan.cache is not None:
            raise PlanError(
                "a plan with a cache is for predict, whose frames follow each other; remove cache "
                "from the plan for sample_actions and trace"
            )
        return self._flow(plan, self._contract.guidance(prev, delay, horizon))

    def _flow(
        self, plan: Plan | None, left_over: Guidance | None
    ) -> tuple[dict[str, Any], dict[str, Any] | None, np.ndarray | None]:
        """(plan, guidance, what the flow starts from) as the engine takes them."""
        if plan is not None and plan.warm_start is not None:
            return self._plan(plan), None, None if left_over is None else left_over.prev
        return self._plan(plan), None if left_over is None else left_over.to_engine(), None


def engine_plan(plan: Plan, rows: int) -> dict[str, Any]:
    """Every knob as a plain number: what `_core.Engine` takes a plan as."""
    cache, adaptive = plan.cache, plan.adaptive
    return {
        "rows": rows,
        "steps": plan.steps,
        "ab2": plan.solver == "ab2",
        "times": list(plan.schedule or ()),
        "warm_start": plan.warm_start or 0.0,
        "adaptive": adaptive is not None,
        "high": 0.0 if adaptive is None else adaptive[0],
        "low": 0.0 if adaptive is None else adaptive[1],
        "stop": -1.0 if plan.stop is None else plan.stop,
        "exit": plan.exit or 0,
        "skip_vision": list(plan.skip.vision),
        "skip_vlm": list(plan.skip.vlm),
        "skip_expert": list(plan.skip.expert),
        "reuse": [list(layers) for layers in plan.skip.reuse],
        "caching": cache is not None,
        "threshold": 0.0 if cache is None else cache.threshold,
        "keyframe_every": 1 if cache is None else cache.keyframe_every,
        "max_age": 1 if cache is None else cache.max_age,
        "dilate": 0 if cache is None else cache.dilate,
        "check": 0 if cache is None else cache.check,
        "keep_padding": cache is not None and cache.padding,
        "attended": 0 if cache is None else cache.attended,
    }


def why_no_gpu() -> str | None:
    """What is missing for device "cuda", and what to do about it; None when it can be used."""
    error: str | None = load_core().cuda()["error"]
    return error


def load_core() -> Any:
    """The C++ extension. Raises BackendError when this installation has none."""
    try:
        from smolvla_edge import _core
    except ImportError as cause:
        raise BackendError(
            f"the C++ core (smolvla_edge._core) cannot be imported: {cause}. Install the package "
            "with 'pip install .', which builds it"
        ) from cause
    return _core
