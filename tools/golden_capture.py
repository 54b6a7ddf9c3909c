"""Run LeRobot's SmolVLA on one case and record what the golden files hold.

Runs in the rival's environment (torch, LeRobot 0.4.4); see make_golden.py.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

MASK64 = (1 << 64) - 1


def fill(name: str, seed: int, center: float, amp: float, shape: tuple[int, ...]) -> np.ndarray:
    """float32 array of `shape` from the counter-based generator of the golden files."""
    hashed = 0xCBF29CE484222325
    for byte in name.encode():
        hashed = ((hashed ^ byte) * 0x100000001B3) & MASK64
    count = math.prod(shape)
    index = np.arange(1, count + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the definition
        z = np.uint64(hashed ^ seed) + index * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    unit = (z >> np.uint64(40)).astype(np.float64) * 2.0**-24
    values = np.float32(center) + np.float32(amp) * (2 * unit - 1).astype(np.float32)
    return values.astype(np.float32).reshape(shape)


def weight_scale(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """(center, amp) of a weight tensor; first rule that fits its LeRobot name."""
    if name.endswith(".bias"):
        return 0.0, 0.2
    if "norm" in name:
        return 1.0, 0.4
    if "position_embedding" in name:
        return 0.0, 0.5
    amp = math.sqrt(3 / math.prod(shape[1:]))
    if "q_proj" in name or "k_proj" in name:
        amp *= 1.5
    if "modality_projection" in name:
        amp *= 0.1
    if "action_out_proj" in name:
        amp *= 0.5
    return 0.0, amp


def generated_weights(manifest: dict[str, dict[str, Any]]) -> dict[str, Tensor]:
    """Every tensor of a manifest {name: {"shape", "dtype"}}, in its own dtype."""
    dtypes = {"F32": torch.float32, "BF16": torch.bfloat16}
    weights = {}
    for name, spec in manifest.items():
        shape = tuple(spec["shape"])
        values = fill(name, 0, *weight_scale(name, shape), shape)
        weights[name] = torch.from_numpy(values).to(dtypes[spec["dtype"]])
    return weights


def manifest_of(policy: torch.nn.Module) -> dict[str, dict[str, Any]]:
    """Names, shapes and dtypes of a policy built in smolvla_base's mixed dtypes."""
    names = {torch.float32: "F32", torch.bfloat16: "BF16"}
    return {
        name: {"shape": list(value.shape), "dtype": names[value.dtype]}
        for name, value in sorted(policy.state_dict().items())
    }


class Recorder:
    """Wraps the stages of one policy and keeps their results under the golden names."""

    def __init__(self, policy: Any) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.images = 0
        self.steps = 0
        model = policy.model
        joint = model.vlm_with_expert
        self.action_width = model.config.max_action_dim
        tower = joint.get_vlm_model()
        tower.vision_model.register_forward_hook(self._on_vision)
        tower.connector.register_forward_hook(self._on_connector)
        self._wrap(model, "embed_prefix", self._on_prefix)
        self._wrap(joint, "forward", self._on_forward)
        self._wrap(model, "denoise_step", self._on_velocity)
        self._wrap(model, "sample_actions", self._on_actions)

    def _wrap(self, owner: Any, name: str, after: Any) -> None:
        inner = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            result = inner(*args, **kwargs)
            after(result, args, kwargs)
            return result

        setattr(owner, name, wrapped)

    def keep(self, name: str, value: Tensor) -> None:
        self.tensors[name] = value.detach().clone().contiguous()

    def _on_vision(self, module: Any, args: Any, result: Any) -> None:
        self.keep(f"out.vision.{self.images}", result.last_hidden_state)

    def _on_connector(self, module: Any, args: Any, result: Tensor) -> None:
        self.keep(f"out.connector.{self.images}", result)
        self.images += 1

    def _on_prefix(self, result: tuple[Tensor, ...], args: Any, kwargs: Any) -> None:
        embeddings, valid, blocks = result
        self.keep("out.prefix_embs", embeddings)
        self.keep("out.prefix_pad_masks", valid)
        self.keep("out.prefix_att_masks", blocks)
        self.keep("mid.prefix_position_ids", torch.cumsum(valid, dim=1) - 1)

    def _on_forward(self, result: Any, args: Any, kwargs: Any) -> None:
        if not kwargs["fill_kv_cache"]:
            return
        for layer, cache in result[1].items():
            self.keep(f"out.kv.{layer}.key", cache["key_states"].transpose(1, 2))
            self.keep(f"out.kv.{layer}.value", cache["value_states"].transpose(1, 2))

    def _on_velocity(self, result: Tensor, args: Any, kwargs: Any) -> None:
        # x_t after step k-1 is the x_t that comes into step k (guidance included).
        if self.steps > 0:
            self.keep(f"out.x_t.after_step{self.steps - 1}", kwargs["x_t"])
        self.keep(f"out.v_t.step{self.steps}", result)
        self.steps += 1

    def _on_actions(self, result: Tensor, args: Any, kwargs: Any) -> None:
        self.keep(f"out.x_t.after_step{self.steps - 1}", result)
        self.keep("out.actions_padded", result)
        self.images = 0
        self.steps = 0
