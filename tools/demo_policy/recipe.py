"""The demo policy, named before it is trained: tasks, sizes, data and the order of training.

Everything that decides what comes out is in this file and in the seeds of generate.py and train.py.
"""

from __future__ import annotations

from typing import Any

from smolvla_edge.policy_config import ACTION, STATE
from smolvla_edge.vlm_config import VlmConfig

IMAGE_SIDE = 128
CHUNK = 16
N_ACTION_STEPS = 4
CAMERA = "observation.image"  # LeRobot's name of Meta-World's camera
# Solved demonstrations of a task; what has to be grasped at the right place needs more of them.
DEMONSTRATIONS = 150
MORE_DEMONSTRATIONS = {"push": 200, "pick-place": 200, "hammer": 200}
# Those that a half-trained policy begins, see generate.py.
STEERED_DEMONSTRATIONS = {
    **dict.fromkeys(("window-open", "window-close", "faucet-open", "faucet-close"), 200),
    **dict.fromkeys(("push", "pick-place", "hammer"), 100),
}
LEROBOT_WORDS = 0.25  # of the drawn moments are told what LeRobot's environment says in the task
ENVIRONMENT = "observation.environment_state"  # recorded for the auxiliary loss, never an input

# SmolVLA's awkward shapes at a hundredth of its size: 3 query heads a key/value head, heads of 64,
# an expert of 144 (no multiple of 32), 16 x 16 patches, 16 tokens a camera, 6 layers in each part.
VLM = VlmConfig(
    text_width=192, text_mlp=512, heads=3, kv_heads=1, head_dim=64, text_layers=6,
    vocab=512, rms_eps=1e-5,
    vision_width=128, vision_mlp=256, vision_heads=2, vision_layers=6,
    image_size=IMAGE_SIDE, patch_size=8, vision_eps=1e-6, scale_factor=4,
    fake_token_id=None, global_token_id=None,
)  # fmt: skip

CONFIG: dict[str, Any] = {
    "input_features": {
        STATE: {"type": "STATE", "shape": [4]},
        CAMERA: {"type": "VISUAL", "shape": [3, IMAGE_SIDE, IMAGE_SIDE]},
    },
    "output_features": {ACTION: {"type": "ACTION", "shape": [4]}},
    "chunk_size": CHUNK,
    "n_action_steps": N_ACTION_STEPS,
    "resize_imgs_with_padding": [IMAGE_SIDE, IMAGE_SIDE],
    "tokenizer_max_length": 24,
    "num_vlm_layers": 6,
    "num_expert_layers": -1,
    "load_vlm_weights": False,
    "freeze_vision_encoder": False,
    "train_expert_only": False,
    "vlm_model_name": "smolvla-edge/metaworld-demo",
}
