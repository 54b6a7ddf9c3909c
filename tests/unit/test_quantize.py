"""Quantised bundles: what is stored, that it computes as it says, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from cli_helpers import refused
from expected_isas import of_this_machine
from policy_helpers import IMAGES, STATE, TASK, tiny_checkpoint
from quantize_helpers import RECIPE_NAMES, actions, damaged, rounded_bundles

from smolvla_edge.backends import open_backend
from smolvla_edge.bundle import read_bundle
from smolvla_edge.codes import INPUT_SCALE, SCALE, CodeFormat, read_codes
from smolvla_edge.compress.quantize import quantize
from smolvla_edge.compress.recipe import RECIPES, Recipe, Rule
from smolvla_edge.errors import (
    BackendError,
    BundleError,
    CheckpointError,
    QuantizationError,
)
from smolvla_edge.plan import Plan
from smolvla_edge.policy import Policy, load
from smolvla_edge.safetensors_file import as_float32, read_tensor
from smolvla_edge.source import open_source


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("quantize") / "checkpoint")


@pytest.fixture(scope="module")
def bundles(checkpoint):
    return rounded_bundles(checkpoint)


class TestBundle:
    @pytest.mark.parametrize("name", RECIPE_NAMES)
    def test_what_is_stored(self, bundles, checkpoint, name):
        bundle, source = read_bundle(bundles[name]), open_source(checkpoint)
        assert bundle.compute == "bfloat16"
        assert bundle.provenance["quantized"] == {"recipe": name, "solver": "nearest"}
        formats = RECIPES[name].formats(bundle.model)
        assert bundle.codes == formats and formats
        layers = bundle.model.cross_expert_layers()
        for layer in layers:
            assert f"expert.layers.{layer}.attn.k.weight" not in formats
            assert f"expert.layers.{layer}.attn.q.weight" in formats
        for tensor, entry in source.tensors.items():
            if tensor in formats:
                codes = read_codes(bundle.tensors, tensor, entry.shape)
                assert codes.format.bits == formats[tensor].bits
                assert tensor + SCALE in bundle.tensors
            else:
                assert bundle.tensors[tensor].shape == entry.shape
        counts = bundle.precision
        assert "w8a8" in counts["text"] and any("w" in kind for kind in counts["vision"])
        bundle.verify_tensors()
        bundle.verify_files()

    @pytest.mark.parametrize("name", RECIPE_NAMES)
    def test_every_kernel_set_gives_the_same_bytes(self, bundles, monkeypatch, name):
        want = actions(bundles[name])
        for isa in of_this_machine():
            monkeypatch.setenv("SMOLVLA_FORCE_ISA", isa)
            assert np.array_equal(actions(bundles[name]), want), isa
        monkeypatch.delenv("SMOLVLA_FORCE_ISA")
        two = load(bundles[name], threads=2).predict(IMAGES, STATE, TASK, seed=7).actions
        assert np.array_equal(two, want)

    @pytest.mark.parametrize("name", RECIPE_NAMES)
    def test_the_reference_model_computes_the_same(self, bundles, name):
        """Both round rows to int8; in float32 arithmetic nothing else is rounded."""
        pytest.importorskip("torch")
        source = open_source(bundles[name])
        found = {}
        for backend in ("native", "torch"):
            engine = open_backend(
                source.model, source.tensors, source.contract, backend=backend, device="cpu",
                compute="float32",
            )  # fmt: skip
            policy = Policy(source, engine, Plan.exact(source.model.num_steps))
            found[backend] = policy.predict(IMAGES, STATE, TASK, seed=7).normalized
        # A float that lies on the edge between two codes may fall to either side.
        difference = np.abs(found["native"] - found["torch"])
        assert np.sqrt((difference**2).mean()) < 2e-3 * np.ptp(found["torch"])

    def test_the_error_is_that_of_the_bits(self, bundles, checkpoint):
        exact = actions(checkpoint)
        errors = {name: np.abs(actions(bundles[name]) - exact).max() for name in RECIPE_NAMES}
        assert 0 < errors["int8"] < 0.05 * np.ptp(exact)
        assert errors["int8"] < errors["balanced"]

    @pytest.mark.parametrize("name", ["balanced", "small"])  # small: its embedding table too
    def test_a_packed_cache_of_codes(self, bundles, tmp_path, name):
        want = actions(bundles[name])
        cache = tmp_path / "cache"
        for status in ("written", "hit"):
            got = load(bundles[name], threads=1, packed_cache=cache)
            assert got.provenance["packed_cache"] == status
            assert np.array_equal(got.predict(IMAGES, STATE, TASK, seed=7).actions, want)

    def test_an_embedding_table_of_codes(self, checkpoint, tmp_path):
        """Its rows are looked up: with that alone as codes only the words' embeddings change."""
        recipe = Recipe("table", (Rule("text.embed.weight", CodeFormat(8)),))
        source = open_source(checkpoint)
        bundle = quantize(source, tmp_path / "b", recipe)
        entry = source.tensors["text.embed.weight"]
        exact = as_float32(read_tensor(entry), entry.dtype)
        codes = read_codes(bundle.tensors, "text.embed.weight", entry.shape)
        assert np.abs(codes.weight() - exact).max() <= 0.5001 * codes.scales.max()

        def embedded(source, backend):
            engine = open_backend(
                source.model, source.tensors, source.contract, backend=backend, device="cpu"
            )
            model = source.model
            side = model.image_size
            tokens = np.arange(5)
            trace = engine.trace(
                np.zeros((2, 3, side, side), np.float32), np.ones(2, bool), tokens,
                np.ones(5, bool), np.zeros(model.max_state_dim, np.float32),
                np.zeros((model.chunk_size, model.max_action_dim), np.float32),
            )  # fmt: skip
            return trace["out.prefix_embs"][0, -6:-1]

        root = np.sqrt(np.float32(entry.shape[1]))
        found = embedded(open_source(bundle.path), "native")
        assert np.array_equal(found, codes.weight()[:5] * root)
        if importlib.util.find_spec("torch"):
            assert np.array_equal(embedded(open_source(bundle.path), "torch")[:5], found)


