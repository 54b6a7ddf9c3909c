"""Tensors of a checkpoint or bundle into the model, widened to float32 or as they are stored."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from smolvla_edge.codes import INPUT_SCALE, is_table, read_codes
from smolvla_edge.config import ModelConfig
from smolvla_edge.errors import CheckpointError
from smolvla_edge.model.coded import CodedWeight
from smolvla_edge.model.smolvla import SmolVLA
from smolvla_edge.safetensors_file import TensorEntry, read_tensor

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load_model(
    config: ModelConfig,
    tensors: Mapping[str, TensorEntry],
    *,
    dtype: torch.dtype | None = torch.float32,
    device: str = "cpu",
    prefix_length: int = 0,
) -> SmolVLA:
    """The model with these weights, by canonical name, in evaluation mode.

    `dtype` None keeps each tensor's own, which on LeRobot's mixed checkpoints computes what LeRobot
    computes. The dead parts of the language model are built if `tensors` has all of them; other
    tensors that the model has no place for are left alone, as a checkpoint of more layers holds.
    Raises CheckpointError for a missing tensor or a wrong shape or dtype.
    """
    # On "meta" no memory is filled with an initialisation that would be overwritten at once.
    with torch.device("meta"):
        model = SmolVLA(config, dead=True, prefix_length=prefix_length)
        if not model.state_dict().keys() <= tensors.keys():
            model = SmolVLA(config, dead=False, prefix_length=prefix_length)
    state: dict[str, Tensor] = {}
    for name, parameter in model.state_dict().items():
        entry = tensors.get(name)
        if entry is None:
            raise CheckpointError(
                f"expected a tensor {name}, got none; convert the checkpoint anew"
            )
        if entry.dtype in ("I8", "U8"):
            codes = read_codes(tensors, name, tuple(parameter.shape))
            state[name] = torch.from_numpy(codes.weight()).to(device=device, dtype=dtype)
            if not is_table(name):
                layer = model.get_submodule(name.removesuffix(".weight"))
                layer.rounds_rows = True
                if torch.device(device).type == "cuda":
                    layer.coded = CodedWeight.on(device, codes)
                if name + INPUT_SCALE in tensors:
                    layer.input_scale = as_tensor(tensors[name + INPUT_SCALE])
            continue
        if entry.dtype not in DTYPES or tuple(entry.shape) != tuple(parameter.shape):
            raise CheckpointError(
                f"{name}: expected {list(parameter.shape)} in one of {', '.join(DTYPES)}, got "
                f"{list(entry.shape)} {entry.dtype}; the weights belong to another configuration"
            )
        state[name] = as_tensor(entry).to(device=device, dtype=dtype)
    model.load_state_dict(state, assign=True)
    return model.eval()


def as_tensor(entry: TensorEntry) -> Tensor:
    """One stored tensor in its own dtype."""
    # torch takes no unsigned 16-bit bits as bfloat16 from numpy; a view through int16 is the same.
    values = read_tensor(entry)
    if entry.dtype == "BF16":
        return torch.from_numpy(values.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(values)
