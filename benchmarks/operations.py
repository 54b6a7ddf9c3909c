"""Every operation of one chunk of actions, as csrc/model asks a backend for them.

`operations(model, cameras, valid_tokens, precision)` lists them with their work and the least
traffic: each weight once a call, each operand once. tests/unit/test_benchmark_operations.py holds
the products to `flops.exact_flops`, to the last one, and the whole list to what an engine records.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.flops import image_tokens

STAGES = ("preprocess", "vision", "prefix", "flow")


@dataclass(frozen=True)
class Weights:
    """How the matrices of a part are held. unit: what multiplies them, as `Device.peaks` names it.

    bits: of an element; group: elements of a row under one scale, 0 for one scale a row (int8) or
    none (floats).
    """

    bits: int
    unit: str
    group: int = 0

    def nbytes(self, out: int, depth: int) -> float:
        scales = {4: 2 * -(-depth // self.group) if self.group else 0, 8: 4}.get(self.bits, 0)
        return out * (depth * self.bits / 8 + scales)


@dataclass(frozen=True)
class Precision:
    """What a bundle holds its parts in. `kept`: heads and the cross layers' K and V."""

    name: str
    vision: Weights
    text: Weights
    expert: Weights
    plain: Weights  # patch embedding and connector
    kept: Weights

    @property
    def activation_bytes(self) -> int:
        """Of what feeds nothing but a linear layer."""
        return 4 if self.plain.unit == "float32" else 2


F32, BF16 = Weights(32, "float32"), Weights(16, "bfloat16")
INT8, INT4 = Weights(8, "int8"), Weights(4, "bfloat16", 64)  # 4 bits meet bfloat16 rows on a GPU
PRECISIONS = {
    p.name: p
    for p in (
        Precision("float32", F32, F32, F32, F32, F32),
        Precision("bfloat16", BF16, BF16, BF16, BF16, F32),
        Precision("bfloat16, int4 expert", BF16, BF16, INT4, BF16, F32),
        Precision("balanced", INT8, INT8, INT4, BF16, F32),
    )
}


@dataclass(frozen=True)
class Operation:
    """One kind of operation. flops, weight_bytes and activation_bytes are those of one call.

    unit: what makes the products ("float32", "bfloat16", "int8"), or "" where nothing is
    multiplied; rows: of the result; columns, bits: of a linear layer's weight [columns, depth];
    rides: whether the CUDA backend does it in the kernel of the operation before (rope_store).
    """

    stage: str
    name: str
    kind: str  # as csrc/ops/ops.h names it
    calls: int
    rows: int
    unit: str = ""
    flops: float = 0.0
    weight_bytes: float = 0.0
    activation_bytes: float = 0.0
    columns: int = 0
    bits: int = 0
    rides: bool = False

    @property
    def nbytes(self) -> float:
        return self.weight_bytes + self.activation_bytes

    @property
    def kernels(self) -> int:
        """Launches of the CUDA backend in a chunk. Rows are gathered by the host, and copied."""
        return 0 if self.rides or self.kind == "gather_rows" else self.calls


class _Part:
    """Makes the operations of one stage with the weights of one part."""

    def __init__(self, stage: str, precision: Precision, weights: Weights) -> None:
        self.stage, self.precision, self.weights = stage, precision, weights

    def linear(
        self, name: str, calls: int, rows: int, depth: int, out: int, *,
        weights: Weights | None = None, x: int | None = None, y: int | None = None,
        gated: bool = False, residual: bool = False,
    ) -> Iterator[Operation]:  # fmt: skip
        """x, y: bytes of an element of the input and of the result; by default an activation's.

        Rows of int8 are made by the norm before, or where there is none by an operation of their
        own (`rounded`).
        """
        w = weights or self.weights
        small = self.precision.activation_bytes
        reads = 1 if w.unit == "int8" else x or small
        result = out // 2 if gated else out
        moved = rows * (depth * reads + result * ((y or small) + (4 if residual else 0)))
        yield Operation(
            self.stage, name, "linear", calls, rows, w.unit, 2.0 * rows * depth * out,
            w.nbytes(out, depth), moved, out, w.bits,
        )  # fmt: skip

    def rows(
        self, name: str, kind: str, calls: int, rows: int, moved: float, rides: bool = False
    ) -> Operation:
        """An operation that multiplies no matrices; moved: bytes of a row."""
        return Operation(
            self.stage, name, kind, calls, rows, activation_bytes=rows * moved, rides=rides
        )

    def attention(
        self, name: str, calls: int, rows: int, keys: int, products: float, heads: int,
        kv_heads: int, head_dim: int, q: int,
    ) -> Operation:  # fmt: skip
        """products: pairs of a query and a key that it sees; q: bytes of an element of it."""
        small = self.precision.activation_bytes
        moved = rows * heads * head_dim * (q + small) + 2 * keys * kv_heads * head_dim * small
        unit = "float32" if small == 4 else "bfloat16"
        flops = 4.0 * products * heads * head_dim
        return Operation(
            self.stage, name, "attention", calls, rows, unit, flops, activation_bytes=moved
        )

    def normed(self, depth: int) -> float:
        """Bytes of a row that a norm reads and writes for the next linear layer."""
        made = 1 if self.weights.unit == "int8" else self.precision.activation_bytes
        return depth * (4 + made)

    def rounded(self, name: str, calls: int, rows: int, depth: int) -> Iterator[Operation]:
        """Rows to int8, where a linear layer of int8 follows something other than a norm."""
        if self.weights.unit == "int8":
            moved = depth * (self.precision.activation_bytes + 1)
            yield self.rows(name, "quantize_rows", calls, rows, moved)


