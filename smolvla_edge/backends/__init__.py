"""Backends: who computes the model. One small protocol, one place that chooses.

All arrays at this border are numpy. `S` is the side of the letterboxed image, `L` the number of
text tokens, `h` the number of rows computed (`Plan.horizon`, or the whole chunk):

    pixels       float32 [cams, 3, S, S] in [-1, 1]      letterboxed frames
    camera_mask  bool    [cams]                          False: the camera is absent, not encoded
    tokens       int64   [L]
    token_mask   bool    [L]
    state        float32 [max_state_dim]                 normalised, zero-padded
    noise        float32 [>= h, max_action_dim]          the first h rows are used
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from smolvla_edge.errors import BackendError, NonFiniteError

if TYPE_CHECKING:
    from smolvla_edge.cache_report import CacheReport
    from smolvla_edge.config import ModelConfig
    from smolvla_edge.contract import Contract
    from smolvla_edge.onnx_folder import ExportFolder
    from smolvla_edge.plan import Plan
    from smolvla_edge.rtc import Guidance
    from smolvla_edge.safetensors_file import TensorEntry

BACKENDS = ("auto", "native", "torch", "onnx")
DEVICES = ("auto", "cpu", "cuda", "tensorrt")  # the last of backend "onnx" alone


@dataclass(frozen=True)
class PredictResult:
    """What a backend's `predict` returns, for one observation.

    normalized: float32 [h, action_dim], model space.  actions: float32 [h, action_dim], robot
    units.  timings: milliseconds under "preprocess", "vision", "prefix", "flow", "total".
    evaluations: of the velocity.  cache: for each frame what the token cache did; None where it had
    no part: a blank frame, a camera or a plan without it, a frame that is not square.
    """

    normalized: np.ndarray
    actions: np.ndarray
    timings: Mapping[str, float]
    evaluations: int
    cache: tuple[CacheReport | None, ...]


@runtime_checkable
class Backend(Protocol):
    """The seams every backend offers. A backend is built from (model, tensors, contract)."""

    name: str

    def info(self) -> dict[str, Any]:
        """What really runs: at least "backend", "device", "isa" or "sm", and "ready": whether
        nothing is left that the first calls would make."""

    def warm_up(
        self, plan: Plan, frame: tuple[int, int], progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Make what calls under this plan can need, for frames up to [height, width] pixels."""

    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        """-> float32 [cams, image tokens, text width]: connector output, not yet scaled."""

    def prefill(
        self,
        image_tokens: np.ndarray,
        camera_mask: np.ndarray,
        tokens: np.ndarray,
        token_mask: np.ndarray,
        state: np.ndarray,
    ) -> int:
        """Compute and keep the prefix K,V; -> the number of valid prefix rows."""

    def denoise(
        self,
        noise: np.ndarray,
        plan: Plan | None = None,
        inference_delay: int = 0,
        prev_chunk_left_over: np.ndarray | None = None,
        execution_horizon: int | None = None,
    ) -> np.ndarray:
        """The flow loop against the prefix of the last `prefill` -> float32 [h, max_action_dim].

        Of the plan it reads what is the flow's: the rest was settled before. With plan.warm_start
        the left-over is what the flow starts from, here and below.
        """

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
        """The model alone, normalised space -> float32 [h, max_action_dim].

        Raises PlanError for a plan with a token cache, here and in `trace`: its frames would be of
        no sequence.
        """

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
        """`sample_actions` with its intermediates, under the names of the golden files."""

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
        """Raw checked observation -> actions in model space and in robot units.

        frames: HWC uint8 or float32 in [0,1], in the contract's order; None is a masked camera.
        tokens: int64 [n], valid ones only.  state: float32 [state_dim], robot units unless
        `state_is_normalized`.  cameras: for each frame its camera's place in contract.cameras,
        which the token cache keeps it under; 0, 1, 2, ... without. Policy, who calls this, checks
        that the result is finite.
        """

    def reset(self) -> None:
        """Forget the frames that the token cache keeps: another episode begins."""


def cached_cameras(
    plan: Plan,
    contract: Contract,
    frames: Sequence[np.ndarray | None],
    cameras: Sequence[int] | None,
) -> list[int | None]:
    """For each frame of `predict` the camera it is kept under, None where nothing is kept."""
    cache = plan.cache
    if cache is None:
        return [None] * len(frames)
    places = range(len(frames)) if cameras is None else cameras
    return [
        place
        if frame is not None and (cache.cameras is None or contract.cameras[place] in cache.cameras)
        else None
        for frame, place in zip(frames, places, strict=True)
    ]


