"""What LeRobot 0.4.4 needs to import and to build SmolVLA with no Hub, no torchvision, no robot.

Nothing here touches the mathematics that is measured, with one named exception
(`fix_position_ids`). `install()` must run before the first import of lerobot or transformers'
SmolVLM classes; `use_vlm_config()` before a policy is built.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import types
from typing import Any, ClassVar

# Imported by LeRobot's package, never called by SmolVLA's inference.
STAND_INS = ("torchvision", "torchcodec", "av", "wandb", "rerun", "pynput")

# The SmolVLM2-500M-Video-Instruct configuration (sizes only), as its Hub `config.json` has it.
SMOLVLM2_500M: dict[str, Any] = {
    "text_config": {
        "model_type": "llama",
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "head_dim": 64,
        "num_hidden_layers": 32,
        "vocab_size": 49280,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "max_position_embeddings": 8192,
        "pad_token_id": 2,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    },
    "vision_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "image_size": 512,
        "patch_size": 16,
        "num_channels": 3,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu_pytorch_tanh",
    },
    "scale_factor": 4,
    "image_special_tokens": {"fake": 49189, "glob": 49152},
}


class _Anything(type):
    """Of classes whose every attribute is such a class (`av.logging.WARNING` as a default)."""

    def __getattr__(cls, name: str) -> Any:
        return _empty_class(name)


def _empty_class(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Anything(name, (), {"__init__": lambda self, *args, **kwargs: None})


class _StandInModule(types.ModuleType):
    """A module whose every attribute is an empty class, so that `from x import Y` succeeds."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        dummy = _empty_class(name)
        setattr(self, name, dummy)
        return dummy


class _StandInFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Serves the stand-in modules and every submodule of them."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname.split(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StandInModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        return None


def install() -> None:
    """Block the Hub and make `import lerobot.policies` possible."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_OFFLINE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # transformers must learn (and cache) that torchvision is absent before the stand-in exists,
    # otherwise it would try to use it for image processing.
    from transformers.utils import import_utils

    for question in ("is_torchvision_available", "is_torchvision_v2_available"):
        ask = getattr(import_utils, question, None)
        if ask is not None:
            ask()
    missing = tuple(name for name in STAND_INS if importlib.util.find_spec(name) is None)
    sys.meta_path.append(_StandInFinder(missing))


class _Tokenizer:
    def __init__(self, fake: int, glob: int) -> None:
        self.fake_image_token_id = fake
        self.global_image_token_id = glob


class _Processor:
    """The two attributes that SmolVLA reads from its AutoProcessor."""

    def __init__(self, fake: int, glob: int) -> None:
        self.tokenizer = _Tokenizer(fake, glob)


def make_vlm_config(sizes: dict[str, Any]) -> Any:
    """A transformers SmolVLMConfig from the sizes of a `vlm_config.json`."""
    from transformers import SmolVLMConfig

    text = {"model_type": "llama", "pad_token_id": 2, "tie_word_embeddings": False}
    text |= {"dtype": "bfloat16"} | dict(sizes["text_config"])
    vision = {"hidden_act": "gelu_pytorch_tanh", "num_channels": 3} | dict(sizes["vision_config"])
    return SmolVLMConfig(
        text_config=text,
        vision_config=vision,
        scale_factor=sizes["scale_factor"],
        image_token_id=min(49190, text["vocab_size"] - 1),
        pad_token_id=2,
        tie_word_embeddings=False,
    )


def use_vlm_config(sizes: dict[str, Any]) -> None:
    """Make LeRobot build its VLM from `sizes` instead of asking the Hub."""
    import torch
    from lerobot.policies.smolvla import smolvlm_with_expert as module
    from transformers import SmolVLMForConditionalGeneration
    from transformers.modeling_utils import no_init_weights

    special = sizes.get("image_special_tokens") or SMOLVLM2_500M["image_special_tokens"]

    class LocalConfig:
        @staticmethod
        def from_pretrained(*args: Any, **kwargs: Any) -> Any:
            return make_vlm_config(sizes)

    class LocalProcessor:
        @staticmethod
        def from_pretrained(*args: Any, **kwargs: Any) -> _Processor:
            return _Processor(int(special["fake"]), int(special["glob"]))

    class LocalModel:
        @staticmethod
        def from_pretrained(*args: Any, **kwargs: Any) -> Any:
            with no_init_weights():  # every value is overwritten by the checkpoint
                return SmolVLMForConditionalGeneration(make_vlm_config(sizes)).to(torch.bfloat16)

    module.AutoConfig = LocalConfig
    module.AutoProcessor = LocalProcessor
    module.AutoModelForImageTextToText = LocalModel


def fix_position_ids() -> None:
    """Give transformers 4.57's vision tower the position ids of transformers 5.5 (and of bfloat16).

    4.57 computes `arange(n) / n * (1 - 1e-6)` in the pixel dtype before bucketing: in float32
    every interior patch falls one bucket short (0, 0, 1, 2, ..., 30 for 32 patches); in bfloat16
    the factor rounds to 1 and the ids are right. LeRobot >= 0.5 (transformers 5) clamps instead.
    Without this the rival's float32 answers differ from the model that was trained.
    """
    import torch
    from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionEmbeddings

    def bucket(count: int, boundaries: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        device = boundaries.device  # the weights'; a tensor of the CPU would end CUDA graphs
        step = 1.0 / torch.tensor(count, device=device)
        fraction = torch.arange(count, dtype=torch.float32, device=device) * step
        fraction = torch.clamp(fraction, max=1.0 - 1e-6).to(dtype)
        return torch.bucketize(fraction, boundaries, right=True)

    def forward(self: Any, pixel_values: Any, patch_attention_mask: Any) -> Any:
        embeddings = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        side = self.num_patches_per_side
        boundaries = torch.arange(1 / side, 1.0, 1 / side, device=pixel_values.device)
        _, rows, columns = patch_attention_mask.shape
        row_ids = bucket(rows, boundaries, pixel_values.dtype)
        column_ids = bucket(columns, boundaries, pixel_values.dtype)
        ids = (row_ids[:, None] * side + column_ids[None, :]).flatten()
        return embeddings + self.position_embedding(ids)[None]

    SmolVLMVisionEmbeddings.forward = forward
