"""Weights for graphs of basic operators: nothing narrower than the arithmetic but 4-bit codes.

A code's scale is of the arithmetic's type and positive, rows of codes are whole blocks (zeros
behind the last input): what TensorRT asks of DequantizeLinear.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from smolvla_edge.codes import read_codes
from smolvla_edge.export.stored import (
    FLOATS,
    MOMENTS,
    Weights,
    WeightsFile,
    block_of,
    pack_int4,
    scale_of,
)
from smolvla_edge.export.times import frequencies


class PlainWeights(Weights):
    """schedule: float32 [steps, 5] of the plan that the flow is settled on."""

    def __init__(self, *arguments: Any, schedule: NDArray[np.float32]) -> None:
        super().__init__(*arguments)
        self._times = schedule[:, 0]
        self._computed[MOMENTS] = self._moments

    def _add(
        self, file: WeightsFile, name: str, values: NDArray[np.float32], narrow: bool = False
    ) -> None:
        super()._add(file, name, values)

    def _add_table(self, file: WeightsFile, name: str) -> None:
        self._add(file, name, self.array(name))

    def _add_codes(self, file: WeightsFile, name: str) -> None:
        codes = read_codes(self._tensors, name, self._shapes[name])
        rows, columns = codes.codes.shape
        padded = np.pad(codes.codes, ((0, 0), (0, -columns % block_of(codes.format))))
        scales = codes.scales.astype(FLOATS[self._dtype])  # float16 as they are stored: exact
        nothing = scales == 0
        padded[np.repeat(nothing, block_of(codes.format), axis=1)] = 0
        file.add(name, ir.DataType.INT4, (padded.shape[1], rows), pack_int4(padded.T))
        positive = np.where(nothing, scales.dtype.type(1), scales)
        self._add(file, scale_of(name), positive.T)

    def _moments(self) -> NDArray[np.float32]:
        angle = self._times.astype(np.float64)[:, None] * frequencies(self._config).numpy()
        embedded = np.concatenate((np.sin(angle), np.cos(angle)), 1)
        made = embedded @ self._time_half().astype(np.float64) + self._fold()[1]
        return made.astype(np.float32)
