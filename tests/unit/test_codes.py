"""Weights as integer codes: the formats, their rounding, GPTQ."""

from __future__ import annotations

import numpy as np
import pytest

from smolvla_edge import _core
from smolvla_edge.codes import (
    GROUP_SIZES,
    CodeFormat,
    Codes,
    may_be_codes,
    pack4,
    round_rows,
    round_to_nearest,
    stacked_with,
    unpack4,
)
from smolvla_edge.compress.gptq import gptq
from smolvla_edge.compress.recipe import RECIPES, find_recipe, parse_recipe
from smolvla_edge.compress.scales import least_squares
from smolvla_edge.errors import QuantizationError

ISAS = list(dict.fromkeys(row["isa"] for row in _core.kernel_table() if row["supported"]))
FORMATS = [CodeFormat(8), *(CodeFormat(4, size) for size in GROUP_SIZES)]


@pytest.fixture
def random():
    return np.random.default_rng(3)


class TestFormats:
    @pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.name)
    @pytest.mark.parametrize("shape", [(3, 1), (5, 31), (4, 64), (7, 96), (2, 129), (3, 720)])
    def test_what_is_stored_is_what_is_read(self, form, shape, random):
        weight = random.standard_normal(shape).astype(np.float32)
        codes = round_to_nearest(weight, form)
        stored, scales = codes.stored()
        for array, layout in zip((stored, scales), form.layouts("w", shape), strict=True):
            assert array.shape == layout.shape and array.nbytes == layout.nbytes
        again = Codes.read(form, shape[1], stored, scales)
        assert np.array_equal(again.codes, codes.codes)
        assert np.array_equal(again.scales, codes.scales)
        step = np.repeat(codes.scales, form.group_size or shape[1], axis=1)[:, : shape[1]]
        # Half a step, and what the largest loses when its scale was rounded down to float16.
        assert (np.abs(codes.weight() - weight) <= step * (0.5 + 7 * 2.0**-11) + 1e-7).all()

    def test_four_bits_lie_first_in_the_low_half(self):
        codes = np.array([[-8, 7, 0], [1, -1, 3]], np.int8)
        assert pack4(codes).tolist() == [[0xF0, 0x08], [0x79, 0x0B]]
        assert np.array_equal(unpack4(pack4(codes), 3), codes)

    def test_zeros_and_powers_of_two_are_exact(self):
        weight = np.array([[0, 0, 0, 0], [1, -0.5, 0.25, 0]], np.float32)
        assert np.array_equal(round_to_nearest(weight[:1], CodeFormat(8)).weight(), weight[:1])
        scaled = weight * np.float32(127)
        got = round_to_nearest(scaled, CodeFormat(8))
        assert got.codes.tolist()[1] == [127, -64, 32, 0]  # -63.5 goes to the even neighbour

    @pytest.mark.parametrize("bits,size", [(8, 64), (4, None), (4, 48), (3, 32), (16, None)])
    def test_other_formats_do_not_exist(self, bits, size):
        with pytest.raises(QuantizationError, match="expected 8 bits, or 4 bits in groups"):
            CodeFormat(bits, size)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_weights_that_are_no_numbers_are_refused(self, bad):
        weight = np.ones((2, 4), np.float32)
        weight[1, 2] = bad
        for form in FORMATS:
            with pytest.raises(QuantizationError, match="NaN or infinity"):
                round_to_nearest(weight, form)
        with pytest.raises(QuantizationError, match="NaN or infinity"):
            gptq(weight, FORMATS[0], np.eye(4))

    def test_a_scale_beyond_float16_is_refused(self):
        with pytest.raises(QuantizationError, match="float16"):
            round_to_nearest(np.full((1, 32), 1e6, np.float32), CodeFormat(4, 32))

    def test_what_quantising_never_writes_is_refused(self):
        with pytest.raises(QuantizationError, match="-128"):
            Codes.read(CodeFormat(8), 2, np.array([[-128, 1]], np.int8), np.ones(1, np.float32))
        with pytest.raises(QuantizationError, match="finite scales"):
            Codes.read(CodeFormat(8), 1, np.ones((1, 1), np.int8), np.array([np.nan], np.float32))

    def test_which_weights_may_be_codes(self):
        for name in ("vision.layers.0.mlp.up.weight", "expert.layers.15.attn.o.weight"):
            assert may_be_codes(name, (8, 8))
        for name in ("vision.patch.weight", "action_in.weight", "text.layers.0.norm1.weight"):
            assert not may_be_codes(name, (8, 8))
        assert may_be_codes("text.embed.weight", (8, 8), CodeFormat(8))
        assert not may_be_codes("text.embed.weight", (8, 8), CodeFormat(4, 32))
        scaled = CodeFormat(8, input_scale=True)
        assert may_be_codes("vision.layers.0.mlp.down.weight", (8, 8), scaled)
        assert not may_be_codes("text.layers.0.mlp.down.weight", (8, 8), scaled)

    def test_what_is_computed_together(self):
        assert stacked_with("text.layers.1.attn.q.weight", (1,)) == "text.layers.1.attn.qkv"
        assert stacked_with("expert.layers.1.attn.q.weight", (1,)) == "expert.layers.1.attn.q"
        assert stacked_with("expert.layers.1.attn.k.weight", (1,)) == "expert.layers.1.attn.kv"
        assert stacked_with("expert.layers.0.mlp.up.weight", ()) == "expert.layers.0.mlp.gate_up"
        assert stacked_with("vision.layers.0.mlp.up.weight", ()) == "vision.layers.0.mlp.up"


