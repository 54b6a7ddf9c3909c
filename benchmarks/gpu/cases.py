"""What is timed on a GPU: SmolVLA's shapes, each with everybody who can compute them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.gpu import ours, rivals
from benchmarks.gpu.contest import Case, Contestant, Prepared
from benchmarks.shapes import ATTENTIONS, CHUNK, LINEARS, STEPS, AttentionShape, LinearShape

# Shapes that the programs can be tried with where there is no GPU.
TRIAL = LinearShape("trial", 24, 128, 64, 1)


def linear_case(s: LinearShape, device: str) -> Case:
    """Products alone: no bias, activation or residual on any side."""
    held = [rivals.cublas(s, device), ours.linear(s, device, "bfloat16")]
    if not s.bf16:  # its weight stays float32
        held = [rivals.cublas(s, device, torch.float32), ours.linear(s, device, "float32")]
    if s.codes:
        held += [rivals.int_mm(s, device), ours.linear_w8a8(s, device),
                 rivals.triton_linear(s, device, 8)]  # fmt: skip
    if s.codes and s.rows <= CHUNK:
        held += [ours.linear_w4a16(s, device), rivals.triton_linear(s, device, 4),
                 rivals.nf4(s, device)]  # fmt: skip
    return Case(s.name, "linear", s.text, s.flops, s.calls, held)


def attention_cases(device: str) -> list[Case]:
    return [attention_case(s, device) for s in ATTENTIONS]


def attention_case(s: AttentionShape, device: str) -> Case:
    held = [ours.attention(s, device), *rivals.sdpa(s, device), rivals.triton_attention(s, device)]
    return Case(s.name, "attention", s.text, s.flops, s.calls, held)


def step_case(device: str, shapes: list[LinearShape], name: str = "expert step") -> Case:
    """All linear layers of the expert in one denoise step, one after the other: one call.

    shapes: `calls` of each are those of a step. Weights of every layer are its own.
    """
    makers: dict[str, tuple[str, Callable[[LinearShape], Contestant]]] = {
        "smolvla-edge W4A16": ("int4", lambda s: ours.linear_w4a16(s, device)),
        "smolvla-edge bfloat16": ("bfloat16", lambda s: ours.linear(s, device, "bfloat16")),
        "cuBLAS bfloat16": ("bfloat16", lambda s: rivals.cublas(s, device)),
        "Triton kernel": ("int4", lambda s: rivals.triton_linear(s, device, 4)),
        "bitsandbytes NF4": ("int4", lambda s: rivals.nf4(s, device)),
    }

    def all_of(one: Callable[[LinearShape], Contestant]) -> Callable[[], Prepared]:
        def make() -> Prepared:
            calls = [one(s).make().call for s in shapes for _ in range(s.calls)]

            def step() -> None:
                for call in calls:
                    call()

            return Prepared(step)  # its parts are checked in cases of their own

        return make

    held = []
    for by, (precision, one) in makers.items():
        nbytes = sum(s.calls * one(s).nbytes for s in shapes)
        held.append(Contestant(by, precision, nbytes, all_of(one)))
    layers = sum(s.calls for s in shapes)
    flops = sum(s.calls * s.flops for s in shapes)
    return Case(name, "step", f"{layers} linear layers", flops, STEPS, held)


def expert_shapes() -> list[LinearShape]:
    """The expert's linears with their calls in one step."""
    return [
        LinearShape(s.name, s.rows, s.depth, s.out, s.calls // STEPS)
        for s in LINEARS
        if s.name.startswith("expert") and s.codes
    ]


def cases(device: str, only: str = "") -> list[Case]:
    """All of them, or those whose name holds `only`."""
    found = [linear_case(s, device) for s in LINEARS]
    found += [*attention_cases(device), *ours.row_cases(device)]
    found.append(step_case(device, expert_shapes()))
    return [case for case in found if only in case.name]


def trial_cases(device: str) -> list[Case]:
    """Small ones of every kind."""
    return [
        linear_case(TRIAL, device),
        attention_case(AttentionShape("trial attention", 5, 12, 3, 1, 1, causal=True), device),
        *ours.row_cases(device, small=True),
        step_case(device, [TRIAL], "trial step"),
    ]
