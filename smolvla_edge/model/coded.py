"""A linear layer's integer codes on a GPU, multiplied as integers by the Triton kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from smolvla_edge.codes import Codes


@dataclass(frozen=True)
class CodedWeight:
    """Codes and scales as a bundle stores them (codes.py); group_size: of 4-bit codes."""

    codes: Tensor
    scales: Tensor
    group_size: int | None

    @staticmethod
    def on(device: str, read: Codes) -> CodedWeight:
        codes, scales = (torch.from_numpy(x).to(device) for x in read.stored())
        return CodedWeight(codes.contiguous(), scales.contiguous(), read.format.group_size)

    def linear(
        self, x: Tensor, factors: Tensor | None, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """x [..., in] times `factors` [in], its rows rounded to int8, to [..., out] of `dtype`."""
        from smolvla_edge.kernels.linear_w4a16 import linear_w4a16
        from smolvla_edge.kernels.linear_w8a8 import linear_w8a8, round_rows

        if factors is not None:
            factors = factors.to(x.device)
        rows, row_scales = round_rows(x.contiguous(), factors=factors)
        if self.group_size is None:
            return linear_w8a8(rows, row_scales, self.codes, self.scales, bias=bias, dtype=dtype)
        # float16 holds every code of a row and every code of the weight exactly.
        return linear_w4a16(
            rows.half(),
            self.codes,
            self.scales,
            group_size=self.group_size,
            bias=bias,
            row_scale=row_scales,
            dtype=dtype,
        )
