"""LinearW8 for ONNX Runtime: kernel and standard body, both the native backend's bits; refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from needs import needs

with needs("onnx", "onnxruntime"):
    import onnx
    import onnxruntime
    from onnx.reference import ReferenceEvaluator
    from ort_ops_helpers import (
        FLOAT,
        RUNS_BODIES,
        constant,
        linear_model,
        linear_node,
        looped_linear,
        model,
        native_linear,
        needs_bodies,
        node_of,
        operators_of,
        rounded_linear,
        session,
        some_codes,
        value,
        weights_of,
    )

    INT8, UINT8 = onnx.TensorProto.INT8, onnx.TensorProto.UINT8

LINEARS = [(128, 64), (720, 97), (31, 33), (960, 320), (1, 1), (2050, 32)]
# Who computes: our library, and the body where the runtime knows its opset.
COMPUTED = [True, False] if RUNS_BODIES else [True]
UNUSUAL = ["a NaN", "an infinity", "both", "zeros", "tiny", "hardly tiny", "huge", "ties"]


@pytest.fixture
def random():
    return np.random.default_rng(11)


def unusual_rows(random, depth: int) -> np.ndarray:
    """A row for each word of UNUSUAL; where the NaN stands is a lane of its own."""
    x = random.standard_normal((len(UNUSUAL), depth), np.float32)
    x[0, depth // 3], x[1, -1], x[2, 0], x[2, -1] = np.nan, -np.inf, np.nan, np.inf
    x[3] = 0
    least = np.float32(2.0**-100)
    x[4] *= np.nextafter(least, np.float32(0)) / np.abs(x[4]).max()
    x[4, 0] = np.nextafter(least, np.float32(0))
    x[5] *= least / np.abs(x[5]).max() / 2
    x[5, 0] = -least
    x[6] = np.finfo(np.float32).max * np.sign(x[6])
    x[7] = (np.arange(depth) % 253 - 126) / 2
    x[7, 0] = 127
    return x


class TestLinearW8:
    @pytest.mark.parametrize("library", COMPUTED, ids=lambda x: "library" if x else "body")
    @pytest.mark.parametrize("depth, out", LINEARS)
    @pytest.mark.parametrize("threads", [1, 2])
    def test_it_is_the_native_backends_linear(self, library, depth, out, threads, random, tmp_path):
        codes = some_codes(random, depth, out, None)
        made = session(linear_model(codes, bodies=RUNS_BODIES), library=library, threads=threads)
        for rows in (1, 2, 15, 50):
            x = random.standard_normal((rows, depth), np.float32)
            want = native_linear(codes, x, tmp_path)
            assert np.array_equal(want, rounded_linear(codes, x))
            for shape in [(rows, depth), (1, rows, depth), (rows, 1, 1, depth)]:
                (got,) = made.run(None, {"x": x.reshape(shape)})
                assert got.shape == (*shape[:-1], out)
                assert np.array_equal(got.reshape(rows, out), want)
        (alone,) = made.run(None, {"x": x[0]})
        assert np.array_equal(alone, want[0])
        if library:  # ReduceMax of 1.23 gives no rows a shape that does not fit
            (none,) = made.run(None, {"x": np.empty((0, depth), np.float32)})
            assert none.shape == (0, out)

    @pytest.mark.parametrize("library", COMPUTED, ids=lambda x: "library" if x else "body")
    def test_rows_that_are_unusual(self, library, random, tmp_path):
        codes = some_codes(random, 96, 40, None)
        x = unusual_rows(random, 96)
        (got,) = session(linear_model(codes, bodies=RUNS_BODIES), library=library).run(
            None, {"x": x}
        )
        with np.errstate(over="ignore"):
            want = rounded_linear(codes, x)
        assert np.isnan(got).all(axis=1).tolist() == [True] * 3 + [False] * 5
        assert got[3:].any(axis=1).tolist() == [False, False, True, True, True]
        assert np.array_equal(got, want, equal_nan=True)
        assert np.array_equal(got, native_linear(codes, x, tmp_path), equal_nan=True)

    @pytest.mark.parametrize("library", COMPUTED, ids=lambda x: "library" if x else "body")
    def test_a_nan_is_found_wherever_it_stands(self, library, random):
        """A runtime's ReduceMax loses most of them."""
        codes = some_codes(random, 96, 8, None)
        x = random.standard_normal((96, 96), np.float32)
        np.fill_diagonal(x, np.nan)
        made = session(linear_model(codes, bodies=RUNS_BODIES), library=library)
        assert np.isnan(made.run(None, {"x": x})[0]).all()

    @pytest.mark.parametrize("library", COMPUTED, ids=lambda x: "library" if x else "body")
    def test_sums_that_a_float32_must_round(self, library, random, tmp_path):
        codes = some_codes(random, 3071, 33, None)
        codes.codes[:] = np.where(random.random(codes.codes.shape) < 0.9, 127, 126)
        x = np.where(random.random((5, 3071)) < 0.9, 127, 126).astype(np.float32)
        x[:, 0] = 127
        sums = x.astype(np.int64) @ codes.codes.T.astype(np.int64)
        assert (sums.astype(np.float32) != sums).any()
        want = native_linear(codes, x, tmp_path)
        assert np.array_equal(want, rounded_linear(codes, x))
        made = session(linear_model(codes, bodies=RUNS_BODIES), library=library)
        assert np.array_equal(made.run(None, {"x": x})[0], want)

    @pytest.mark.parametrize("library", COMPUTED, ids=lambda x: "library" if x else "body")
    @pytest.mark.parametrize("inside", [True, False])
    def test_in_a_loop(self, library, inside, random):
        codes = some_codes(random, 96, 96, None)
        x = random.standard_normal((7, 96), np.float32)
        content = looped_linear(codes, inside=inside, bodies=RUNS_BODIES)
        (got,) = session(content, library=library).run(None, {"x": x})
        assert np.array_equal(got, rounded_linear(codes, rounded_linear(codes, x)))

    def test_weights_that_change_from_call_to_call(self, random):
        first, second = (some_codes(random, 64, 40, None) for _ in range(2))
        x = random.standard_normal((3, 64), np.float32)
        inputs = [value("x", FLOAT, None), value("codes", INT8, None), value("scales", FLOAT, None)]
        made = session(model([node_of(first)], inputs, ["y"]))
        for codes in (first, second, replace(first, scales=second.scales), first):
            feeds = {"x": x, "codes": codes.codes.T.copy(), "scales": codes.scales[:, 0]}
            assert np.array_equal(made.run(None, feeds)[0], rounded_linear(codes, x))
        with pytest.raises(Exception, match="row 2 has a scale of nan"):
            feeds["scales"][2] = np.nan
            made.run(None, feeds)