def awkward_rows(random) -> np.ndarray:
    """float32 [1010, 300]: where one rounding more in 127 / max |x| changes a code (about one
    element in ten thousand), ties, tiny rows, rows that are not finite."""
    x = random.standard_normal((1000, 300)) * np.exp2(random.integers(-60, 60, (1000, 1)))
    halves = (np.arange(300) % 254 - 127) + 0.5
    halves[0] = 127
    odd = np.stack(
        [halves, -halves, halves / 3, 0 * halves, halves * 2.0**-108, halves * 2.0**-106]
        + [np.where(np.arange(300) == 7, bad, halves) for bad in (np.nan, np.inf, -np.inf, 1e38)]
    )
    return np.concatenate([x, odd]).astype(np.float32)


def product(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return codes.astype(np.float32) * scales[:, None]


class TestRows:
    def test_a_row_keeps_its_largest_value(self, random):
        x = random.standard_normal((20, 300)).astype(np.float32) * 5
        codes, scales = round_rows(x)
        assert np.abs(codes).max(axis=1).tolist() == [127] * 20
        assert (np.abs(codes * scales[:, None] - x) <= scales[:, None] * 0.5001).all()

    def test_a_row_of_nothing_is_nothing(self):
        codes, scales = round_rows(np.array([[0, 0], [1e-38, 0]], np.float32))
        assert not codes.any() and not scales.any()

    def test_a_row_that_is_not_finite(self):
        x = np.array([[1, np.nan], [np.inf, 2], [1, -2]], np.float32)
        codes, scales = round_rows(x)
        assert codes.tolist() == [[0, 0], [0, 0], [64, -127]]
        assert np.isnan(scales).tolist() == [True, True, False]

    # One definition, which everything that rounds is held to in every bit. Elsewhere: the CUDA
    # kernel in tests/cuda/test_cuda_round_rows.cpp, Triton's in test_interpreted_linears.py.
    def test_the_reference_model_rounds_alike(self, random):
        torch = pytest.importorskip("torch")
        from smolvla_edge.model.layers import round_rows as reference

        x = awkward_rows(random)
        want = product(*round_rows(x))
        assert np.array_equal(reference(torch.from_numpy(x)).numpy(), want, equal_nan=True)

    @pytest.mark.parametrize("isa", ISAS)
    def test_the_kernels_round_alike(self, isa, random, tmp_path):
        """Through a weight of codes that is the identity, under scales of 1."""
        x = awkward_rows(random)
        columns = x.shape[1]
        file = tmp_path / "identity"
        identity = np.eye(columns, dtype=np.int8).tobytes()
        file.write_bytes(identity + np.ones(columns, np.float32).tobytes())
        ops = _core.CpuOps(1, isa, "float32")
        weight = ops.load_codes(str(file), "I8", columns, columns, 1)
        got = np.empty_like(x)
        ops.linear(ops.make_activation(x), weight, got)
        assert np.array_equal(got, product(*round_rows(x)), equal_nan=True)


class TestGptq:
    @staticmethod
    def inputs(random, columns, rows=1000):
        """Correlated inputs, as layers have them; the correlation is always the same."""
        mix = np.random.default_rng(1).standard_normal((columns, columns)) / np.sqrt(columns)
        return random.standard_normal((rows, columns)) @ (mix + 0.5 * np.eye(columns))

    @pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.name)
    @pytest.mark.parametrize("columns", [16, 100, 200])
    def test_outputs_come_nearer_than_by_rounding(self, form, columns, random):
        weight = random.standard_normal((24, columns)).astype(np.float32)
        x = self.inputs(random, columns)
        found = gptq(weight, form, x.T @ x)
        least = -8 if form.bits == 4 else -127
        assert found.codes.min() >= least and found.codes.max() <= -least - (form.bits == 4)

        def lost(codes, x):
            return float((((codes.weight() - weight) @ x.T) ** 2).mean())

        rounded = round_to_nearest(weight, form)
        assert lost(found, x) < 0.8 * lost(rounded, x)
        other = self.inputs(random, columns)  # not the data it was fitted to
        assert lost(found, other) < 0.9 * lost(rounded, other)

    def test_without_correlation_it_is_rounding_under_its_scales(self, random):
        from smolvla_edge.codes import nearest_codes

        weight = random.standard_normal((8, 96)).astype(np.float32)
        form = CodeFormat(4, 32)
        found = gptq(weight, form, np.eye(96))
        assert np.array_equal(found.codes, nearest_codes(weight, found.scales, form).codes)

    def test_an_input_that_is_never_there_costs_nothing(self, random):
        weight = random.standard_normal((4, 32)).astype(np.float32)
        x = random.standard_normal((100, 32))
        x[:, 5] = 0
        found = gptq(weight, CodeFormat(4, 32), x.T @ x)
        assert not found.codes[:, 5].any()

    def test_a_hessian_that_does_not_fit_is_refused(self, random):
        weight = np.ones((2, 4), np.float32)
        with pytest.raises(QuantizationError, match="Hessian of 4 inputs"):
            gptq(weight, CodeFormat(8), np.eye(3))
        with pytest.raises(QuantizationError, match="not all zero"):
            gptq(weight, CodeFormat(8), np.zeros((4, 4)))


