"""LeRobot's policy under torch.compile, as its `compile_model: true` does, with what that needs.

Every change here is in LeRobot's favour: it removes a graph break or lets the compiler use packed
weights. None changes what is computed. LeRobot compiles `sample_actions` as a whole, mode
"max-autotune"; so does this.
"""

from __future__ import annotations

import types
from typing import Any

import torch
import torch._inductor.config


def compile_policy(policy: Any, device: str = "cpu") -> None:
    """Replace the policy's `sample_actions` by its compiled form; the first call compiles.

    On a GPU max-autotune replays CUDA graphs.

    Shapes are static (`dynamic=False`): each number of cameras and each length of the prompt is
    compiled anew, which a robot does once.
    """
    _fix_vision_mask(policy.model.vlm_with_expert.get_vlm_model().vision_model)
    torch._dynamo.config.recompile_limit = 64  # one entry a case
    # Weights become constants of the graph, so that linears get oneDNN's packed weights or a
    # template of their own. Without it max-autotune has next to nothing to choose from: 2.76 s
    # instead of 2.52 s a chunk (bfloat16, CPU time of one thread; eager 2.97 s). It costs memory.
    # A GPU's templates do not need it.
    torch._inductor.config.freezing = device == "cpu"
    policy.model.sample_actions = torch.compile(
        policy.model.sample_actions, mode="max-autotune", dynamic=False
    )


def _fix_vision_mask(tower: Any) -> None:
    """Encode without a patch mask, which is what LeRobot's call (no mask given) ends up with.

    The original builds a mask of ones, asks `torch.any(~mask)`, a branch on data at which the graph
    breaks, and then drops it.
    """
    from transformers.modeling_outputs import BaseModelOutput

    def forward(self: Any, pixel_values: Any, patch_attention_mask: Any = None) -> Any:
        batch, _, height, width = pixel_values.shape
        side = self.patch_size
        grid = (batch, height // side, width // side)
        mask = torch.ones(grid, dtype=torch.bool, device=pixel_values.device)
        hidden = self.embeddings(pixel_values=pixel_values, patch_attention_mask=mask)
        hidden = self.encoder(inputs_embeds=hidden, attention_mask=None).last_hidden_state
        return BaseModelOutput(last_hidden_state=self.post_layernorm(hidden))

    tower.forward = types.MethodType(forward, tower)
