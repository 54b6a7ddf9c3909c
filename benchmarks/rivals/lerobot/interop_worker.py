"""LeRobot on a checkpoint and a data set of ours.

    python interop_worker.py CHECKPOINT DATASET IN OUT

IN (npz): frames uint8 [n, h, w, 3], states float32 [n, d], tasks [n], noise float32 [n, chunk, d'].
OUT (npz): actions float32 [n, chunk, d] in robot units, through LeRobot's own processors; what its
LeRobotDataset reads of DATASET's frame 0 and last frame.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import build
import lerobot.datasets.utils
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.utils import prepare_observation_for_inference
from safetensors.torch import load_file

torch = build.torch
torch.set_num_threads(1)  # small products: threads would wait for each other
CAMERA = "observation.image"


class ToTensor:
    """torchvision's, which is not installed: a picture [h, w, 3] -> float32 [3, h, w] in [0, 1]."""

    def __call__(self, picture: Any) -> Any:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float().div(255)


lerobot.datasets.utils.transforms.ToTensor = ToTensor


def load(folder: Path) -> Any:
    """The policy in float32; only tensors that reach no action may be missing from the file."""
    raw = json.loads((folder / "config.json").read_text())
    policy = build.make_policy(raw, json.loads((folder / "vlm_config.json").read_text()), "float32")
    state = policy.state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            state[name] = torch.full_like(value, float("nan"))  # a missing live tensor would show
    policy.load_state_dict(state)
    found = policy.load_state_dict(load_file(str(folder / "model.safetensors")), strict=False)
    if found.unexpected_keys:
        raise SystemExit(f"LeRobot does not know {found.unexpected_keys}")
    print(f"{len(found.missing_keys)} tensors are not in the file", file=sys.stderr)
    for name, value in policy.named_parameters():
        if name in found.missing_keys:
            value.data.zero_()
    return policy.eval()


def act(policy: Any, folder: Path, given: dict[str, np.ndarray]) -> np.ndarray:
    overrides = {"tokenizer_processor": {"tokenizer_name": str(folder / "tokenizer")},
                 "device_processor": {"device": "cpu"}}  # fmt: skip
    before, after = make_pre_post_processors(
        policy.config, str(folder), preprocessor_overrides=overrides,
        postprocessor_overrides={"device_processor": {"device": "cpu"}},
    )  # fmt: skip
    chunks = []
    for frame, state, task, noise in zip(
        given["frames"], given["states"], given["tasks"], given["noise"], strict=True
    ):
        observation = {CAMERA: frame, "observation.state": state}
        batch = prepare_observation_for_inference(observation, torch.device("cpu"), str(task))
        with torch.no_grad():
            actions = policy.predict_action_chunk(
                before(batch), noise=torch.from_numpy(noise)[None]
            )
            chunks.append(
                torch.stack([after(actions[:, i]) for i in range(actions.shape[1])], 1)[0]
            )
    return torch.stack(chunks).numpy()


def main() -> None:
    checkpoint, folder, given, out = (Path(word) for word in sys.argv[1:])
    with np.load(given, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    data = LeRobotDataset("smolvla-edge/demo", root=folder)
    read = {}
    for name, index in (("first", 0), ("last", len(data) - 1)):
        row = data[index]
        read[f"{name}.image"] = row[CAMERA].numpy()
        read[f"{name}.state"] = row["observation.state"].numpy()
        read[f"{name}.action"] = row["action"].numpy()
        read[f"{name}.task"] = np.array(row["task"])
    counts = np.array([data.num_episodes, data.num_frames, data.meta.total_tasks])
    np.savez(out, actions=act(load(checkpoint), checkpoint, arrays), counts=counts, **read)


if __name__ == "__main__":
    main()