class TestRecipes:
    def test_a_recipe_from_a_file(self, tmp_path):
        file = tmp_path / "mine.toml"
        file.write_text('[[rules]]\nmatch = "expert.*"\nbits = 4\ngroup_size = 32\n')
        recipe = find_recipe(str(file))
        assert recipe.name == "mine" and recipe.rules[0].format == CodeFormat(4, 32)

    @pytest.mark.parametrize("raw", [
        {}, {"rules": []}, {"rules": [{"match": "*"}]}, {"rules": [{"match": 3, "bits": 8}]},
        {"rules": [{"match": "*", "bits": 5}]}, {"rules": [{"match": "*", "bits": 8}], "x": 1},
    ])  # fmt: skip
    def test_a_recipe_that_makes_no_sense_is_refused(self, raw):
        with pytest.raises(QuantizationError):
            parse_recipe(raw, "here")

    def test_an_unknown_recipe_is_refused(self, tmp_path):
        with pytest.raises(QuantizationError, match="balanced, small"):
            find_recipe("tiny")
        assert find_recipe("balanced") is RECIPES["balanced"]


class TestSearchedScales:
    @pytest.mark.parametrize("size", [32, 64, 128])
    @pytest.mark.parametrize("columns", [720, 40])
    def test_no_group_is_worse_than_rounded(self, random, size, columns):
        weight = random.standard_normal((24, columns)).astype(np.float32)
        weight[3] = 0
        form = CodeFormat(4, size)
        error = []
        for codes in (round_to_nearest(weight, form), least_squares(weight, form)):
            squares = (codes.weight() - weight) ** 2
            short = -columns % size
            error.append(np.pad(squares, ((0, 0), (0, short))).reshape(24, -1, size).sum(axis=2))
        assert (error[1] <= error[0] * (1 + 1e-6)).all()
        assert error[1].sum() < 0.95 * error[0].sum() or size == 32

    def test_eight_bits_are_rounded(self, random):
        weight = random.standard_normal((5, 40)).astype(np.float32)
        found, want = least_squares(weight, CodeFormat(8)), round_to_nearest(weight, CodeFormat(8))
        assert np.array_equal(found.codes, want.codes)
        assert np.array_equal(found.scales, want.scales)

    def test_what_is_not_finite_is_refused(self, random):
        weight = random.standard_normal((5, 40)).astype(np.float32)
        weight[2, 3] = np.inf
        with pytest.raises(QuantizationError, match="finite"):
            least_squares(weight, CodeFormat(4, 32))
