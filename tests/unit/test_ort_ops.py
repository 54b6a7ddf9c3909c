"""The custom operators for ONNX Runtime: who computes them, the library itself, and DenoiseStep.

Between them test_ort_*.py call every slot of the runtime's C ABI that csrc/ort/abi.h names. Which
versions of ONNX Runtime the library works in is what these files say, run with each of them.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from needs import needs

from smolvla_edge import ort_ops
from smolvla_edge.errors import BackendError
from smolvla_edge.ort_ops import library_path

with needs("onnx", "onnxruntime"):
    import onnx
    from onnx import helper
    from onnx.reference import ReferenceEvaluator
    from ort_ops_helpers import (
        BOOL,
        FLOAT,
        RUNS_BODIES,
        RUNTIME,
        STEP_INPUTS,
        any_mask,
        attention_model,
        constant,
        linear_model,
        linear_node,
        looped_linear,
        model,
        needs_bodies,
        operators_of,
        operators_run,
        reference_attention,
        rounded_linear,
        session,
        shaped,
        some_codes,
        step_model,
        value,
        weights_of,
    )


@pytest.fixture
def random():
    return np.random.default_rng(11)


def step_feeds(random, rows=50, dims=32, targets=None, weights=None) -> dict[str, np.ndarray]:
    shapes = [(rows, dims)] * 3 + [(5,), (targets or rows, dims), (weights or rows,)]
    return {
        name: random.standard_normal(shape, np.float32)
        for name, shape in zip(STEP_INPUTS, shapes, strict=True)
    }


def step(feeds: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    x, v, last, row, target, weights = (feeds[name] for name in STEP_INPUTS)
    time, dt, now, before, gain = row
    v = v - gain * ((target - (x - time * v)) * weights[:, None])
    return x + dt * (now * v + before * last), v


def small_cases(random) -> list[tuple[bytes, dict[str, np.ndarray], list[np.ndarray]]]:
    """A model with bodies of each operator, inputs, and what comes out, but for rounding."""
    codes = some_codes(random, 144, 40, 64)
    x = {"x": random.standard_normal((3, 144), np.float32)}
    square = some_codes(random, 40, 40, 32)
    y = {"x": random.standard_normal((3, 40), np.float32)}
    eight, whole = some_codes(random, 144, 40, None), some_codes(random, 40, 40, None)
    twice = rounded_linear(whole, rounded_linear(whole, y["x"]))
    heads = {
        name: random.standard_normal((1, rows, width), np.float32)
        for name, rows, width in (("query", 5, 48), ("key", 7, 16), ("value", 7, 16))
    } | {"mask": any_mask(random, 7, 5)}
    reads = reference_attention(
        *(heads[n][0] for n in ("query", "key", "value")), heads["mask"], 6, 2
    )
    steps = step_feeds(random)
    return [
        (linear_model(codes, bodies=True), x, [x["x"] @ codes.weight().T]),
        (
            looped_linear(square, inside=True, bodies=True),
            y,
            [y["x"] @ square.weight().T @ square.weight().T],
        ),
        (linear_model(eight, bodies=True), x, [rounded_linear(eight, x["x"])]),
        (looped_linear(whole, inside=False, bodies=True), y, [twice]),
        (attention_model(6, 2, bodies=True), heads, [reads[0][None]]),
        (step_model(bodies=True), steps, list(step(steps))),
    ]


class TestTheBodies:
    """By the standard, whatever a runtime makes of them."""

    def test_they_are_valid_and_their_shapes_can_be_inferred(self, random):
        for content, feeds, want in small_cases(random):
            names = [output.name for output in onnx.load_from_string(content).graph.output]
            shapes = {name: y.shape for name, y in zip(names, want, strict=True)}
            onnx.checker.check_model(shaped(content, feeds, shapes), full_check=True)
            if b"Loop" in content:
                continue  # whose outputs are not compared with what they are said to be
            shapes[names[0]] = (*want[0].shape[:-1], 41)
            with pytest.raises(onnx.shape_inference.InferenceError, match="41"):
                onnx.checker.check_model(shaped(content, feeds, shapes), full_check=True)

    def test_the_reference_implementation_runs_them(self, random):
        for content, feeds, want in small_cases(random):
            got = ReferenceEvaluator(onnx.load_from_string(content)).run(None, feeds)
            for y, wanted in zip(got, want, strict=True):
                assert np.abs(y - wanted).max() <= 1e-5 * np.abs(wanted).max()


class TestWhoComputes:
    """Body or kernel: what ONNX Runtime chooses, and what it makes of the body."""

    def test_without_body_and_library_nobody_does(self, random):
        content = linear_model(some_codes(random, 64, 8, 32))
        with pytest.raises(Exception, match="smolvla_edge"):
            session(content, library=False)
        session(content)

    @needs_bodies
    def test_the_kernel_comes_before_the_body(self, random, tmp_path):
        x = {"x": random.standard_normal((2, 64), np.float32)}
        for group, op in ((32, "LinearW4"), (None, "LinearW8")):
            codes = some_codes(random, 64, 64, group)
            ran = operators_run(linear_model(codes, bodies=True), x, tmp_path)
            assert ran == {op}
            ran = operators_run(looped_linear(codes, inside=True, bodies=True), x, tmp_path)
            assert {"Loop", op} <= ran <= {"Loop", op, "Identity"}
        heads = {n: np.ones((1, 3, 8), np.float32) for n in ("query", "key", "value")}
        heads["mask"] = np.ones((3, 3), bool)
        content = attention_model(2, 2, bodies=True)
        assert operators_run(content, heads, tmp_path) == {"ExpertAttention"}
        assert operators_run(step_model(bodies=True), step_feeds(random), tmp_path) == {
            "DenoiseStep"
        }

    @needs_bodies
    @pytest.mark.parametrize("where", ["graph", "loop"])
    @pytest.mark.parametrize("depth, group", [(128, 32), (144, 64), (200, 128)])
    def test_the_body_becomes_one_product_of_four_bits(self, where, depth, group, random, tmp_path):
        codes = some_codes(random, depth, depth, group)
        content = (
            linear_model(codes, bodies=True)
            if where == "graph"
            else looped_linear(codes, inside=True, bodies=True)
        )
        path = tmp_path / "optimized.onnx"
        made = session(content, library=False, optimized=path)
        assert "MatMulNBits" in operators_of(path)
        assert not {"DequantizeLinear", "MatMul", "LinearW4"} & set(operators_of(path))
        x = random.standard_normal((5, depth), np.float32)
        (got,) = made.run(None, {"x": x})
        want = x.astype(np.float64) @ codes.weight().T
        for _ in range(where == "loop"):
            want = want @ codes.weight().T
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()

    @needs_bodies
    def test_codes_outside_a_loop_are_beyond_the_bodys_fusion(self, random):
        """A limit of ONNX Runtime that decides where an export keeps its weights. The day this
        fails, export/functions.py has a sentence to lose."""
        content = looped_linear(some_codes(random, 96, 96, 32), inside=False, bodies=True)
        with pytest.raises(Exception, match="Missing required weight"):
            session(content, library=False)
        session(content)  # with the library there is nothing to fuse


class TestDenoiseStep:
    @pytest.mark.parametrize("rows, dims", [(50, 32), (1, 1), (7, 5)])
    @pytest.mark.parametrize("targets, weights", [(None, None), (1, None), (None, 1), (1, 1)])
    def test_kernel_and_body_are_numpys_bits(self, rows, dims, targets, weights, random):
        feeds = step_feeds(random, rows, dims, targets, weights)
        want = step(feeds)
        for library in (True, False) if RUNS_BODIES else (True,):
            made = session(step_model(bodies=RUNS_BODIES), library=library)
            for got, wanted in zip(made.run(None, feeds), want, strict=True):
                assert np.array_equal(got, wanted)

    def test_a_plain_euler_step(self, random):
        feeds = step_feeds(random) | {"row": np.array([0.9, -0.1, 1, 0, 0], np.float32)}
        x, v = session(step_model()).run(None, feeds)
        assert np.array_equal(v, feeds["v"])
        assert np.array_equal(x, feeds["x"] + np.float32(-0.1) * feeds["v"])

    @pytest.mark.parametrize("name, shape, message", [
        ("x", (50, 32, 1), r"x: expected float32 \[any, any\]"),
        ("v", (49, 32), r"v: expected float32 \[50, 32\], got float32 \[49, 32\]"),
        ("last", (50, 31), r"last: expected float32 \[50, 32\]"),
        ("row", (4,), r"row: expected float32 \[5\]"),
        ("pull_target", (2, 32), r"pull_target: expected float32 \[50, 32\]"),
        ("pull_target", (1, 31), r"pull_target: expected float32 \[1, 32\]"),
        ("pull_weights", (49,), r"pull_weights: expected float32 \[50\]"),
        ("pull_weights", (50, 1), r"pull_weights: expected float32 \[50\]"),
        ("pull_weights", (), r"pull_weights: expected float32 \[50\], got float32 \[\]"),
    ])  # fmt: skip
    def test_shapes_that_do_not_fit_are_refused(self, name, shape, message, random):
        feeds = step_feeds(random) | {name: np.zeros(shape, np.float32)}
        with pytest.raises(Exception, match=message):
            session(step_model()).run(None, feeds)


class TestTheLibrary:
    def test_several_threads_run_one_session(self, random):
        codes = some_codes(random, 720, 960, 64)
        q = helper.make_node("Unsqueeze", ["y", "zero"], ["query"])
        attention = helper.make_node(
            "ExpertAttention", ["query", "query", "query", "mask"], ["z"], domain="smolvla_edge",
            heads=15, kv_heads=15,
        )  # fmt: skip
        zero = constant("zero", np.zeros(1, np.int64))
        content = model(
            [linear_node(64), q, attention],
            [value("x", FLOAT, [None, 720]), value("mask", BOOL, [None, None])],
            ["z"],
            [*weights_of(codes), zero],
        )
        made = session(content, threads=2)
        feeds = []
        for rows in (3, 17, 50, 64):  # each thread asks for other scratch
            x = random.standard_normal((rows, 720), np.float32)
            feeds.append({"x": x, "mask": any_mask(random, rows, rows)})
        want = [made.run(None, feed)[0] for feed in feeds]

        def run(turn: int) -> bool:
            which = turn % len(feeds)
            return np.array_equal(made.run(None, feeds[which])[0], want[which])

        with ThreadPoolExecutor(4) as threads:
            assert all(threads.map(run, range(80)))

    @pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core")
    def test_a_kernel_runs_on_the_threads_of_its_session(self, random):
        codes = some_codes(random, 960, 2560, 64)
        x = {"x": random.standard_normal((113, 960), np.float32)}
        shares = {}
        for threads in (1, 2):
            made = session(linear_model(codes), threads=threads)  # its threads sleep when idle
            made.run(None, x)
            everybody, caller = time.process_time(), time.thread_time()
            for _ in range(30):
                made.run(None, x)
            everybody, caller = time.process_time() - everybody, time.thread_time() - caller
            shares[threads] = 1 - caller / everybody
        assert shares[1] < 0.02 and shares[2] > 0.1  # of the work, by others than the caller

    def test_sessions_come_and_go(self, random):
        """With the last session the runtime unloads the library, and loads it anew."""
        codes = some_codes(random, 64, 64, 32)
        x = random.standard_normal((2, 64), np.float32)
        for _ in range(3):
            made = [session(linear_model(codes)) for _ in range(2)]
            got = [one.run(None, {"x": x})[0] for one in made]
            assert all(np.array_equal(y, rounded_linear(codes, x)) for y in got)
            del made

    @pytest.mark.skipif(shutil.which("nm") is None, reason="there is no nm")
    def test_it_exports_one_symbol(self):
        listed = ["nm", "-D", "--defined-only", "--format=posix", str(library_path())]
        lines = subprocess.run(listed, capture_output=True, text=True, check=True).stdout
        assert [line.split()[0] for line in lines.splitlines()] == ["RegisterCustomOps"]

    def test_an_older_runtime_is_refused(self):
        """One that has the first table of functions, of which the first makes an error."""
        said = []

        @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
        def create_status(code, message):
            said.append(message.decode())
            return 4711

        table = ctypes.c_void_p(ctypes.cast(create_status, ctypes.c_void_p).value)

        @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
        def get_api(version):
            return ctypes.addressof(table) if version == 1 else None

        base = (ctypes.c_void_p * 2)(ctypes.cast(get_api, ctypes.c_void_p).value)
        register = ctypes.CDLL(str(library_path())).RegisterCustomOps
        register.restype = ctypes.c_void_p
        assert register(None, base) == 4711
        assert "expected ONNX Runtime 1.20 or newer" in said[0]

    def test_an_installation_without_it_says_so(self, monkeypatch):
        monkeypatch.setattr(ort_ops, "LIBRARY", "nothing.so")
        with pytest.raises(BackendError, match=r"nothing\.so.*build the package again"):
            library_path()

    def test_the_runtime_is_one_that_is_supported(self):
        assert RUNTIME >= (1, 20)
