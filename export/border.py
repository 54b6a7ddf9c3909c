"""The two ends of the graph `policy`: robot units in, robot units out. In ONNX's own syntax.

The arithmetic is that of preprocess.py and aloha.py, in the same order of operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx.parser
import onnx_ir as ir

from smolvla_edge.aloha import (
    ANGLE_RANGE,
    ARM_LENGTH,
    FLIPPED,
    GRIPPERS,
    HORN_RADIUS,
    JOINT_RANGE,
    POSITION_RANGE,
)
from smolvla_edge.config import ModelConfig
from smolvla_edge.contract import Contract
from smolvla_edge.export.functions import OPSET
from smolvla_edge.export.tracing import IR_VERSION
from smolvla_edge.statistics import FeatureStatistics, Mode


class _Text:
    """A graph as text: constants by name, then a node a line, each making the next value."""

    def __init__(self) -> None:
        self._constants: dict[str, str] = {}
        self._lines: list[str] = []
        self._made = 0

    def constant(self, name: str, values: Iterable[float], kind: str = "float") -> str:
        numbers = [repr(float(x)) if kind == "float" else str(int(x)) for x in values]
        self._constants[name] = f"{kind}[{len(numbers)}] {name} = {{{', '.join(numbers)}}}"
        return name

    def number(self, value: float) -> str:
        """A constant named after its value; float32, as Python's numbers are beside such arrays."""
        name = f"number_{np.float32(value)!s}".replace("-", "minus_").replace(".", "_")
        return self.constant(name.replace("+", ""), [np.float32(value)])

    def node(self, operation: str, *inputs: str, attributes: str = "") -> str:
        self._made += 1
        name = f"value_{self._made}"
        self._lines.append(f"{name} = {operation} {attributes} ({', '.join(inputs)})")
        return name

    def model(self, signature: str, outputs: dict[str, str]) -> ir.Model:
        lines = self._lines + [f"{name} = Identity ({value})" for name, value in outputs.items()]
        body = "\n    ".join(lines)
        text = (
            f'<ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]>\n'
            f"{signature}\n<{', '.join(self._constants.values())}>\n{{\n    {body}\n}}\n"
        )
        return ir.from_proto(onnx.parser.parse_model(text))


def entry_graph(config: ModelConfig, contract: Contract) -> ir.Model:
    """state [state_dim] in robot units -> padded_state [max_state_dim], normalised; token_mask,
    which may be one value for all, -> every_mask [words], one for each of the tokens."""
    text = _Text()
    state = _normalize(text, "state", contract.state)
    if config.adapt_to_pi_aloha:
        state = _convert(text, state, config.state_dim, _state_gripper)
    pads = text.constant("pads", [0, config.max_state_dim - config.state_dim], "int64")
    padded = text.node("Pad", state, pads)
    size = text.node("Shape", "tokens")
    mask = text.node("Expand", "token_mask", size)
    signature = (
        f"entry (float[{config.state_dim}] state, int64[words] tokens, bool[given] token_mask) => "
        f"(float[{config.max_state_dim}] padded_state, bool[words] every_mask)"
    )
    return text.model(signature, {"padded_state": padded, "every_mask": mask})


def exit_graph(config: ModelConfig, contract: Contract) -> ir.Model:
    """flowed [h, A] -> actions in robot units and normalized in model space, [h, action_dim]."""
    text = _Text()
    first = text.constant("first_column", [0], "int64")
    end = text.constant("end_column", [config.action_dim], "int64")
    axis = text.constant("columns", [1], "int64")
    normalized = text.node("Slice", "flowed", first, end, axis)
    if config.adapt_to_pi_aloha:
        normalized = _convert(text, normalized, config.action_dim, _action_gripper)
    actions = _unnormalize(text, normalized, contract.action)
    width = config.action_dim
    signature = (
        f"exit (float[horizon, {config.max_action_dim}] flowed) => "
        f"(float[horizon, {width}] actions, float[horizon, {width}] normalized)"
    )
    return text.model(signature, {"actions": actions, "normalized": normalized})


def _normalize(text: _Text, x: str, statistics: FeatureStatistics) -> str:
    if statistics.mode is Mode.IDENTITY:
        return x
    first, second = statistics.arrays()
    eps = np.float32(statistics.eps)
    moved = text.node("Sub", x, text.constant("first", first))
    if statistics.mode is Mode.MEAN_STD:
        return text.node("Div", moved, text.constant("width", second + eps))
    width = second - first + eps if statistics.eps_in_range else second - first
    doubled = text.node("Mul", moved, text.number(2))
    unit = text.node("Div", doubled, text.constant("width", width))
    return text.node("Sub", unit, text.number(1))


def _unnormalize(text: _Text, x: str, statistics: FeatureStatistics) -> str:
    if statistics.mode is Mode.IDENTITY:
        return x
    first, second = statistics.arrays()
    if statistics.mode is Mode.MEAN_STD:
        wide = text.node("Mul", x, text.constant("width", second))
        return text.node("Add", wide, text.constant("first", first))
    unit = text.node("Div", text.node("Add", x, text.number(1)), text.number(2))
    wide = text.node("Mul", unit, text.constant("width", second - first))
    return text.node("Add", wide, text.constant("first", first))


def _convert(text: _Text, x: str, width: int, gripper: Callable[[_Text, str], str]) -> str:
    """An Aloha robot's joints: some change sign, grippers are converted. All are computed as both,
    and each takes what it is."""
    signs = np.ones(width)
    signs[list(FLIPPED)] = -1
    flipped = text.node("Mul", x, text.constant("signs", signs))
    is_gripper = np.zeros(width)
    is_gripper[list(GRIPPERS)] = 1
    chosen = text.node("Cast", text.constant("grippers", is_gripper), attributes="<to = 9>")
    return text.node("Where", chosen, gripper(text, x), flipped)


def _state_gripper(text: _Text, x: str) -> str:
    """Linear position to angle, both in units of their ranges."""
    position = _from_unit(text, x, *POSITION_RANGE)
    square = text.node("Mul", position, position)
    above = text.node("Add", square, text.number(HORN_RADIUS**2))
    above = text.node("Sub", above, text.number(ARM_LENGTH**2))
    below = text.node("Mul", position, text.number(2 * HORN_RADIUS))
    sine = text.node("Div", above, below)
    sine = text.node("Max", text.node("Min", sine, text.number(1)), text.number(-1))
    return _to_unit(text, text.node("Asin", sine), *ANGLE_RANGE)


def _action_gripper(text: _Text, x: str) -> str:
    return _to_unit(text, _from_unit(text, x, *ANGLE_RANGE), *JOINT_RANGE)


def _to_unit(text: _Text, x: str, low: float, high: float) -> str:
    return text.node("Div", text.node("Sub", x, text.number(low)), text.number(high - low))


def _from_unit(text: _Text, x: str, low: float, high: float) -> str:
    return text.node("Add", text.node("Mul", x, text.number(high - low)), text.number(low))
