"""Typed errors. Every error this package raises on purpose derives from SmolVLAEdgeError.

A message says three things: what was expected, what came instead, and what to do about it.
"""

from __future__ import annotations


class SmolVLAEdgeError(Exception):
    """Base of all errors raised on purpose by smolvla_edge."""


class CheckpointError(SmolVLAEdgeError):
    """A checkpoint (or a tensor file in it) is malformed, incomplete or of an unsupported kind."""


class BundleError(SmolVLAEdgeError):
    """A bundle on disk is malformed, truncated, tampered with or of an unknown version."""


class ExportError(SmolVLAEdgeError):
    """An ONNX export folder is malformed, truncated, foreign or of an unknown version."""


class VerificationError(ExportError):
    """An export that was just made is not what its source computes, or not what it says it is;
    nothing of it was kept."""


class ContractError(SmolVLAEdgeError):
    """Cameras, features, statistics or renames do not fit together; nothing was guessed."""


class TokenizerError(SmolVLAEdgeError):
    """The tokenizer is missing, malformed, or cannot encode this task."""


class PromptTooLongError(TokenizerError):
    """The task with its newline has more tokens than `tokenizer_max_length`; it is never cut."""


class InputError(SmolVLAEdgeError, ValueError):
    """An observation given to `predict` has a wrong shape, dtype, channel count or a NaN."""


class PlanError(SmolVLAEdgeError, ValueError):
    """A Plan field has a bad value, or the chosen backend does not implement it."""


class BackendError(SmolVLAEdgeError, RuntimeError):
    """The backend cannot run here: unsupported ISA or device, used after fork, out of memory."""


class NonFiniteError(SmolVLAEdgeError, ArithmeticError):
    """The model produced NaN or infinity; no action is returned."""


class MissingExtraError(SmolVLAEdgeError, ImportError):
    """An optional dependency is not installed; the message holds the pip command."""


class QuantizationError(SmolVLAEdgeError):
    """Weights, calibration data or a recipe cannot be quantised as asked; nothing was written."""


class DatasetError(SmolVLAEdgeError):
    """A LeRobotDataset folder is malformed, incomplete or of another version."""


class SimulatorError(SmolVLAEdgeError):
    """The simulator cannot run here, or a task, seed or setting of it does not exist."""
