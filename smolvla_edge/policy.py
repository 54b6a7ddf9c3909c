"""The public API: load a policy, show it an observation, get a chunk of actions.

    policy = load("bundle")
    chunk = policy.predict({"observation.images.top": frame}, state, "pick up the red cube")
    chunk.actions      # float32 [horizon, action_dim], robot units

`predict` and `step` take what a robot has; `predict_action_chunk` and `select_action` take and
return exactly what LeRobot's methods of these names do.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from smolvla_edge.backends import Backend, PredictResult, check_finite, choose
from smolvla_edge.chunk import ActionChunk, ActionQueue
from smolvla_edge.config import ModelConfig
from smolvla_edge.contract import STATE, Contract
from smolvla_edge.engine import check_onnx_options, find_export, open_engine
from smolvla_edge.errors import ContractError, InputError, PlanError
from smolvla_edge.healed import check_healed
from smolvla_edge.lerobot_batch import Kind, split_batch, split_rows
from smolvla_edge.noise import SeedSequence, check_seed, normal
from smolvla_edge.packed_cache import PackedCacheOption, check_option
from smolvla_edge.plan import Plan
from smolvla_edge.plan_fit import check_fit
from smolvla_edge.preprocess import check_frame, check_noise, check_state
from smolvla_edge.presets import resolve_plan
from smolvla_edge.source import Source, open_source
from smolvla_edge.tokenizer import EncodedTask, TaskTokenizer

# Of a backend's info.
_SHOWN = (
    "backend", "device", "device_name", "isa", "sm", "threads", "compute",
    "onnxruntime", "providers", "custom_ops", "accuracy_level",
)  # fmt: skip
_LARGEST_FRAME = (1080, 1920)  # that a warm-up makes room for when nobody says another


def load(
    path: str | os.PathLike[str],
    *,
    device: str = "auto",
    plan: Plan | str = "exact",
    rename: Mapping[str, str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    stats: str | os.PathLike[str] | None = None,
    allow_unnormalized: bool = False,
    allow_missing_cameras: bool = False,
    backend: str = "auto",
    threads: int | None = None,
    revision: str | None = None,
    packed_cache: PackedCacheOption = False,
    warm_up: bool = True,
    accuracy_level: int | None = None,
    custom_ops: bool | None = None,
    allow_fallback: bool | None = None,
) -> Policy:
    """A policy from a bundle, a LeRobot checkpoint folder, a Hub id (extra `hub`), or a folder made
    by `smolvla-edge export` (extra `onnxruntime`; backend "onnx" finds the one in a bundle).

    device: "cpu", "cuda" (one GPU, the first that CUDA_VISIBLE_DEVICES leaves), or "auto": the GPU
    if this build has the CUDA backend, a GPU answers, and neither threads nor packed_cache, which
    are of the CPU, were given. `Policy.provenance` says which it became.
    rename: {robot's camera name: model's}.  tokenizer: a tokenizer.json.  stats: a file, a set of
    the checkpoint's own statistics, or "FILE|SET".  `allow_unnormalized` runs features without
    usable statistics unchanged; `allow_missing_cameras` lets an observation lack cameras.
    packed_cache: True (in the user's cache) or a path keeps a bundle's packed weights and maps
    them at the next load, which then takes a fraction of a second (packed_cache.py).
    warm_up: on a GPU, make all that calls can need before returning (Policy.warm_up).
    accuracy_level, custom_ops, allow_fallback: of backend "onnx" alone (backends/onnx_session.py);
    so is device "tensorrt".

    Raises a SmolVLAEdgeError for everything that is missing, unmatched or damaged.
    """
    # A wrong word is cheaper to say now than after reading.
    path, backend = find_export(path, backend)
    given = {"threads": threads is not None, "packed_cache": packed_cache is not False}
    options = [name for name, is_given in given.items() if is_given]
    chosen, where = choose(backend, device, cpu_options=options)
    check_option(packed_cache, chosen)
    asked = {"accuracy_level": accuracy_level, "custom_ops": custom_ops}
    onnx_options = check_onnx_options(chosen, {**asked, "allow_fallback": allow_fallback})
    source = open_source(
        path,
        rename=rename,
        tokenizer=tokenizer,
        stats=stats,
        allow_unnormalized=allow_unnormalized,
        revision=revision,
        verify=packed_cache is False,
        exports=chosen == "onnx",
    )
    resolved = resolve_plan(plan, source.model.num_steps, source.presets)
    if source.export is not None:
        source.export.check_plan(resolved)
    engine, source = open_engine(source, chosen, where, threads, packed_cache, onnx_options)
    policy = Policy(source, engine, resolved, allow_missing_cameras=allow_missing_cameras)
    if warm_up and where != "cpu":
        policy.warm_up()
    return policy


class Policy:
    """A loaded policy. Methods may be called from several threads.

    The native engine computes one call at a time; `step` and `select_action` hold their queue while
    they compute, so that one chunk serves all.
    """

    def __init__(
        self,
        source: Source,
        engine: Backend,
        plan: Plan,
        *,
        allow_missing_cameras: bool = False,
    ) -> None:
        self._source = source
        self._engine = engine
        self._plan = plan
        info = engine.info()
        self._plan.require(info["plan_fields"], engine.name)
        check_fit(plan, source.model, source.contract)
        check_healed(plan, source)
        self._rows = plan.rows(source.model.chunk_size)
        self._allow_missing_cameras = allow_missing_cameras
        self._tokenizer = (
            None
            if source.tokenizer_file is None
            else TaskTokenizer(source.tokenizer_file, source.contract.tokenizer, source.model.vocab)
        )
        self._seeds = SeedSequence()
        self._lock = threading.RLock()  # of the seeds and queues; the engine has its own
        self._robot_queue: ActionQueue[np.ndarray] = ActionQueue()
        self._lerobot_queue: ActionQueue[Any] = ActionQueue()
        self._last_chunk: ActionChunk | None = None
        # What stays the same from call to call; `predict` adds the rest.
        self._provenance = {
            **{name: info[name] for name in _SHOWN if info.get(name) is not None},
            "plan": plan.to_json(),
            "exact": plan.is_exact(source.model.num_steps) and not info.get("lossy"),
            "unnormalized": list(source.contract.unnormalized),
            **source.provenance,
        }

    @property
    def plan(self) -> Plan:
        return self._plan

    @property
    def contract(self) -> Contract:
        return self._source.contract

    @property
    def model(self) -> ModelConfig:
        return self._source.model

    @property
    def engine(self) -> Backend:
        """The seams: encode_images, prefill, denoise, sample_actions, trace."""
        return self._engine

    @property
    def provenance(self) -> dict[str, Any]:
        """What computes and from what; a chunk's own adds its seed, its cameras and the work."""
        return dict(self._provenance)

    @property
    def last_chunk(self) -> ActionChunk | None:
        """The chunk that `step` hands out now, with its flags and timings."""
        return self._last_chunk

    def warm_up(
        self,
        frame: tuple[int, int] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Make everything on a GPU that `predict` can need: memory, loaded kernels, graphs.

        After it no call allocates or records there, whatever its prompt, cameras, seed or guidance,
        for frames of at most `frame` = (height, width) pixels of uint8, 1080 x 1920 when not given.
        A larger frame makes room once. A policy without a resize is made ready for frames of
        exactly this size (its own image size when not given); it records another size when that
        comes. `progress` is called with (done, in all). `load` calls this for device "cuda"; on the
        CPU it is one call. `engine.info()["ready"]` tells whether it was done.

        Raises InputError for an impossible frame, BackendError when the GPU's memory runs out.
        """
        own = (self.model.image_size, self.model.image_size)
        default = own if self.model.resize is None else _LARGEST_FRAME
        self._engine.warm_up(self._plan, frame or default, progress)

    def reset(self, seed: int | None = None) -> None:
        """Forget queued actions and kept frames, and start a new sequence of noise (a random one
        without seed)."""
        with self._lock:
            self._engine.reset()
            self._seeds.reset(seed)
            self._robot_queue.clear()
            self._lerobot_queue.clear()
            self._last_chunk = None

    def predict(
        self,
        images: Mapping[str, np.ndarray | None],
        state: np.ndarray,
        task: str,
        *,
        noise: np.ndarray | None = None,
        seed: int | None = None,
        inference_delay: int = 0,
        prev_chunk_left_over: np.ndarray | None = None,
        execution_horizon: int | None = None,
    ) -> ActionChunk:
        """One observation -> the next chunk of actions.

        images: {camera: RGB frame [height, width, 3], uint8 or float32 in [0, 1]}.
        state: float32 [state_dim], robot units.  noise: float32 [>= horizon, max_action_dim],
        instead of a seed.  prev_chunk_left_over: float32 [n, action_dim], the rows of the last
        chunk's `.normalized` not yet executed: real-time chunking continues them smoothly; under a
        plan with warm_start the flow starts from them instead.

        Raises InputError, PromptTooLongError or TokenizerError for an observation that does not
        fit the contract, NonFiniteError when the model gives NaN or infinity.
        """
        started = time.perf_counter()
        chosen = self.contract.select_frames(images, allow_missing=self._allow_missing_cameras)
        resize = self.model.resize
        frames = [f if f is None else check_frame(name, f, resize) for name, f in chosen]
        state = check_state(state, self.contract.state_dim)
        encoded = self._encode(task)
        rtc = self.contract.guidance(prev_chunk_left_over, inference_delay, execution_horizon)
        noise, used_seed = self._noise(noise, seed)
        names = [name for name, _ in chosen]
        result = self._engine.predict(
            frames, encoded.ids, state, noise, self._plan, rtc, cameras=self._places(names)
        )
        check_finite(result.normalized, result.actions)
        python_ms = (time.perf_counter() - started) * 1e3 - result.timings["total"]
        timings = dict(result.timings)
        timings["preprocess"] += python_ms  # checks and tokenising
        timings["total"] += python_ms
        present = [name for name, frame in chosen if frame is not None]
        return ActionChunk(
            actions=result.actions,
            normalized=result.normalized,
            timings=timings,
            provenance={
                **self._provenance,
                "seed": used_seed,
                "cameras": present,
                **self._work(result, names),
            },
            flags=(
                *encoded.flags,
                *self.contract.state.far_outside(STATE, state),
                *self._allowances(present),
            ),
        )

    def step(
        self, images: Mapping[str, np.ndarray | None], state: np.ndarray, task: str
    ) -> np.ndarray:
        """One action, float32 [action_dim], robot units.

        A chunk is computed when the queue of its first `n_action_steps` actions is empty, or the
        task has changed; observations in between are not looked at, as in LeRobot. Under a plan
        with warm_start it starts from the rest of the last chunk of the same task.
        """
        with self._lock:
            if not self._robot_queue.serves(task):
                rest = self._rest(task)
                self._last_chunk = self.predict(images, state, task, prev_chunk_left_over=rest)
                ready = self._last_chunk.actions[: self.contract.n_action_steps]
                self._robot_queue.refill(list(ready), task)
            return self._robot_queue.pop()

    def select_action(self, batch: Mapping[str, Any], noise: Any = None) -> Any:
        """LeRobot's method: one normalised action [B, action_dim], queued by `n_action_steps`.

        Raises ContractError when the checkpoint's rtc_config is enabled, as LeRobot does.
        """
        if self.contract.rtc.enabled:
            raise ContractError(
                "select_action keeps a queue of its own and cannot be used with real-time chunking "
                "(rtc_config.enabled is true): use predict_action_chunk"
            )
        with self._lock:
            if not self._lerobot_queue.serves():
                chunk = self.predict_action_chunk(batch, noise)
                count = min(self.contract.n_action_steps, chunk.shape[1])
                self._lerobot_queue.refill([chunk[:, row] for row in range(count)])
            return self._lerobot_queue.pop()

    def predict_action_chunk(
        self,
        batch: Mapping[str, Any],
        noise: Any = None,
        inference_delay: int = 0,
        prev_chunk_left_over: Any = None,
        execution_horizon: int | None = None,
    ) -> Any:
        """LeRobot's method: a batch after its preprocessor -> [B, horizon, action_dim], normalised.

        Batch keys and shapes are in lerobot_batch.py; numpy in, numpy out, torch in, torch out.
        noise: float32 [B, chunk, max_action_dim].  prev_chunk_left_over: float32 [B, n, d], or
        [n, d] for a batch of one. Camera names are the model's. Raises InputError, NonFiniteError,
        and PlanError for a batch of several under a plan with a cache.
        """
        samples = split_batch(
            batch,
            self.contract,
            resize=self.model.resize,
            allow_missing_cameras=self._allow_missing_cameras,
        )
        if self._plan.cache is not None and len(samples) > 1:
            raise PlanError(
                f"cache keeps the frames of one robot, got a batch of {len(samples)}; load one "
                "policy for each robot"
            )
        given = None if noise is None else split_rows(noise, "noise", len(samples))
        left_over: list[np.ndarray | None] = [None] * len(samples)
        if prev_chunk_left_over is not None:
            left_over = [*split_rows(prev_chunk_left_over, "prev_chunk_left_over", len(samples))]
        chunks = []
        for row, sample in enumerate(samples):
            rtc = self.contract.guidance(left_over[row], inference_delay, execution_horizon)
            start, _ = self._noise(None if given is None else given[row], None)
            result = self._engine.predict(
                sample.frames,
                sample.tokens,
                sample.state,
                start,
                self._plan,
                rtc,
                state_is_normalized=True,
                cameras=self._places(sample.cameras),
            )
            check_finite(result.normalized, result.actions)
            chunks.append(result.normalized)
        return Kind.of(batch[STATE]).give_back(np.stack(chunks))

    def _places(self, names: Sequence[str]) -> list[int]:
        """Where each camera stands in the contract: what the token cache knows it by."""
        return [self.contract.cameras.index(name) for name in names]

    def _work(self, result: PredictResult, names: Sequence[str]) -> dict[str, Any]:
        """What the plan came to in this call, for the provenance."""
        work: dict[str, Any] = {"evaluations": result.evaluations}
        if self._plan.cache is not None:
            work["cache"] = {
                name: report.to_json()
                for name, report in zip(names, result.cache, strict=True)
                if report is not None
            }
        return work

    def _rest(self, task: str) -> np.ndarray | None:
        """What `step` has not handed out of its last chunk, for a warm start of this task."""
        chunk = self._last_chunk
        if self._plan.warm_start is None or chunk is None or not self._robot_queue.was_for(task):
            return None
        return chunk.normalized[self.contract.n_action_steps :]

    def _allowances(self, present: list[str]) -> list[str]:
        """Flags for what runs only because the caller allowed it."""
        flags = [
            f"{feature}: not normalised, as allow_unnormalized asked"
            for feature in self.contract.unnormalized
        ]
        missing = [name for name in self.contract.cameras if name not in present]
        if len(missing) > self.contract.empty_cameras:
            flags.append(f"{', '.join(missing)}: missing, as allow_missing_cameras asked")
        return flags

    def _encode(self, task: str) -> EncodedTask:
        if self._tokenizer is None:
            raise self._source.no_tokenizer
        return self._tokenizer.encode(task)

    def _noise(self, noise: Any, seed: int | None) -> tuple[np.ndarray, int | None]:
        """The noise of one call and the seed it came from (None when the caller brought noise)."""
        width = self.model.max_action_dim
        if noise is not None:
            if seed is not None:
                raise InputError("expected noise or seed, got both")
            return check_noise(noise, self._rows, width), None
        if seed is None:
            with self._lock:
                seed = self._seeds.next()
        else:
            seed = check_seed(seed)
        return normal(seed, self._rows, width), seed
