"""Single operations of the CPU core as a benchmark worker (run by benchmarks.libraries).

    python benchmarks/workers/ours_ops.py --threads 2 [--isa avx512]

The requests are those of rivals/libraries/worker.py, and {"cmd": "ceiling"}.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# Last, so that an installed smolvla_edge comes before the source tree's, which has no core.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks.workers.channel import memory_mib, open_channel, serve
from benchmarks.workers.timing import median_seconds
from smolvla_edge import _core
from smolvla_edge.codes import CodeFormat, round_to_nearest
from smolvla_edge.version import __version__

HEAD_DIM = 64
PRECISIONS = ("float32", "bfloat16")
FORMATS = (CodeFormat(8), CodeFormat(4, 64))  # what the recipe `balanced` holds
Variants = dict[str, tuple[str, Callable[[], None], Callable[[], np.ndarray]]]


def to_bf16(values: np.ndarray) -> np.ndarray:
    """The uint16 bits of values that bfloat16 holds exactly."""
    return (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def round_bf16(values: np.ndarray) -> np.ndarray:
    """Values cut to what bfloat16 holds."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)


def linear_variants(
    rows: int, depth: int, out: int, threads: int, isa: str, folder: Path
) -> tuple[Variants, np.ndarray]:
    """(name -> (precision, call, result), the expected result), weights stored as bfloat16."""
    random = np.random.default_rng(1)
    x = round_bf16(random.standard_normal((rows, depth), np.float32))
    weight = round_bf16(random.standard_normal((out, depth), np.float32) / np.float32(depth**0.5))
    path = folder / "weight.bin"
    path.write_bytes(to_bf16(weight).tobytes())
    found: Variants = {}
    for precision in PRECISIONS:
        ops = _core.CpuOps(threads, isa, precision)
        handle = ops.load_linear(str(path), "BF16", out, depth)
        # Operands in the engine's own storage and row stride, as between two layers of the model.
        source = ops.make_activation(x)
        target = ops.make_activation(np.zeros((rows, out), np.float32))
        found[precision] = (
            precision,
            lambda ops=ops, h=handle, s=source, t=target: ops.linear(h, s, t),
            lambda ops=ops, t=target: ops.read_activation(t),
        )
    for form in FORMATS:
        # As in the engine: rows are stored as bfloat16 and made integers where they are read.
        ops = _core.CpuOps(threads, isa, "bfloat16")
        codes, scales = round_to_nearest(weight, form).stored()
        path = folder / f"codes{form.bits}.bin"
        path.write_bytes(codes.tobytes() + scales.tobytes())
        dtype = "I8" if form.bits == 8 else "U8"
        handle = ops.load_codes(str(path), dtype, out, depth, form.groups(depth))
        source = ops.make_activation(x)
        target = ops.make_activation(np.zeros((rows, out), np.float32))
        found[form.name] = (
            f"int{form.bits}",
            lambda ops=ops, h=handle, s=source, t=target: ops.linear(h, s, t),
            lambda ops=ops, t=target: ops.read_activation(t),
        )
    return found, x.astype(np.float64) @ weight.astype(np.float64).T


def attention_variants(
    heads: int, kv_heads: int, lengths: list[int], threads: int, isa: str
) -> tuple[Variants, np.ndarray]:
    """The same for attention of q [rows, heads * 64] to the first lengths[i] keys of each row."""
    random = np.random.default_rng(2)
    rows, keys = len(lengths), max(lengths)
    q = random.standard_normal((rows, heads * HEAD_DIM), np.float32)
    k, v = (random.standard_normal((keys, kv_heads * HEAD_DIM), np.float32) for _ in range(2))
    counts = np.array(lengths, np.int32)
    found: Variants = {}
    for precision in PRECISIONS:
        ops = _core.CpuOps(threads, isa, precision)
        kv = ops.make_kv(kv_heads, HEAD_DIM, keys)
        ops.store_kv(kv, k, v, 0)
        # As in the engine: results are stored activations, queries in the vision tower only.
        source = ops.make_activation(q) if heads == kv_heads else q
        target = ops.make_activation(np.zeros_like(q))
        found[precision] = (
            precision,
            lambda ops=ops, kv=kv, s=source, t=target: ops.attention(
                kv, s, counts, t, heads, kv_heads
            ),
            lambda ops=ops, t=target: ops.read_activation(t),
        )
    return found, expected_attention(q, k, v, counts, heads, kv_heads)


def expected_attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, counts: np.ndarray, heads: int, kv_heads: int
) -> np.ndarray:
    """softmax(q k^T / 8) v in float64, [rows, heads * 64]."""
    out = np.empty(q.shape, np.float64)
    hidden = np.arange(len(k))[None] >= counts[:, None]
    for head in range(heads):
        mine = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        shared = head * kv_heads // heads
        theirs = slice(shared * HEAD_DIM, (shared + 1) * HEAD_DIM)
        scores = q[:, mine].astype(np.float64) @ k[:, theirs].astype(np.float64).T / 8
        scores[hidden] = -np.inf
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[:, mine] = weights @ v[:, theirs] / weights.sum(axis=1, keepdims=True)
    return out


class OurOps:
    def __init__(self, threads: int, isa: str, folder: Path) -> None:
        self.threads = threads
        self.isa = isa
        self.folder = folder
        self.variants: Variants = {}

    def prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["op"] == "linear":
            shape = (request["rows"], request["depth"], request["out"])
            found, want = linear_variants(*shape, self.threads, self.isa, self.folder)
        elif request["op"] == "attention":
            sizes = (request["heads"], request["kv_heads"], request["lengths"])
            found, want = attention_variants(*sizes, self.threads, self.isa)
        else:
            return {"error": f"op: expected linear or attention, got {request['op']!r}"}
        self.variants = found
        largest = np.abs(want).max()
        answer = {}
        for name, (precision, call, result) in found.items():
            call()
            error = float(np.abs(result() - want).max() / largest)
            answer[name] = {"precision": precision, "error": error}
        return {"variants": answer}

    def time(self, request: dict[str, Any]) -> dict[str, Any]:
        return {
            "seconds": median_seconds(self.variants[request["variant"]][1], request["milliseconds"])
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--isa", default="", help="force an instruction set")
    arguments = parser.parse_args()
    channel = open_channel()
    start = time.perf_counter()
    isa = arguments.isa or str(_core.cpu_info()["isa"])
    ready = {
        "versions": {"smolvla-edge": __version__, "numpy": np.__version__},
        "threads": arguments.threads,
        "info": {"isa": isa},
        "load_seconds": time.perf_counter() - start,
        "rss_after_load_mib": memory_mib("VmRSS"),
    }

    def ceiling(request: dict[str, Any]) -> dict[str, Any]:
        from benchmarks.ceilings import measure

        return {"ceilings": measure(arguments.threads, arguments.isa)}

    with tempfile.TemporaryDirectory(prefix="smolvla-ops-") as folder:
        ours = OurOps(arguments.threads, arguments.isa, Path(folder))
        serve(channel, ready, {"prepare": ours.prepare, "time": ours.time, "ceiling": ceiling})


if __name__ == "__main__":
    main()
