"""The graph `policy`: frames, tokens and state of a robot to actions in its units, in one file."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from smolvla_edge.contract import Contract
from smolvla_edge.export.border import entry_graph, exit_graph
from smolvla_edge.export.graphs import Setting
from smolvla_edge.export.joining import Joined
from smolvla_edge.export.letterbox import letterbox_graph
from smolvla_edge.export.tracing import IR_VERSION
from smolvla_edge.flow_rows import COLUMNS
from smolvla_edge.policy_config import EMPTY_CAMERA

Make = Callable[[], ir.Model]


def policy_graph(
    setting: Setting,
    vision: Make,
    prefix: Make,
    flow: Make,
    schedule: np.ndarray,
    letterbox: bool,
) -> ir.Model:
    """vision, prefix, flow: make these graphs anew, weights attached; joining takes them apart.
    letterbox: frames of any size, one input a camera; without, `pixels` of all cameras."""
    joined, model, contract = Joined("policy"), setting.model, setting.contract
    cameras = len(real_cameras(contract))
    if letterbox:
        pixels = _letterboxed(joined, setting)
    else:
        pixels = joined.input("pixels", ir.DataType.FLOAT, [cameras, 3, *setting.frame])
    mask = joined.input("camera_mask", ir.DataType.BOOL, [cameras])
    joined.default(mask, ir.tensor(np.ones(cameras, bool), name="camera_mask"))
    tokens = joined.input("tokens", ir.DataType.INT64, ["words"])
    token_mask = joined.input("token_mask", ir.DataType.BOOL, ["words_or_1"])
    joined.default(token_mask, ir.tensor(np.ones(1, bool), name="token_mask"))
    state = joined.input("state", ir.DataType.FLOAT, [model.state_dim])
    noise = joined.input("noise", ir.DataType.FLOAT, ["horizon", model.max_action_dim])
    times = joined.input("schedule", ir.DataType.FLOAT, ["steps", len(COLUMNS)])
    joined.default(times, ir.tensor(schedule, name="schedule"))
    target = joined.input("pull_target", ir.DataType.FLOAT, ["pulled", model.max_action_dim])
    joined.default(
        target, ir.tensor(np.zeros((1, model.max_action_dim), np.float32), name="pull_target")
    )
    weights = joined.input("pull_weights", ir.DataType.FLOAT, ["pulled"])
    joined.default(weights, ir.tensor(np.zeros(1, np.float32), name="pull_weights"))

    padded, words = joined.append(
        "entry",
        entry_graph(model, contract),
        {"state": state, "tokens": tokens, "token_mask": token_mask},
    )
    (image_tokens,) = joined.append("vision", vision(), {"pixels": pixels})
    image_tokens, every_camera = _with_blanks(joined, setting, image_tokens, mask)
    keys, values, valid = joined.append(
        "prefix",
        prefix(),
        {
            "image_tokens": image_tokens,
            "camera_mask": every_camera,
            "tokens": tokens,
            "token_mask": words,
            "state": padded,
        },
    )
    (flowed,) = joined.append(
        "flow",
        flow(),
        {
            "noise": noise,
            "keys": keys,
            "values": values,
            "valid": valid,
            "schedule": times,
            "pull_target": target,
            "pull_weights": weights,
        },
    )
    actions, normalized = joined.append("exit", exit_graph(model, contract), {"flowed": flowed})
    return joined.model({"actions": actions, "normalized": normalized}, IR_VERSION)


def real_cameras(contract: Contract) -> list[str]:
    """The model's names of cameras that a robot has; those that are always blank are no inputs."""
    return [name for name in contract.cameras if not name.startswith(EMPTY_CAMERA)]


def _with_blanks(
    joined: Joined, setting: Setting, image_tokens: ir.Value, mask: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Image tokens and mask with those of blank cameras behind them, where these leave a trace: the
    special tokens around an image stay valid when its camera is masked."""
    model, contract = setting.model, setting.contract
    blanks = min(contract.empty_cameras, len(contract.cameras) - len(real_cameras(contract)))
    if not model.add_image_special_tokens or not blanks:
        return image_tokens, mask
    zeros = np.zeros((blanks, setting.tokens_per_image, model.text_width), np.float32)
    tokens = joined.constant("blanks/tokens", zeros)
    absent = joined.constant("blanks/mask", np.zeros(blanks, bool))
    return (
        joined.node("Concat", [image_tokens, tokens], "blanks/image_tokens", {"axis": 0}),
        joined.node("Concat", [mask, absent], "blanks/camera_mask", {"axis": 0}),
    )


def _letterboxed(joined: Joined, setting: Setting) -> ir.Value:
    """One input [height, width, 3] a camera -> pixels of all, one after the other."""
    resize = setting.model.resize
    pixels = []
    axis = joined.node(
        "Constant", [], "frames/axis", {"value_ints": ir.AttrInt64s("value_ints", [0])}
    )
    for i, name in enumerate(real_cameras(setting.contract)):
        shape: list[int | str] = [f"height_{i}", f"width_{i}", 3]
        if resize is None:
            shape = [*setting.frame, 3]
        frame = joined.input(name, ir.DataType.UINT8, shape)
        batch = joined.node("Unsqueeze", [frame, axis], f"frames/{i}")
        box = resize or (setting.frame[1], setting.frame[0])
        (boxed,) = joined.append(f"letterbox/{i}", letterbox_graph(box), {"frames": batch})
        pixels.append(boxed)
    return joined.node("Concat", pixels, "frames/pixels", {"axis": 0})