def products_are_exact() -> bool:
    """Whether this CPU adds up bytes without saturating, as the runtime uses it."""
    high = constant("high", np.full((64, 64), 127, np.int8))
    product = onnx.helper.make_node("MatMulInteger", ["x", "high"], ["sums"])
    y = onnx.helper.make_node("Cast", ["sums"], ["y"], to=FLOAT)
    made = session(model([product, y], [value("x", UINT8, None)], ["y"], [high]), library=False)
    (got,) = made.run(None, {"x": np.full((64, 64), 255, np.uint8)})
    return bool((got == 64 * 255 * 127).all())


def on_a_cpu_that_saturates(content: bytes) -> bytes:
    """The model, whose body takes what this CPU adds up to for wrong."""
    made = onnx.load_from_string(content)
    (body,) = [function for function in made.functions if function.name == "LinearW8"]
    (right,) = [node for node in body.node if node.output[0] == "right_sum_wide"]
    right.attribute[0].i += 1
    return made.SerializeToString()


class TestTheBody:
    @needs_bodies
    @pytest.mark.parametrize("saturates", [False, True])
    def test_it_is_one_product_of_integers(self, saturates, random, tmp_path):
        """And nothing that rounds a whole tensor by one scale, nothing that is asked in a call."""
        path = tmp_path / "optimized.onnx"
        codes = some_codes(random, 64, 40, None)
        content = linear_model(codes, bodies=True)
        content = on_a_cpu_that_saturates(content) if saturates else content
        made = session(content, library=False, optimized=path)
        x = random.standard_normal((5, 64), np.float32)
        assert np.array_equal(made.run(None, {"x": x})[0], rounded_linear(codes, x))
        types = {array.data_type for array in onnx.load(path).graph.initializer if array.dims[1:]}
        assert types == {INT8 if products_are_exact() and not saturates else UINT8}
        found = operators_of(path)
        assert found.count("MatMulInteger") == 1
        assert not [op for op in found if "Dynamic" in op or op.startswith("MatMulIntegerTo")]
        assert len(found) == 19  # constants and the cast of one are gone

    @needs_bodies
    @pytest.mark.parametrize("saturates", [False, True])
    @pytest.mark.parametrize("inside", [True, False])
    def test_as_it_stands(self, inside, saturates, random):
        """Without any optimisation, where it asks in every call."""
        codes = some_codes(random, 96, 96, None)
        x = random.standard_normal((7, 96), np.float32)
        content = looped_linear(codes, inside=inside, bodies=True)
        content = on_a_cpu_that_saturates(content) if saturates else content
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        made = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        want = rounded_linear(codes, rounded_linear(codes, x))
        assert np.array_equal(made.run(None, {"x": x})[0], want)

    def test_the_reference_implementation_has_its_bits(self, random):
        codes = some_codes(random, 96, 40, None)
        x = random.standard_normal((5, 96), np.float32)
        x[3] = 0
        content = onnx.load_from_string(linear_model(codes, bodies=True))
        (got,) = ReferenceEvaluator(content).run(None, {"x": x})
        assert np.array_equal(got, rounded_linear(codes, x))


