"""Which operations a chunk is made of, at which sizes, and how often.

The list is of SmolVLA (the base configuration) with one camera of 512x512 and 48 valid language
tokens: 64 + 48 + 1 = 113 prefix rows. tests/unit/test_benchmark_flops.py holds its sum to
`flops.exact_flops`.
"""

from __future__ import annotations

from dataclasses import dataclass

PATCHES = 1024
PREFIX = 113
CHUNK = 50
STEPS = 10
HEAD_DIM = 64


@dataclass(frozen=True)
class LinearShape:
    """y [rows, out] = x [rows, depth] times a weight [out, depth]; `calls` in a chunk.

    `bf16`: whether a bfloat16 bundle computes it in bfloat16 (else its weight stays float32);
    `codes`: whether a bundle may hold it as integers.
    """

    name: str
    rows: int
    depth: int
    out: int
    calls: int
    bf16: bool = True
    codes: bool = True

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.depth * self.out

    @property
    def text(self) -> str:
        return f"{self.rows} x {self.depth} -> {self.out}"


@dataclass(frozen=True)
class AttentionShape:
    """Row i of q [rows, heads x 64] attends to its first keys of [keys, kv_heads x 64].

    causal: row i sees the first keys - rows + 1 + i of them; otherwise all.
    """

    name: str
    rows: int
    keys: int
    heads: int
    kv_heads: int
    calls: int
    causal: bool = False

    @property
    def lengths(self) -> list[int]:
        """Keys that each row attends to."""
        first = self.keys - self.rows + 1
        return [first + i if self.causal else self.keys for i in range(self.rows)]

    @property
    def flops(self) -> float:
        return 4.0 * sum(self.lengths) * self.heads * HEAD_DIM

    @property
    def text(self) -> str:
        grouped = f"{self.heads} heads"
        grouped += f" on {self.kv_heads}" if self.kv_heads != self.heads else ""
        return f"{self.rows} x {self.keys}, {grouped}" + (", causal tail" if self.causal else "")


LINEARS = (
    LinearShape("vision patches", PATCHES, 768, 768, 1, codes=False),
    LinearShape("vision qkv", PATCHES, 768, 2304, 12),
    LinearShape("vision out", PATCHES, 768, 768, 12),
    LinearShape("vision up", PATCHES, 768, 3072, 12),
    LinearShape("vision down", PATCHES, 3072, 768, 12),
    LinearShape("connector", 64, 12288, 960, 1),
    LinearShape("prefix qkv", PREFIX, 960, 1600, 15),
    LinearShape("prefix last kv", PREFIX, 960, 640, 1),
    LinearShape("prefix out", PREFIX, 960, 960, 15),
    LinearShape("prefix gate and up", PREFIX, 960, 5120, 15),
    LinearShape("prefix down", PREFIX, 2560, 960, 15),
    LinearShape("expert cross kv", PREFIX, 320, 320, 16, bf16=False, codes=False),
    LinearShape("expert qkv", CHUNK, 720, 1600, 8 * STEPS),
    LinearShape("expert cross q", CHUNK, 720, 960, 8 * STEPS),
    LinearShape("expert out", CHUNK, 960, 720, 16 * STEPS),
    LinearShape("expert gate and up", CHUNK, 720, 4096, 16 * STEPS),
    LinearShape("expert down", CHUNK, 2048, 720, 16 * STEPS),
    LinearShape("action in", CHUNK, 32, 720, STEPS, bf16=False, codes=False),
    LinearShape("action mlp out", CHUNK, 720, 720, STEPS, bf16=False, codes=False),
    LinearShape("action out", CHUNK, 720, 32, STEPS, bf16=False, codes=False),
)
ATTENTIONS = (
    AttentionShape("vision attention", PATCHES, PATCHES, 12, 12, 12),
    AttentionShape("prefix attention", PREFIX, PREFIX, 15, 5, 15),
    AttentionShape("expert self attention", CHUNK, PREFIX + CHUNK, 15, 5, 8 * STEPS, causal=True),
    AttentionShape("expert cross attention", CHUNK, PREFIX, 15, 5, 8 * STEPS),
)
# (name, rows, columns): LayerNorm of the vision tower, RMSNorm of prefix and expert
NORMS = (
    ("layer_norm", PATCHES, 768),
    ("rms_norm", PREFIX, 960),
    ("rms_norm", CHUNK, 720),
)
# (rows, keys): the rows of scores that a vision, prefix or expert head has at a time
SOFTMAX = ((PATCHES, PATCHES), (PREFIX, PREFIX), (CHUNK, PREFIX + CHUNK))
# (rows, columns): what becomes integers in vision, prefix and expert
ROWS = ((PATCHES, 768), (PATCHES, 3072), (PREFIX, 960), (PREFIX, 2560), (CHUNK, 720), (CHUNK, 2048))
# (rows, heads): RoPE of the prefix and the expert
ROPE = ((PREFIX, 15), (CHUNK, 15))


def total_flops() -> float:
    """Of a whole chunk, by this list."""
    return sum(s.calls * s.flops for s in (*LINEARS, *ATTENTIONS))