def _vision(model: Any, cameras: int, precision: Precision) -> Iterator[Operation]:
    part = _Part("vision", precision, precision.vision)
    small = precision.activation_bytes
    width, height = model.resize or (model.image_size, model.image_size)
    rows = (width // model.patch_size) * (height // model.patch_size)
    w, mlp, layers = model.vision_width, model.vision_mlp, model.vision_layers * cameras
    pixels, joined = 3 * model.patch_size**2, w * model.scale_factor**2
    tokens = rows // model.scale_factor**2
    yield replace(
        part.rows("letterbox", "letterbox", cameras, width * height, 3 * (1 + 4)),
        stage="preprocess",
    )
    yield part.rows("patchify", "patchify", cameras, rows, pixels * (4 + small))
    yield from part.linear("patches", cameras, rows, pixels, w, weights=precision.plain, y=4,
                           residual=True)  # fmt: skip
    yield part.rows("norms", "layer_norm", 2 * layers, rows, part.normed(w))
    yield from part.linear("qkv", layers, rows, w, 3 * w)
    yield part.rows("keys and values", "store_kv", layers, rows, 2 * w * 2 * small)
    heads = model.vision_heads
    yield part.attention("attention", layers, rows, rows, rows * rows, heads, heads, w // heads,
                         small)  # fmt: skip
    yield from part.rounded("rows for out", layers, rows, w)
    yield from part.linear("out", layers, rows, w, w, y=4, residual=True)
    yield from part.linear("up", layers, rows, w, mlp)
    yield from part.rounded("rows for down", layers, rows, mlp)
    yield from part.linear("down", layers, rows, mlp, w, y=4, residual=True)
    yield part.rows("last norm", "layer_norm", cameras, rows, w * (4 + small))
    yield part.rows("pixel shuffle", "pixel_shuffle", cameras, tokens, joined * 2 * small)
    yield from part.linear("connector", cameras, tokens, joined, model.text_width,
                           weights=precision.plain, y=4)  # fmt: skip


def _prefix(model: Any, cameras: int, valid: int, precision: Precision) -> Iterator[Operation]:
    part = _Part("prefix", precision, precision.text)
    small = precision.activation_bytes
    width, tokens = model.text_width, image_tokens(model)
    n = cameras * tokens + valid + 1
    inner, kv, mlp = model.heads * model.head_dim, model.kv_heads * model.head_dim, model.text_mlp
    layers = model.last_used_text_layer
    beside = [i for i in range(model.text_layers) if model.expert_layer_of(i) is not None]
    crossed = sum(not model.is_self_layer(i) for i in beside)
    special = 3 if model.add_image_special_tokens else 0
    yield part.rows("image tokens", "copy", cameras, tokens - special, width * 8)
    if special:
        yield part.rows("special tokens", "gather_rows", special * cameras, 1, width * 4)
    yield part.rows("words", "gather_rows", 1, valid, width * 4)
    # The state token's product is not counted, as in flops.py.
    yield Operation("prefix", "state", "linear", 1, 1, "float32", 0.0,
                    precision.kept.nbytes(width, model.max_state_dim), width * 4, width,
                    precision.kept.bits)  # fmt: skip
    yield part.rows("norms", "rms_norm", 2 * layers + 1, n, part.normed(width))
    yield from part.linear("qkv", layers, n, width, inner + 2 * kv, y=4)
    yield from part.linear("last kv", 1, n, width, 2 * kv, y=4)
    yield part.rows("rotary queries", "rope", layers, n, inner * 8)
    yield part.rows("rotary keys", "rope", layers, n, kv * 8, rides=True)
    yield part.rows("keys and values", "store_kv", layers, n, 2 * kv * (4 + small), rides=True)
    yield part.rows("last rotary keys", "rope", 1, n, kv * 8)
    yield part.rows("expert's keys and values", "store_kv", len(beside), n, 2 * kv * (4 + small))
    yield part.attention("attention", layers, n, n, n * n, model.heads, model.kv_heads,
                         model.head_dim, 4)  # fmt: skip
    yield from part.rounded("rows for out", layers, n, inner)
    yield from part.linear("out", layers, n, inner, width, y=4, residual=True)
    yield from part.linear("gate and up", layers, n, width, 2 * mlp, gated=True)
    yield from part.rounded("rows for down", layers, n, mlp)
    yield from part.linear("down", layers, n, mlp, width, y=4, residual=True)
    yield from part.linear("expert cross kv", 2 * crossed, n, kv, kv, weights=precision.kept,
                           x=4, y=4)  # fmt: skip


def _flow(model: Any, cameras: int, valid: int, precision: Precision) -> Iterator[Operation]:
    part = _Part("flow", precision, precision.expert)
    small = precision.activation_bytes
    rows, steps, width = model.chunk_size, model.num_steps, model.expert_width
    n = cameras * image_tokens(model) + valid + 1
    inner, kv, mlp = model.heads * model.head_dim, model.kv_heads * model.head_dim, model.expert_mlp
    beside = [i for i in range(model.text_layers) if model.expert_layer_of(i) is not None]
    layers = len(beside) * steps
    own = sum(model.is_self_layer(i) for i in beside) * steps
    cross = layers - own
    kept, dims = precision.kept, model.max_action_dim
    yield from part.linear("action in", steps, rows, dims, width, weights=kept, x=4, y=4)
    yield from part.linear("time out", steps, rows, width, width, weights=kept, x=4, y=4)
    yield part.rows("norms", "rms_norm", 2 * layers, rows, part.normed(width))
    yield from part.linear("qkv", own, rows, width, inner + 2 * kv, y=4)
    yield from part.linear("cross q", cross, rows, width, inner, y=4)
    yield part.rows("rotary queries", "rope", layers, rows, inner * 8)
    yield part.rows("rotary keys", "rope", own, rows, kv * 8, rides=True)
    yield part.rows("keys and values", "store_kv", own, rows, 2 * kv * (4 + small), rides=True)
    seen = rows * (n + (rows + 1) / 2)
    heads, kv_heads, head_dim = model.heads, model.kv_heads, model.head_dim
    yield part.attention("self attention", own, rows, n + rows, seen, heads, kv_heads, head_dim, 4)
    yield part.attention("cross attention", cross, rows, n, rows * n, heads, kv_heads, head_dim, 4)
    yield from part.rounded("rows for out", layers, rows, inner)
    yield from part.linear("out", layers, rows, inner, width, y=4, residual=True)
    yield from part.linear("gate and up", layers, rows, width, 2 * mlp, gated=True)
    yield from part.rounded("rows for down", layers, rows, mlp)
    yield from part.linear("down", layers, rows, mlp, width, y=4, residual=True)
    yield part.rows("last norm", "rms_norm", steps, rows, width * 8)
    yield from part.linear("action out", steps, rows, width, dims, weights=kept, x=4, y=4)
    yield part.rows("step", "flow_update", steps, rows, dims * 12)
    yield part.rows("step number", "advance", steps, 1, 8)


def operations(
    model: Any, cameras: int, valid_tokens: int, precision: Precision
) -> list[Operation]:
    """All operations of a chunk of `cameras` images and a prompt of `valid_tokens`, every action.

    Those without a call are left out.
    """
    found: list[Iterable[Operation]] = [
        _vision(model, cameras, precision),
        _prefix(model, cameras, valid_tokens, precision),
        _flow(model, cameras, valid_tokens, precision),
    ]
    return [operation for part in found for operation in part if operation.calls]