class TestRefusals:
    @pytest.mark.parametrize("codes, scales, message", [
        ((64,), (4,), r"LinearW8: codes: expected int8 \[any, any\], got int8 \[64\]"),
        ((8, 8, 4), (4,), r"codes: expected int8 \[any, any\]"),
        ((0, 4), (4,), "LinearW8: codes: expected 1 to 65536 rows"),
        ((64, 0), (0,), "and a column"),
        ((65537, 1), (1,), "expected 1 to 65536 rows"),
        ((64, 4), (5,), r"LinearW8: scales: expected float32 \[4\], got float32 \[5\]"),
        ((64, 4), (1, 4), r"scales: expected float32 \[4\], got float32 \[1, 4\]"),
        ((64, 4), (), r"scales: expected float32 \[4\], got float32 \[\]"),
        ((64, 4) + (1,) * 7, (4,), "at most 8 dimensions"),
    ])  # fmt: skip
    def test_weights_that_do_not_fit(self, codes, scales, message):
        given = [constant("codes", np.zeros(codes, np.int8))]
        given.append(constant("scales", np.ones(scales, np.float32)))
        node = linear_node(None, op="LinearW8")
        with pytest.raises(Exception, match=message):
            session(model([node], [value("x", FLOAT, None)], ["y"], given))

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -0.5])
    def test_scales_that_quantising_never_writes(self, bad, random):
        codes = some_codes(random, 64, 40, None)
        codes.scales[33] = bad
        with pytest.raises(Exception, match="row 33 has a scale of"):
            session(linear_model(codes))

    @pytest.mark.parametrize("column", [0, 31, 32, 39])
    def test_a_code_that_quantising_never_writes(self, column, random):
        codes = some_codes(random, 64, 40, None)
        codes.codes[column, 63] = -128
        with pytest.raises(Exception, match=r"expected codes in \[-127, 127\], got -128"):
            session(linear_model(codes))

    def test_rows_of_another_width(self, random):
        made = session(linear_model(some_codes(random, 64, 8, None)))
        for shape in [(3, 63), (64, 1), (), (2, 0)]:
            with pytest.raises(Exception, match=r"LinearW8: x: expected float32 \[\.\.\., 64\]"):
                made.run(None, {"x": np.zeros(shape, np.float32)})
        (fine,) = made.run(None, {"x": np.zeros((3, 64), np.float32)})  # a refusal breaks nothing
        assert not fine.any()

    @pytest.mark.parametrize("kind", ["x", "codes", "scales"])
    def test_other_element_types(self, kind, random):
        codes, scales = weights_of(some_codes(random, 64, 8, None))
        x = value("x", FLOAT if kind != "x" else 11, None)
        if kind == "codes":
            codes = constant("codes", np.zeros((64, 8), np.uint8))
        if kind == "scales":
            scales = constant("scales", np.ones(8, np.float16))
        with pytest.raises(Exception, match=r"Type|type"):
            session(model([linear_node(None, op="LinearW8")], [x], ["y"], [codes, scales]))
