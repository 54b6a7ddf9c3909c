"""The ONNX backend: an export folder, run by ONNX Runtime on a CPU, with CUDA or TensorRT.

Needs neither torch nor the package onnx. It runs three graphs, `vision`, `prefix` and `flow`; keys
and values of the prefix stay on the device between the last two. What is small stays in Python: the
letterbox of the C++ core, normalisation, and the plan, which the flow takes as rows of numbers
(flow_rows.py). Cameras that are masked are not encoded, padded tokens are left out.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from smolvla_edge.aloha import actions_to_aloha, state_from_aloha
from smolvla_edge.backends import PredictResult, check_finite
from smolvla_edge.backends.native import load_core
from smolvla_edge.backends.onnx_inputs import check_array, first_rows, padded, valid_tokens
from smolvla_edge.backends.onnx_session import OnnxOptions, Runtime
from smolvla_edge.contract import Contract
from smolvla_edge.errors import BackendError, InputError
from smolvla_edge.flow_rows import pull_target, pull_weights, schedule_rows, warm
from smolvla_edge.onnx_folder import ExportFolder
from smolvla_edge.plan import Plan
from smolvla_edge.plan_fit import check_fit
from smolvla_edge.preprocess import normalize, unnormalize
from smolvla_edge.rtc import Guidance

# skip and exit are settled in the graphs, and only these are taken (ExportFolder.check_plan).
IMPLEMENTED = frozenset({"steps", "solver", "schedule", "horizon", "warm_start", "skip", "exit"})

_PREFIX = ("keys", "values", "valid")


class OnnxBackend:
    """See backends.Backend for the methods; one call at a time.

    Without a plan a method takes the exported one. `contract` may have other names and statistics
    than the folder's own. threads: None for as many as this process may use.

    Raises MissingExtraError without ONNX Runtime, BackendError for what cannot run here,
    ExportError for graphs that are not what the folder says.
    """

    name = "onnx"

    def __init__(
        self,
        folder: ExportFolder,
        contract: Contract | None = None,
        *,
        device: str = "cpu",
        threads: int | None = None,
        options: OnnxOptions | None = None,
    ) -> None:
        folder.check_target()
        if threads is not None and (type(threads) is not int or threads < 1):
            raise BackendError(f"threads must be None or an integer >= 1, got {threads!r}")
        self.folder = folder
        self.config = folder.manifest.model
        self.contract = contract or folder.manifest.contract
        self._options = options or OnnxOptions()
        self._device = device
        self._core = load_core()
        self._threads = threads or int(self._core.cpu_info()["threads"])
        self._runtime = Runtime(folder, device, self._threads, self._options)
        self._vision, self._prefix, self._flow = (
            self._runtime.open(name, folder) for name in ("vision", "prefix", "flow")
        )
        self._kept: dict[str, Any] | None = None
        self._ready = device == "cpu"
        self._lock = threading.RLock()
        self._process = os.getpid()

    def info(self) -> dict[str, Any]:
        manifest = self.folder.manifest
        sessions = {"vision": self._vision, "prefix": self._prefix, "flow": self._flow}
        lossy = ["accuracy_level 4: activations rounded to int8"]
        return {
            "backend": self.name,
            "device": self._device,
            "compute": "float16" if manifest.precision == "float16" else "float32",
            "isa": None,
            "sm": None,
            "threads": self._threads,
            "onnxruntime": self._runtime.ort.__version__,
            "providers": {name: list(session.providers) for name, session in sessions.items()},
            "nodes": {name: session.nodes for name, session in sessions.items()},
            "custom_ops": None if self._runtime.library is None else str(self._runtime.library),
            "accuracy_level": self._options.accuracy_level,
            "lossy": lossy if self._options.accuracy_level else [],
            "precision": manifest.precision,
            "target": manifest.target,
            "weights_bytes": sum(
                record.nbytes for name, record in manifest.files.items() if ".weights" in name
            ),
            "plan_fields": sorted(IMPLEMENTED),
            "ready": self._ready,
        }

    def warm_up(
        self, plan: Plan, frame: tuple[int, int], progress: Callable[[int, int], None] | None = None
    ) -> None:
        """One call on black frames. Raises InputError for an impossible frame."""
        rows, width = plan.rows(self.config.chunk_size), self.config.max_action_dim
        self.predict(
            [np.zeros((*frame, 3), np.uint8)] * self.config.max_cameras,
            np.zeros(1, np.int64),
            np.zeros(self.config.state_dim, np.float32),
            np.zeros((rows, width), np.float32),
            plan,
        )
        self._ready = True
        if progress is not None:
            progress(1, 1)

    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        pixels = check_array("pixels", pixels, "float32", (None, 3, None, None))
        with self._call():
            return _numpy(self._encoded(pixels, np.ones(len(pixels), bool)))

    def prefill(
        self,
        image_tokens: np.ndarray,
        camera_mask: np.ndarray,
        tokens: np.ndarray,
        token_mask: np.ndarray,
        state: np.ndarray,
    ) -> int:
        width = self.config.text_width
        images = check_array("image_tokens", image_tokens, "float32", (None, None, width))
        mask = check_array("camera_mask", camera_mask, "bool", (len(images),))
        state = check_array("state", state, "float32", (self.config.max_state_dim,))
        ids = valid_tokens(self.config, tokens, token_mask)
        with self._call():
            self._kept = self._prefilled(images, mask, ids, state)
            return int(_numpy(self._kept["valid"]).sum())

    def denoise(
        self,
        noise: np.ndarray,
        plan: Plan | None = None,
        inference_delay: int = 0,
        prev_chunk_left_over: np.ndarray | None = None,
        execution_horizon: int | None = None,
    ) -> np.ndarray:
        guidance = self.contract.guidance(prev_chunk_left_over, inference_delay, execution_horizon)
        plan = self._plan(plan)
        start = self._start(noise, plan)
        with self._call():
            if self._kept is None:
                raise InputError(
                    "expected prefill() before denoise(), got no prefix; call it first"
                )
            actions = self._denoised(start, self._kept, plan, guidance)
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
        recorded = self.trace(
            pixels, camera_mask, tokens, token_mask, state, noise, plan,
            inference_delay, prev_chunk_left_over, execution_horizon,
        )  # fmt: skip
        actions = recorded["out.actions_padded"][0]
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
        """What leaves the graphs: image tokens, keys and values of self-attention layers, actions;
        of valid cameras and tokens alone."""
        guidance = self.contract.guidance(prev_chunk_left_over, inference_delay, execution_horizon)
        plan = self._plan(plan)
        pixels = check_array("pixels", pixels, "float32", (None, 3, None, None))
        mask = check_array("camera_mask", camera_mask, "bool", (len(pixels),))
        state = check_array("state", state, "float32", (self.config.max_state_dim,))
        ids = valid_tokens(self.config, tokens, token_mask)
        start = self._start(noise, plan)
        with self._call():
            images = self._encoded(pixels, mask)
            prefix = self._prefilled(images, mask, ids, state)
            actions = self._denoised(start, prefix, plan, guidance)
        recorded = {f"mid.pixels.{i}": pixels[i : i + 1] for i in np.flatnonzero(mask)}
        image_tokens = _numpy(images)
        recorded |= {f"out.connector.{i}": image_tokens[i : i + 1] for i in np.flatnonzero(mask)}
        recorded |= self._keys_and_values(prefix)
        recorded["out.actions_padded"] = actions[None]
        recorded["out.actions"] = actions[None, :, : self.config.action_dim]
        return recorded

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
        laps = [time.perf_counter()]
        plan = self._plan(plan)
        start = self._start(noise, plan)
        state = check_array("state", state, "float32", (self.config.state_dim,))
        if not state_is_normalized:
            state = normalize(state, self.contract.state)
        if self.config.adapt_to_pi_aloha:
            state = state_from_aloha(state)
        full = np.zeros(self.config.max_state_dim, np.float32)
        full[: len(state)] = state
        ids = valid_tokens(self.config, tokens, None)
        mask = np.array([frame is not None for frame in frames])
        pixels = self._letterboxed(frames)
        with self._call():
            laps.append(time.perf_counter())
            images = self._encoded(pixels, mask)
            laps.append(time.perf_counter())
            prefix = self._prefilled(images, mask, ids, full)
            laps.append(time.perf_counter())
            actions = self._denoised(start, prefix, plan, rtc)
        normalized = actions[:, : self.config.action_dim]
        # LeRobot hands on what it has after this conversion, also to real-time chunking.
        if self.config.adapt_to_pi_aloha:
            normalized = actions_to_aloha(normalized)
        robot = unnormalize(normalized, self.contract.action)
        laps.append(time.perf_counter())
        stages = ("preprocess", "vision", "prefix", "flow")
        timings = {name: 1e3 * (laps[k + 1] - laps[k]) for k, name in enumerate(stages)}
        timings["total"] = 1e3 * (laps[-1] - laps[0])
        nothing = (None,) * len(frames)
        return PredictResult(np.ascontiguousarray(normalized), robot, timings, plan.steps, nothing)

    def reset(self) -> None:
        """Nothing: no frame is kept."""

    @contextmanager
    def _call(self) -> Iterator[None]:
        """One at a time. Raises BackendError after a fork, where ONNX Runtime would wait for
        threads that are not there."""
        if os.getpid() != self._process:
            raise BackendError(
                f"this policy was loaded in process {self._process} and is used after a fork, in "
                f"{os.getpid()}; load it in the process that uses it"
            )
        with self._lock:
            yield

    def _plan(self, plan: Plan | None) -> Plan:
        """The plan, if these graphs can compute it. Raises PlanError."""
        plan = plan or self.folder.manifest.plan
        plan.require(IMPLEMENTED, self.name)
        check_fit(plan, self.config, self.contract)
        self.folder.check_plan(plan)
        return plan

    def _start(self, noise: np.ndarray, plan: Plan) -> np.ndarray:
        """x at time 1, [h, max_action_dim]."""
        rows = plan.rows(self.config.chunk_size)
        return first_rows(noise, rows, self.config.max_action_dim)

    def _letterboxed(self, frames: Sequence[np.ndarray | None]) -> np.ndarray:
        """float32 [cameras, 3, height, width]; a blank camera is black."""
        pixels: dict[int, np.ndarray] = {}
        for i, frame in enumerate(frames):
            if frame is not None:
                height, width = frame.shape[:2]
                pixels[i] = self._core.letterbox(frame, *(self.config.resize or (width, height)))
        if not pixels:
            raise InputError("expected at least one camera frame, got none; pass images")
        shapes = {image.shape for image in pixels.values()}
        if len(shapes) > 1:
            raise InputError(
                "frames: expected one size, because this policy does not resize and the exported "
                f"graph takes all cameras at once, got {sorted(shapes)}; use backend 'native'"
            )
        blank = np.full(shapes.pop(), -1.0, np.float32)
        return np.stack([pixels.get(i, blank) for i in range(len(frames))])

    def _encoded(self, pixels: np.ndarray, mask: np.ndarray) -> Any:
        """Image tokens [cameras, t, width], zeros where a camera is masked."""
        present = np.flatnonzero(mask)
        if not present.size:
            count = self.config.tokens_per_image(pixels.shape[3], pixels.shape[2])
            return np.zeros((len(mask), count, self.config.text_width), np.float32)
        size = self.folder.manifest.graphs["vision"].input("pixels").shape[0]
        given = padded(pixels[present], size)
        made = self._vision.run({"pixels": given}, keep=["image_tokens"])["image_tokens"]
        if len(given) == len(mask):
            return made
        tokens = _numpy(made)
        images = np.zeros((len(mask), *tokens.shape[1:]), np.float32)
        images[present] = tokens[: len(present)]
        return images

    def _prefilled(
        self, images: Any, mask: np.ndarray, ids: np.ndarray, state: np.ndarray
    ) -> dict[str, Any]:
        """Keys, values and which rows are valid, where the device has them."""
        graph = self.folder.manifest.graphs["prefix"]
        size = graph.input("camera_mask").shape[0]
        if isinstance(size, int) and len(mask) < size:
            if self.config.add_image_special_tokens:
                raise InputError(
                    f"frames: the exported graph takes {size} cameras, got {len(mask)}, and the "
                    "special tokens around an image count for a missing one too; export for "
                    "any number of cameras, or give all"
                )
            images, mask = padded(_numpy(images), size), padded(mask, size)
        if not len(ids):  # a graph may not take an empty axis; a masked token is none
            tokens, token_mask = np.zeros(1, np.int64), np.zeros(1, bool)
        else:
            tokens, token_mask = ids, np.ones(len(ids), bool)
        length = graph.input("tokens").shape[0]
        return self._prefix.run(
            {
                "image_tokens": images,
                "camera_mask": mask,
                "tokens": padded(tokens, length),
                "token_mask": padded(token_mask, length),
                "state": state,
            },
            keep=_PREFIX,
        )

    def _denoised(
        self, x: np.ndarray, prefix: dict[str, Any], plan: Plan, guidance: Guidance | None
    ) -> np.ndarray:
        """From x at time 1 to actions, float32 [h, max_action_dim]."""
        rows, width = x.shape
        start, limit = 1.0, None
        target, weights = np.zeros((1, width), np.float32), np.zeros(1, np.float32)
        if guidance is not None and plan.warm_start is not None:
            start = plan.warm_start
            x = warm(x, guidance.prev, start)
        elif guidance is not None:
            limit = guidance.max_guidance_weight
            target = pull_target(guidance, rows, width)
            weights = pull_weights(guidance, self.config.chunk_size)[:rows]
        actions: np.ndarray = self._flow.run(
            {
                "noise": x,
                **prefix,
                "schedule": schedule_rows(plan, start, limit),
                "pull_target": target,
                "pull_weights": weights,
            }
        )["actions"]
        return actions

    def _keys_and_values(self, prefix: dict[str, Any]) -> dict[str, np.ndarray]:
        """Of the layers whose keys the graph gives as the language model has them."""
        config, plan = self.config, self.folder.manifest.plan
        layers = [
            i * config.expert_layer_stride
            for i in range(config.expert_layers)
            if i not in plan.skip.expert
        ]
        valid = _numpy(prefix["valid"])
        recorded = {}
        for kind, name in (("key", "keys"), ("value", "values")):
            stacked = _numpy(prefix[name])
            for place, layer in enumerate(layers[: len(stacked)]):
                if config.is_self_layer(layer):
                    heads = stacked[place][valid].reshape(-1, config.kv_heads, config.head_dim)
                    recorded[f"out.kv.{layer}.{kind}"] = heads.transpose(1, 0, 2)[None]
        return recorded


def _numpy(value: Any) -> np.ndarray:
    """An array, from wherever the device has it."""
    array: np.ndarray = value if isinstance(value, np.ndarray) else value.numpy()
    return array
