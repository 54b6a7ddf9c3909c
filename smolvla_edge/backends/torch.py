"""The reference backend: SmolVLA in PyTorch, computed plainly in float32.

It exists to be compared with, and to run where torch runs. Masked cameras and padded tokens are
computed and masked out, as LeRobot does it; only `predict` leaves nothing to mask but blank frames.
On a CUDA device the model hands its linears of codes, SwiGLU, grouped attention and flow steps to
the Triton kernels where Triton is installed, but not inside `kernels.plain_torch()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from smolvla_edge import kernels
from smolvla_edge.backends import PredictResult, cached_cameras, check_finite
from smolvla_edge.cache_report import CacheReport
from smolvla_edge.config import ModelConfig
from smolvla_edge.contract import Contract
from smolvla_edge.errors import BackendError, InputError, MissingExtraError, PlanError
from smolvla_edge.plan import Plan
from smolvla_edge.plan_fit import check_fit
from smolvla_edge.preprocess import normalize, unnormalize
from smolvla_edge.rtc import Guidance
from smolvla_edge.safetensors_file import TensorEntry

try:
    import torch
except ImportError as error:
    raise MissingExtraError(
        "backend 'torch' needs PyTorch, which is not installed; "
        "run: pip install 'smolvla-edge[torch]'"
    ) from error

from smolvla_edge.backends.torch_clock import Clock
from smolvla_edge.model import letterbox, load_model
from smolvla_edge.model.aloha import actions_to_aloha, state_from_aloha
from smolvla_edge.model.layers import Record, ignore
from smolvla_edge.model.prefix import Cache, image_places
from smolvla_edge.model.token_cache import CameraCache

IMPLEMENTED = (
    "steps",
    "solver",
    "schedule",
    "horizon",
    "skip",
    "cache",
    "warm_start",
    "adaptive",
    "stop",
    "exit",
)

Prompt = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@contextmanager
def _exact_float32() -> Iterator[None]:
    """Full float32 on a GPU, whatever the process has set for its own models.

    cuDNN computes convolutions in TF32 (10 bits of mantissa) unless told otherwise.
    """
    name: str = "fp32_precision"
    full: str | bool = "ieee"
    knobs: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    if hasattr(torch.backends.cudnn, "conv"):  # torch 2.9 and newer
        knobs = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    else:
        name, full = "allow_tf32", False
    before = [getattr(knob, name) for knob in knobs]
    for knob in knobs:
        setattr(knob, name, full)
    try:
        yield
    finally:
        for knob, value in zip(knobs, before, strict=True):
            setattr(knob, name, value)


class TorchBackend:
    """See backends.Backend for the methods; every array is numpy, of one observation.

    `tensors` may include the dead ones of a checkpoint, which `trace` then shows the use of.
    `threads` sets torch's thread count for the whole process. Raises BackendError for a device that
    is not there, CheckpointError for tensors that do not fit `model`.
    """

    name = "torch"

    def __init__(
        self,
        model: ModelConfig,
        tensors: Mapping[str, TensorEntry],
        contract: Contract,
        *,
        device: str = "cpu",
        threads: int | None = None,
    ):
        if device == "cuda" and not torch.cuda.is_available():
            raise BackendError(
                "expected a CUDA device for device='cuda', torch finds none; use device='cpu' or a "
                "torch build with CUDA"
            )
        if threads is not None and (type(threads) is not int or threads < 1):
            raise BackendError(f"threads must be None or an integer >= 1, got {threads!r}")
        if threads is not None:
            torch.set_num_threads(threads)
        self.config = model
        self.contract = contract
        self.device = device
        self.model = load_model(model, tensors, device=device)
        self._cache: Cache | None = None
        self._cameras: dict[int, CameraCache] = {}

    def info(self) -> dict[str, Any]:
        return {
            "backend": self.name,
            "device": self.device,
            "compute": "float32",
            "isa": torch.backends.cpu.get_cpu_capability() if self.device == "cpu" else None,
            "sm": None if self.device == "cpu" else _compute_capability(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "dtype": "float32",
            "kernels": "triton" if self.device != "cpu" and kernels.available() else None,
            "weights_bytes": sum(p.numel() * p.element_size() for p in self.model.parameters()),
            "plan_fields": list(IMPLEMENTED),
            "ready": True,
        }

    def warm_up(
        self, plan: Plan, frame: tuple[int, int], progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Nothing: torch makes what it needs when it needs it."""

    @_exact_float32()
    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            images = [self.model.encode_image(image) for image in self._images(pixels)]
            return _numpy(torch.cat(images))

    @_exact_float32()
    def prefill(
        self,
        image_tokens: np.ndarray,
        camera_mask: np.ndarray,
        tokens: np.ndarray,
        token_mask: np.ndarray,
        state: np.ndarray,
    ) -> int:
        with torch.inference_mode():
            cache = self.model.prefill(
                self._images(image_tokens), *self._prompt(camera_mask, tokens, token_mask, state)
            )
        self._cache = cache
        return int(cache.valid.sum())

    @_exact_float32()
    def denoise(
        self,
        noise: np.ndarray,
        plan: Plan | None = None,
        inference_delay: int = 0,
        prev_chunk_left_over: np.ndarray | None = None,
        execution_horizon: int | None = None,
    ) -> np.ndarray:
        if self._cache is None:
            raise InputError("expected prefill() before denoise(), got no prefix; call it first")
        guidance = self.contract.guidance(prev_chunk_left_over, inference_delay, execution_horizon)
        plan = self._checked(plan)
        actions, _ = self.model.denoise(self._start(noise, plan), self._cache, plan, guidance)
        actions = _numpy(actions[0])
        check_finite(actions)
        return actions

    @_exact_float32()
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
        guidance = self.contract.guidance(prev_chunk_left_over, inference_delay, execution_horizon)
        prompt = self._prompt(camera_mask, tokens, token_mask, state)
        actions = _numpy(self._sample(self._images(pixels), prompt, noise, plan, guidance)[0])
        check_finite(actions)
        return actions

    @_exact_float32()
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
        recorded: dict[str, torch.Tensor] = {}
        guidance = self.contract.guidance(prev_chunk_left_over, inference_delay, execution_horizon)
        prompt = self._prompt(camera_mask, tokens, token_mask, state)
        images = self._images(pixels)
        self._sample(images, prompt, noise, plan, guidance, recorded.__setitem__)
        return {name: _numpy(value) for name, value in recorded.items()}

    @_exact_float32()
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
        clock = Clock(self.device)
        plan = self._checked(plan)
        start = self._start(noise, plan)
        if not state_is_normalized:
            state = normalize(state, self.contract.state)
        values = torch.from_numpy(np.array(state, dtype=np.float32))
        if self.config.adapt_to_pi_aloha:
            values = state_from_aloha(values)
        padded = np.zeros(self.config.max_state_dim, np.float32)
        padded[: len(values)] = values.numpy()
        camera_mask = np.array([frame is not None for frame in frames])
        prompt = self._prompt(camera_mask, tokens, np.ones(len(tokens), bool), padded)
        pixels = self._letterboxed(frames)
        kept_under = cached_cameras(plan, self.contract, frames, cameras)
        clock.lap("preprocess")
        with torch.inference_mode():
            images, reports = self._encoded(frames, pixels, kept_under, tokens, plan)
            clock.lap("vision")
            cache = self.model.prefill(images, *prompt, skip=plan.skip.vlm, exit=plan.exit)
            clock.lap("prefix")
            looks: list[torch.Tensor] | None = None
            if plan.cache is not None and plan.cache.attended:
                looks = []
            actions, evaluations = self.model.denoise(start, cache, plan, rtc, looks=looks)
            actions = actions[0].cpu()
            if looks:
                self._attend(torch.stack(looks).sum(0)[0], images, kept_under, reports)
        actions = actions[:, : self.config.action_dim]
        # LeRobot hands on what it has after this conversion, also to real-time chunking.
        if self.config.adapt_to_pi_aloha:
            actions = actions_to_aloha(actions)
        normalized = actions.numpy()
        robot = unnormalize(normalized, self.contract.action)
        clock.lap("flow")
        return PredictResult(normalized, robot, clock.timings(), evaluations, reports)

    def reset(self) -> None:
        self._cameras.clear()

    def _encoded(
        self,
        frames: Sequence[np.ndarray | None],
        pixels: Sequence[torch.Tensor],
        kept_under: Sequence[int | None],
        tokens: np.ndarray,
        plan: Plan,
    ) -> tuple[list[torch.Tensor], tuple[CacheReport | None, ...]]:
        """Image tokens of each frame, and what the token cache did."""
        images: list[torch.Tensor] = []
        reports: list[CacheReport | None] = []
        for frame, image, place in zip(frames, pixels, kept_under, strict=True):
            report = None
            if plan.cache is None or place is None or frame is None:
                encoded = self.model.encode_image(image, skip=plan.skip.vision)
            else:
                camera = self._cameras.setdefault(place, CameraCache())
                size = None if self.config.resize is None else frame.shape[:2]
                prompt = tokens.tolist()
                encoded, report = camera.encode(self.model, image, prompt, plan, plan.cache, size)
            images.append(encoded)
            reports.append(report)
        return images, tuple(reports)

    def _attend(
        self,
        mass: torch.Tensor,
        images: Sequence[torch.Tensor],
        kept_under: Sequence[int | None],
        reports: Sequence[CacheReport | None],
    ) -> None:
        """Tell every camera that is kept how much its tokens were looked at, of a prefix's mass."""
        places = image_places(self.config, images)
        for place, camera, report in zip(places, kept_under, reports, strict=True):
            if camera is not None and report is not None:
                self._cameras[camera].attend(mass[place])

    def _sample(
        self,
        images: Sequence[torch.Tensor],
        prompt: Prompt,
        noise: np.ndarray,
        plan: Plan | None,
        guidance: Guidance | None,
        record: Record = ignore,
    ) -> torch.Tensor:
        plan = self._checked(plan)
        if plan.cache is not None:
            raise PlanError(
                "a plan with a cache is for predict, whose frames follow each other; remove cache "
                "from the plan for sample_actions and trace"
            )
        x = self._start(noise, plan)
        return self.model.sample_actions(images, *prompt, x, plan, guidance, record)

    def _checked(self, plan: Plan | None) -> Plan:
        plan = plan or Plan.exact(self.config.num_steps)
        plan.require(IMPLEMENTED, self.name)
        check_fit(plan, self.config, self.contract)
        return plan

    def _start(self, noise: np.ndarray, plan: Plan) -> torch.Tensor:
        """x at time 1, [1, h, max_action_dim]."""
        rows = plan.rows(self.config.chunk_size)
        expected = f"at least [{rows}, {self.config.max_action_dim}]"
        if noise.ndim != 2 or noise.shape[0] < rows or noise.shape[1] != self.config.max_action_dim:
            raise InputError(f"noise: expected {expected}, got {list(noise.shape)}")
        return self._tensor(noise[:rows], torch.float32)[None]

    def _prompt(
        self,
        camera_mask: np.ndarray,
        tokens: np.ndarray,
        token_mask: np.ndarray,
        state: np.ndarray,
    ) -> Prompt:
        """The arguments as tensors with a batch axis of 1."""
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.config.vocab:
            raise InputError(
                f"tokens: expected ids from 0 to {self.config.vocab - 1}, got {tokens.min()} to "
                f"{tokens.max()}; use the policy's own tokenizer"
            )
        return (
            self._tensor(camera_mask, torch.bool)[None],
            self._tensor(tokens, torch.int64)[None],
            self._tensor(token_mask, torch.bool)[None],
            self._tensor(state, torch.float32)[None],
        )

    def _images(self, stacked: np.ndarray) -> list[torch.Tensor]:
        """[cams, ...] -> per camera [1, ...]."""
        return list(self._tensor(stacked, torch.float32).split(1))

    def _letterboxed(self, frames: Sequence[np.ndarray | None]) -> list[torch.Tensor]:
        """Pixels per camera; a blank camera is black, in the size of the last frame given."""
        pixels: dict[int, torch.Tensor] = {}
        for i, frame in enumerate(frames):
            if frame is None:
                continue
            values = torch.from_numpy(np.array(frame)).to(self.device)  # as in _tensor
            if values.dtype == torch.uint8:
                values = values.float() / 255
            pixels[i] = letterbox(values.permute(2, 0, 1)[None].contiguous(), self.config.resize)
        if not pixels:
            raise InputError("expected at least one camera frame, got none; pass images")
        blank = torch.full_like(list(pixels.values())[-1], -1.0)
        return [pixels.get(i, blank) for i in range(len(frames))]

    def _tensor(self, array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        # Copied: the caller may change its memory, and torch warns of read-only memory.
        return torch.from_numpy(np.array(array)).to(device=self.device, dtype=dtype)


def _compute_capability() -> int:
    """87 for 8.7."""
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().numpy()