def check_finite(*arrays: np.ndarray) -> None:
    """Raises NonFiniteError when any of the actions is NaN or infinite."""
    if not all(np.isfinite(array).all() for array in arrays):
        raise NonFiniteError(
            "expected finite actions, the model gave NaN or infinity; no action is returned. "
            "Check the checkpoint's weights and statistics with 'smolvla-edge verify'"
        )


def choose(
    backend: str = "auto", device: str = "auto", *, cpu_options: Sequence[str] = ()
) -> tuple[str, str]:
    """Resolve the two words of `load()` to (backend, device); of a policy in tensors (an export
    folder is of backend "onnx", which `load` knows).

    device "auto" is the GPU for the native backend when this build has the CUDA backend and a GPU
    answers, and when none of the options was given that only the CPU's kernels have: their names
    are in `cpu_options`. A device that was asked for by name is never replaced by another.

    Raises BackendError for an unknown word, for a device that is not there or not in this build
    (saying what is missing), and for `cpu_options` beside device "cuda".
    """
    if backend not in BACKENDS:
        raise BackendError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if device not in DEVICES:
        raise BackendError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    if backend == "onnx":
        return backend, "cpu" if device == "auto" else device
    if device == "tensorrt":
        raise BackendError(
            "device='tensorrt': expected backend='onnx' and an export folder (smolvla-edge "
            f"export), got backend={backend!r}"
        )
    if backend == "torch":
        return backend, "cpu" if device == "auto" else device
    from smolvla_edge.backends.native import why_no_gpu

    if device == "auto":
        return "native", "cpu" if cpu_options or why_no_gpu() else "cuda"
    if device == "cuda":
        if cpu_options:
            raise BackendError(
                f"{', '.join(cpu_options)}: expected none with device='cuda', which computes on "
                "the GPU; leave it out, or use device='cpu'"
            )
        missing = why_no_gpu()
        if missing:
            raise BackendError(f"device='cuda': {missing}")
    return "native", device


def open_backend(
    model: ModelConfig,
    tensors: Mapping[str, TensorEntry],
    contract: Contract,
    *,
    backend: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    compute: str = "float32",
    packed: Any = None,
    export: ExportFolder | None = None,
    onnx_options: Mapping[str, Any] | None = None,
) -> Backend:
    """Build the chosen backend. `compute` is the source's (precision.py); torch, the reference,
    computes in float32 whatever it says. `packed` is an image for the native one (packed_cache.py),
    `export` the folder that "onnx" runs in place of tensors, under `onnx_options` (OnnxOptions).

    Raises BackendError, or MissingExtraError when torch or ONNX Runtime is absent."""
    if export is not None:
        return _open_onnx(export, contract, backend, device, threads, onnx_options)
    given = {"threads": threads, "packed": packed}
    options = [name for name, value in given.items() if value is not None]
    chosen, where = choose(backend, device, cpu_options=options)
    if chosen == "onnx":
        raise BackendError(
            "backend='onnx': expected an export folder, got a policy in tensors; make one with "
            "'smolvla-edge export'"
        )
    if chosen == "torch":
        from smolvla_edge.backends.torch import TorchBackend

        return TorchBackend(model, tensors, contract, device=where, threads=threads)
    from smolvla_edge.backends.native import NativeBackend

    return NativeBackend(
        model,
        tensors,
        contract,
        device=where,
        threads=threads,
        compute=compute,
        packed=packed,
    )


def _open_onnx(
    export: ExportFolder,
    contract: Contract,
    backend: str,
    device: str,
    threads: int | None,
    options: Mapping[str, Any] | None,
) -> Backend:
    if backend not in ("auto", "onnx"):
        raise BackendError(
            f"{export.path} is an ONNX export folder: expected backend 'onnx' or 'auto', got "
            f"{backend!r}; that one runs the bundle it was exported from"
        )
    _, where = choose("onnx", device)
    from smolvla_edge.backends.onnx import OnnxBackend
    from smolvla_edge.backends.onnx_session import OnnxOptions

    settled = OnnxOptions(**(options or {}))
    return OnnxBackend(export, contract, device=where, threads=threads, options=settled)
