"""LinearW4 for ONNX Runtime: the native backend's bits, its standard body, and refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from needs import needs

with needs("onnx", "onnxruntime"):
    from onnxruntime import OrtValue
    from ort_ops_helpers import (
        EPS,
        FLOAT,
        INT4,
        constant,
        int4,
        linear_model,
        linear_node,
        looped_linear,
        model,
        native_linear,
        needs_bodies,
        rounded_linear,
        session,
        some_codes,
        value,
        weights_of,
    )

LINEARS = [(128, 64, 32), (720, 72, 64), (720, 97, 128), (31, 33, 32), (960, 320, 32), (1, 1, 128)]


@pytest.fixture
def random():
    return np.random.default_rng(11)


class TestLinearW4:
    @pytest.mark.parametrize("depth, out, group", LINEARS)
    @pytest.mark.parametrize("threads", [1, 2])
    def test_it_is_the_native_backends_linear(self, depth, out, group, threads, random, tmp_path):
        codes = some_codes(random, depth, out, group)
        made = session(linear_model(codes), threads=threads)
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
        (none,) = made.run(None, {"x": np.empty((0, depth), np.float32)})
        assert none.shape == (0, out)

    def test_rows_that_are_not_finite(self, random):
        codes = some_codes(random, 96, 40, 32)
        x = random.standard_normal((4, 96), np.float32)
        x[1, 5], x[3, 95] = np.nan, np.inf
        (got,) = session(linear_model(codes)).run(None, {"x": x})
        assert np.isnan(got).all(axis=1).tolist() == [False, True, False, True]
        assert np.array_equal(got, rounded_linear(codes, x), equal_nan=True)

    def test_scales_that_change_from_call_to_call(self, random):
        first, second = (some_codes(random, 64, 40, 32) for _ in range(2))
        inputs = [value("x", FLOAT, None), value("scales", FLOAT, None)]
        made = session(model([linear_node(32)], inputs, ["y"], weights_of(first)[:1]))
        x = random.standard_normal((3, 64), np.float32)
        for scales in (first.scales, second.scales, first.scales):
            (got,) = made.run(None, {"x": x, "scales": scales.T.copy()})
            assert np.array_equal(got, rounded_linear(replace(first, scales=scales), x))
        with pytest.raises(Exception, match="row 2 has a scale of nan"):
            scales[2, 0] = np.nan
            made.run(None, {"x": x, "scales": scales.T.copy()})

    def test_codes_that_change_from_call_to_call(self, random):
        first, second = (some_codes(random, 64, 40, 32) for _ in range(2))
        inputs = [value("x", FLOAT, None), value("codes", INT4, [64, 40])]
        made = session(model([linear_node(32)], inputs, ["y"], weights_of(first)[1:]))
        x = random.standard_normal((3, 64), np.float32)
        for codes in (first.codes, second.codes, first.codes):
            # numpy has no four bits: the packed ones, in an array of as many bytes as codes.
            packed = np.zeros((64, 40), np.uint8)
            packed.reshape(-1)[: 64 * 20] = np.frombuffer(int4("", codes.T).raw_data, np.uint8)
            feeds = {
                "x": OrtValue.ortvalue_from_numpy(x),
                "codes": OrtValue.ortvalue_from_numpy_with_onnx_type(packed, INT4),
            }
            got = made.run_with_ort_values(None, feeds)[0].numpy()
            assert np.array_equal(got, rounded_linear(replace(first, codes=codes), x))

    @pytest.mark.parametrize("inside", [True, False])
    def test_in_a_loop(self, inside, random):
        codes = some_codes(random, 96, 96, 64)
        x = random.standard_normal((7, 96), np.float32)
        (got,) = session(looped_linear(codes, inside=inside, bodies=False)).run(None, {"x": x})
        assert np.array_equal(got, rounded_linear(codes, rounded_linear(codes, x)))

    @needs_bodies
    @pytest.mark.parametrize("depth, out, group", LINEARS[:-1])
    def test_the_body_is_the_same_but_for_rounded_rows(self, depth, out, group, random):
        codes = some_codes(random, depth, out, group)
        content = linear_model(codes, bodies=True)
        x = random.standard_normal((50, depth), np.float32)
        ours, body = (session(content, library=use).run(None, {"x": x})[0] for use in (True, False))
        assert np.array_equal(ours, rounded_linear(codes, x))
        weight = np.abs(codes.weight().astype(np.float64))
        # Rounding moves an element by half of its row's step at most, max |x| / 254; float32 sums
        # of depth products and of the groups are the rest.
        moved = np.abs(x).max(axis=1, keepdims=True) / 254 * weight.sum(axis=1)
        summed = (depth + codes.scales.shape[1] + 8) * EPS * (np.abs(x) @ weight.T)
        assert (np.abs(ours - body) <= moved * (1 + 2.0**-20) + summed).all()
        exact = x.astype(np.float64) @ codes.weight().astype(np.float64).T
        assert (np.abs(body - exact) <= summed).all()

    @pytest.mark.parametrize("group", [0, -64, 16, 48, 256, 2**40, None])
    def test_other_groups_are_refused(self, group, random):
        x = value("x", FLOAT, None)
        content = model([linear_node(group)], [x], ["y"], weights_of(some_codes(random, 64, 4, 64)))
        with pytest.raises(Exception, match="group"):
            session(content)

    @pytest.mark.parametrize("codes, scales, message", [
        ((64,), (2, 4), r"codes: expected int4 \[any, any\], got int4 \[64\]"),
        ((8, 8, 4), (2, 4), r"codes: expected int4 \[any, any\]"),
        ((0, 4), (0, 4), "expected 1 to 65536 rows"),
        ((64, 0), (2, 0), "and a column"),
        ((65537, 1), (2049, 1), "expected 1 to 65536 rows"),
        ((64, 4), (1, 4), r"scales: expected float32 \[2, 4\], got float32 \[1, 4\]"),
        ((64, 4), (2, 5), r"scales: expected float32 \[2, 4\], got float32 \[2, 5\]"),
        ((64, 4), (8,), r"scales: expected float32 \[2, 4\], got float32 \[8\]"),
        ((65, 4), (2, 4), r"scales: expected float32 \[3, 4\]"),
        ((64, 4) + (1,) * 7, (2, 4), "at most 8 dimensions"),
    ])  # fmt: skip
    def test_weights_that_do_not_fit_are_refused(self, codes, scales, message):
        given = [int4("codes", np.zeros(codes, np.int8)), constant("scales", np.ones(scales, "f4"))]
        with pytest.raises(Exception, match=message):
            session(model([linear_node(32)], [value("x", FLOAT, None)], ["y"], given))

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -0.5])
    def test_scales_that_quantising_never_writes_are_refused(self, bad, random):
        codes = some_codes(random, 64, 40, 32)
        codes.scales[33, 1] = bad
        with pytest.raises(Exception, match="row 33 has a scale of"):
            session(linear_model(codes))

    def test_rows_of_another_width_are_refused(self, random):
        made = session(linear_model(some_codes(random, 64, 8, 32)))
        for shape in [(3, 63), (64, 1), (), (2, 0)]:
            with pytest.raises(Exception, match=r"x: expected float32 \[\.\.\., 64\]"):
                made.run(None, {"x": np.zeros(shape, np.float32)})
        (fine,) = made.run(None, {"x": np.zeros((3, 64), np.float32)})  # a refusal breaks nothing
        assert not fine.any()

    @pytest.mark.parametrize("kind", ["x", "codes", "scales"])
    def test_other_element_types_are_refused(self, kind, random):
        codes, scales = weights_of(some_codes(random, 64, 8, 32))
        x = value("x", FLOAT if kind != "x" else 11, None)
        if kind == "codes":
            codes = constant("codes", np.zeros((64, 8), np.int8))
        if kind == "scales":
            scales = constant("scales", np.ones((2, 8), np.float16))
        with pytest.raises(Exception, match=r"Type|type"):
            session(model([linear_node(32)], [x], ["y"], [codes, scales]))
