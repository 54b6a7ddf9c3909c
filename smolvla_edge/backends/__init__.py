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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from smolvla_edge.errors import BackendError, NonFiniteError

if TYPE_CHECKING:
    from smolvla_edge.config import ModelConfig
    from smolvla_edge.contract import Contract
    from smolvla_edge.plan import Plan
    from smolvla_edge.rtc import Guidance
    from smolvla_edge.safetensors_file import TensorEntry

BACKENDS = ("auto", "native", "torch")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class PredictResult:
    """What a backend's `predict` returns, for one observation.

    normalized: float32 [h, action_dim], model space.  actions: float32 [h, action_dim], robot
    units.  timings: milliseconds under "preprocess", "vision", "prefix", "flow", "total".
    """

    normalized: np.ndarray
    actions: np.ndarray
    timings: Mapping[str, float]


@runtime_checkable
class Backend(Protocol):
    """The seams every backend offers. A backend is built from (model, tensors, contract)."""

    name: str

    def info(self) -> dict[str, Any]:
        """What really runs: at least "backend", "device", and "isa" or "sm"."""

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
        """The flow loop against the prefix of the last `prefill` -> float32 [h, max_action_dim]."""

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
        """The model alone, normalised space -> float32 [h, max_action_dim]."""

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
    ) -> PredictResult:
        """Raw checked observation -> actions in model space and in robot units.

        frames: HWC uint8 or float32 in [0,1], in the contract's order; None is a masked camera.
        tokens: int64 [n], valid ones only.  state: float32 [state_dim], robot units unless
        `state_is_normalized`. Policy, who calls this, checks that the result is finite.
        """


def check_finite(*arrays: np.ndarray) -> None:
    """Raises NonFiniteError when any of the actions is NaN or infinite."""
    if not all(np.isfinite(array).all() for array in arrays):
        raise NonFiniteError(
            "expected finite actions, the model gave NaN or infinity; no action is returned. "
            "Check the checkpoint's weights and statistics with 'smolvla-edge verify'"
        )


def choose(backend: str = "auto", device: str = "auto") -> tuple[str, str]:
    """Resolve the two words of `load()` to (backend, device). Nothing falls back silently.

    Raises BackendError for an unknown word or a device that the backend does not have.
    """
    if backend not in BACKENDS:
        raise BackendError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if device not in DEVICES:
        raise BackendError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    chosen = "native" if backend == "auto" else backend
    if chosen == "native" and device == "cuda":
        raise BackendError(
            "the native backend has no CUDA device in this build; expected device='cpu' or 'auto', "
            "got 'cuda'. For a GPU use backend='torch' (pip install 'smolvla-edge[torch]')"
        )
    return chosen, "cpu" if device == "auto" else device


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
) -> Backend:
    """Build the chosen backend. `compute` is the source's (precision.py); torch, the reference,
    computes in float32 whatever it says. `packed` is an image for the native one (packed_cache.py).

    Raises BackendError, or MissingExtraError when torch is absent."""
    chosen, where = choose(backend, device)
    if chosen == "torch":
        from smolvla_edge.backends.torch import TorchBackend

        return TorchBackend(model, tensors, contract, device=where, threads=threads)
    from smolvla_edge.backends.native import NativeBackend

    return NativeBackend(model, tensors, contract, threads=threads, compute=compute, packed=packed)