class TestRefusals:
    def test_a_second_quantisation(self, bundles, tmp_path):
        with pytest.raises(QuantizationError, match="holds codes already"):
            quantize(open_source(bundles["int8"]), tmp_path / "b", RECIPES["balanced"])

    def test_one_half_of_a_stack(self, checkpoint, tmp_path):
        recipe = Recipe("odd", (Rule("*.attn.q.weight", CodeFormat(8)),))
        with pytest.raises(QuantizationError, match="computed together"):
            quantize(open_source(checkpoint), tmp_path / "b", recipe)
        table = Recipe("table", (Rule("text.embed.weight", CodeFormat(4, 32)),))
        with pytest.raises(QuantizationError, match="is a table: expected 8 bits"):
            quantize(open_source(checkpoint), tmp_path / "b", table)
        with pytest.raises(QuantizationError, match="matches no weight"):
            quantize(open_source(checkpoint), tmp_path / "b", Recipe("none", ()))

    def test_a_description_that_does_not_fit(self, bundles, tmp_path):
        name = "expert.layers.0.mlp.down.weight"

        def form(bits, size=None):
            return {"bits": bits, "group_size": size, "input_scale": False}

        def other_group(data):
            data["codes"][name]["group_size"] = 48

        def no_codes(data):
            del data["codes"][name]

        def table_of_4_bits(data):
            data["codes"]["text.embed.weight"] = form(4, 32)

        def unknown(data):
            data["codes"]["vision.nothing"] = form(8)

        def embedding(data):
            data["codes"]["text.embed.weight"] = form(8)

        def no_scales(data):
            del data["tensors"][name + SCALE]

        def half_a_stack(data):
            data["codes"]["text.layers.0.attn.q.weight"] = form(4, 32)

        def real_bits(data):
            data["codes"][name]["bits"] = 4.0

        def list_of_bits(data):
            data["codes"][name]["bits"] = [4]

        for change, words in (
            (other_group, "groups of 32, 64 or 128"),
            (real_bits, "groups of 32, 64 or 128"),
            (list_of_bits, "groups of 32, 64 or 128"),
            (no_codes, "tensors: missing nothing|tensors: missing"),
            (unknown, "codes of unknown tensors"),
            (table_of_4_bits, "cannot be stored as w4a8 g32"),
            (embedding, r"missing \['text.embed.weight.scale'\]"),
            (no_scales, r"missing \['expert.layers.0.mlp.down.weight.scale'\]"),
            (half_a_stack, "the weights it is computed with"),
        ):
            with pytest.raises(BundleError, match=words):
                read_bundle(damaged(bundles["balanced"], tmp_path / change.__name__, change))

    def test_a_flipped_bit_and_a_cut_file(self, bundles, tmp_path):
        copy = tmp_path / "flipped"
        shutil.copytree(bundles["balanced"], copy)
        entry = read_bundle(copy).tensors["expert.layers.0.mlp.down.weight"]
        data = bytearray(entry.path.read_bytes())
        data[entry.offset + 3] ^= 16
        (copy / "model.safetensors").write_bytes(data)
        with pytest.raises(BundleError, match="do not match their checksums"):
            load(copy)
        (copy / "model.safetensors").write_bytes(data[:-100])
        with pytest.raises(BundleError, match="cut short"):
            load(copy)

    def test_the_engine_refuses_what_quantising_never_writes(self, bundles, tmp_path):
        """The core checks again: it is given tensors by others than the bundle's reader too."""
        source = open_source(bundles["balanced"])

        def open_with(change):
            tensors = dict(source.tensors)
            change(tensors)
            open_backend(source.model, tensors, source.contract, backend="native", device="cpu")

        down = "expert.layers.0.mlp.down.weight"
        query = "text.layers.0.attn.q.weight"

        def missing_scale(tensors):
            del tensors[down + SCALE]

        def foreign_scale(tensors):
            tensors[down + SCALE] = tensors[query + SCALE]

        def other_groups(tensors):
            scale = tensors[down + SCALE]
            rows, groups = scale.shape
            tensors[scale.name] = replace(scale, shape=(rows // 2, 2 * groups))

        def mixed_stack(tensors):
            origin = source.bundle.provenance["source"]
            tensors[query] = open_source(origin).tensors[query]

        def scales_of_floats(tensors):
            scale = tensors[query + SCALE]
            tensors[scale.name] = replace(scale, dtype="BF16", nbytes=scale.nbytes // 2)

        for change, words in (
            (missing_scale, "is missing"),
            (foreign_scale, "scales of F16"),
            (other_groups, "groups of 32"),
            (mixed_stack, "one format"),
            (scales_of_floats, "scales of F32"),
        ):
            with pytest.raises((CheckpointError, BackendError), match=words):
                open_with(change)
        raw = bytearray(source.tensors[query].path.read_bytes())
        raw[source.tensors[query].offset] = 0x80  # -128
        file = tmp_path / "w.safetensors"
        file.write_bytes(raw)

        def least_code(tensors):
            tensors[query] = type(tensors[query])(
                query, "I8", tensors[query].shape, file, tensors[query].offset,
                tensors[query].nbytes,
            )  # fmt: skip

        with pytest.raises(CheckpointError, match="-128"):
            open_with(least_code)
        scale = source.tensors[query + SCALE]
        raw = bytearray(scale.path.read_bytes())
        raw[scale.offset : scale.offset + 4] = np.float32(np.nan).tobytes()
        file.write_bytes(raw)

        def nan_scale(tensors):
            tensors[scale.name] = type(scale)(
                scale.name, "F32", scale.shape, file, scale.offset, scale.nbytes
            )

        with pytest.raises(CheckpointError, match="scale of"):
            open_with(nan_scale)


class TestCommand:
    def test_from_checkpoint_to_bundle(self, cli, checkpoint, tmp_path):
        result = cli("quantize", checkpoint, tmp_path / "b", "--recipe", "int8", "--json")
        assert result.code == 0, result.err
        found = json.loads(result.out)
        assert found["recipe"] == "int8" and found["bytes"] < 0.7 * found["source_bytes"]
        assert read_bundle(tmp_path / "b").digest == found["digest"]
        shown = cli("quantize", checkpoint, tmp_path / "c")
        assert shown.code == 0
        for word in ("w8a8", "w4a8 g64", "nothing: rounded to nearest", "--against exact"):
            assert word in " ".join(shown.out.split())  # lines are as wide as paths let them
        refused(cli("quantize", checkpoint, tmp_path / "c"), "exists", "--force")
        refused(cli("quantize", tmp_path / "b", tmp_path / "d"), "holds codes already")
        refused(cli("quantize", checkpoint, tmp_path / "d", "--recipe", "huge"), "balanced, small")
        refused(cli("quantize", checkpoint, tmp_path / "d", "--data", tmp_path), "LeRobotDataset")
        inspected = cli("inspect", tmp_path / "c")
        assert inspected.code == 0 and "w4a8 g64" in inspected.out

    def test_without_a_tokenizer_it_is_refused(self, cli, checkpoint, tmp_path):
        shutil.copytree(checkpoint, tmp_path / "c")
        for file in (tmp_path / "c").rglob("tokenizer.json"):
            file.unlink()
        found = cli("quantize", tmp_path / "c", tmp_path / "b", "--recipe", "int8")
        refused(found, "no tokenizer.json was found")
        assert not (tmp_path / "b").exists()

    @pytest.mark.parametrize("text", [b"\xff", b"rules = 3", b"name = ''", b"[[[["])
    def test_a_recipe_that_is_none(self, cli, checkpoint, tmp_path, text):
        pytest.importorskip("tomllib")
        (tmp_path / "r.toml").write_bytes(text)
        found = cli("quantize", checkpoint, tmp_path / "b", "--recipe", tmp_path / "r.toml")
        refused(found, "r.toml")

    def test_synthetic_data_is_called_so(self, cli, checkpoint, tmp_path):
        pytest.importorskip("torch")
        words = ("--data", "synthetic", "--observations", "2")
        result = cli("quantize", checkpoint, tmp_path / "b", *words)
        assert result.code == 0, result.err
        assert "synthetic noise" in result.err and "2 observations, synthetic" in result.out
        assert any(name.endswith(INPUT_SCALE) for name in read_bundle(tmp_path / "b").tensors)
        inspected = cli("inspect", tmp_path / "b")
        assert inspected.code == 0, inspected.err
