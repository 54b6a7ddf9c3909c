"""What quantising costs: the numbers by hand, the search for bits, the commands."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from cli_helpers import refused
from policy_helpers import tiny_checkpoint

from smolvla_edge.bundle import read_bundle
from smolvla_edge.bundle_writer import write_bundle
from smolvla_edge.checkpoint import read_checkpoint
from smolvla_edge.codes import CodeFormat
from smolvla_edge.compress.auto import RUNGS, lengthen
from smolvla_edge.compress.evidence import ActionError, Subject, measure, signal_to_noise
from smolvla_edge.compress.observations import LIST_FILE, find_observations
from smolvla_edge.compress.quantize import quantize
from smolvla_edge.compress.recipe import RECIPES, parse_recipe
from smolvla_edge.compress.sensitivity import GroupError, groups_of, sensitivity
from smolvla_edge.compress.within import quantize_within
from smolvla_edge.errors import InputError, PlanError, QuantizationError
from smolvla_edge.noise import normal
from smolvla_edge.plan import Plan
from smolvla_edge.presets import PRESETS_FILE, Preset, read_presets, write_preset
from smolvla_edge.source import open_source


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_source(tiny_checkpoint(tmp_path_factory.mktemp("evidence") / "checkpoint"))


@pytest.fixture(scope="module")
def balanced(source, tmp_path_factory):
    return quantize(source, tmp_path_factory.mktemp("balanced") / "b", RECIPES["balanced"])


class TestNumbers:
    def test_the_error_of_actions(self):
        exact = np.zeros((2, 2, 3), np.float32)
        exact[0, 0] = [0, 10, 5]
        exact[1, 1] = [4, -10, 5]
        exact[:, :, 2] = 5  # an action that never changes
        got = exact.copy()
        got[0, 0] += [1, 0, 0]
        got[0, 1] += [0, -2, 1]
        error = ActionError.between(got, exact)
        assert error.range.tolist() == [4, 20, 0]
        assert error.mean.tolist() == [0.25, 0.5, 0.25]
        assert error.largest.tolist() == [1, 2, 1]
        assert error.p95[0] == pytest.approx(np.percentile([1, 0, 0, 0], 95))
        assert error.rms_of_range == pytest.approx(np.sqrt((0.25**2 + 0.1**2) / 8))
        assert json.dumps(error.to_json())

    def test_decibels(self):
        exact = {"out.vision.0": np.full(4, 10.0), "out.x_t.after_step0": np.ones(2)}
        got = {"out.vision.0": np.full(4, 11.0), "out.x_t.after_step0": np.ones(2)}
        found = signal_to_noise([got], [exact])
        assert found["stages"]["vision"] == pytest.approx(20)
        assert found["denoise_steps"] == [None]

    def test_the_traced_chunk_is_the_predicted_one(self, source):
        subject = Subject(source, threads=1)
        seen = find_observations(source, "synthetic", 2)
        chunks = subject.chunks(seen, 5)
        last = f"out.x_t.after_step{source.model.num_steps - 1}"
        for number, trace in enumerate(subject.traces(list(seen), 5)):
            noise = normal(5 + number, source.model.chunk_size, source.model.max_action_dim)
            observation = list(seen)[number]
            chunk = subject.policy.predict(
                observation.images, observation.state, observation.task, noise=noise
            )
            assert np.array_equal(chunk.actions, chunks[number])
            final = trace[last].reshape(noise.shape)[:, : source.contract.action_dim]
            assert np.allclose(final, chunk.normalized, atol=1e-6)
        assert {name.split(".")[1] for name in trace} == {"vision", "connector", "kv", "v_t", "x_t"}

    def test_a_policy_against_itself_and_its_codes(self, source, balanced):
        seen = find_observations(source, "synthetic", 3)
        same = measure(source, source, seen, traced=1, threads=1)
        assert same["action_error"]["rms_of_range"] == 0
        assert set(same["signal_to_noise_db"]["stages"].values()) == {None}
        found = measure(open_source(balanced.path), source, seen, traced=2, threads=1)
        assert 1e-3 < found["action_error"]["rms_of_range"] < 0.1
        noise = found["signal_to_noise_db"]
        # 8 bits in, 4 bits later: what enters the expert is cleaner than what leaves it.
        assert noise["stages"]["vision"] > noise["denoise_steps"][-1] > 10
        assert len(noise["denoise_steps"]) == source.model.num_steps
        assert found["reference_as_it_runs"] is None and found["closed_loop"] is None
        assert found["observations"]["kind"] == "synthetic"

    def test_the_last_observations_are_held_out(self, source):
        seen = find_observations(source, "synthetic", 5)
        first, last = seen.split(2)
        states = [o.state.tolist() for o in seen]
        assert [o.state.tolist() for o in first] == states[:3] and len(first) == 3
        assert [o.state.tolist() for o in last] == states[3:] and len(last) == 2
        for count in (0, 5, 6):
            with pytest.raises(QuantizationError, match="held out"):
                seen.split(count)


class TestSensitivity:
    def test_a_group_takes_what_is_computed_together(self, source):
        groups = groups_of(source.model, RECIPES["balanced"].formats(source.model))
        assert len(groups["text.layers.0.attn.qkv"]) == 3
        assert len(groups["expert.layers.0.mlp.gate_up"]) == 2
        cross = source.model.cross_expert_layers()[0]
        assert groups[f"expert.layers.{cross}.attn.q"] == (f"expert.layers.{cross}.attn.q.weight",)

    def test_fewer_bits_cost_more(self, source):
        names = [f"text.layers.0.mlp.{m}.weight" for m in ("gate", "up", "down")]
        seen = find_observations(source, "synthetic", 2)

        def costs(form):
            found = sensitivity(source, dict.fromkeys(names, form), seen, threads=1)
            return {cost.group.split(".")[-1]: cost for cost in found}

        eight, four = costs(CodeFormat(8)), costs(CodeFormat(4, 32))
        assert eight.keys() == {"gate_up", "down"}
        for group in eight:
            assert 0 < 3 * eight[group].rms_of_range < four[group].rms_of_range
            assert 0 < eight[group].saved_bytes < four[group].saved_bytes


def cost(group, form, error):
    return GroupError(group, (group + ".weight",), form, error, 1)


class TestLengthening:
    def test_the_costliest_goes_up_first_until_it_fits(self):
        costs = [cost("a", CodeFormat(4, 128), 0.5), cost("b", CodeFormat(8), 0.01)]
        by_format = dict(zip(RUNGS[:4], (0.5, 0.4, 0.3, 0.02), strict=True))
        attempts = list(lengthen(costs, 0.05, lambda formats: by_format[formats["a.weight"]]))
        assert [a.formats["a.weight"].name for a in attempts] == [
            "w4a8 g128", "w4a8 g64", "w4a8 g32", "w8a8",
        ]  # fmt: skip
        assert {a.formats["b.weight"] for a in attempts} == {CodeFormat(8)}
        assert attempts[-1].rms_of_range == 0.02

    def test_nothing_left_is_a_refusal(self):
        costs = [cost("a", CodeFormat(8), 0.5), cost("b", CodeFormat(8), 0.1)]
        tried = []

        def error_of(formats):
            tried.append(sorted(formats))
            return 0.2

        with pytest.raises(QuantizationError, match=r"within 1\.000% .* 20\.000%"):
            list(lengthen(costs, 0.01, error_of))
        assert tried == [["a.weight", "b.weight"], ["b.weight"]]

    def test_a_bundle_within_its_bound(self, source, tmp_path):
        pytest.importorskip("torch")
        calibration, held_out = find_observations(source, "synthetic", 4).split(2)
        told = []
        made = quantize_within(
            source, tmp_path / "b", RECIPES["balanced"], calibration, held_out, 0.006,
            threads=1, attempted=told.append,
        )  # fmt: skip
        notes = made.provenance["quantized"]
        assert notes["rms_of_range"] == [attempt.rms_of_range for attempt in told]
        assert len(told) > 1 and told[0].rms_of_range > 0.006 >= told[-1].rms_of_range
        bits = {name: (form.bits, form.group_size) for name, form in told[-1].formats.items()}
        assert {name: (form.bits, form.group_size) for name, form in made.codes.items()} == bits
        exact = Subject(source, compute="float32", threads=1).chunks(held_out, 2)
        again = Subject(open_source(made.path), threads=1).chunks(held_out, 2)
        assert ActionError.between(again, exact).rms_of_range == told[-1].rms_of_range
        assert [p.name for p in tmp_path.iterdir()] == ["b"]
        with pytest.raises(QuantizationError, match="allow more"):
            quantize_within(
                source, tmp_path / "c", RECIPES["int8"], calibration, held_out, 0.0, threads=1
            )
        # No bundle; what was calibrated stays for a second try with another bound.
        assert {p.name for p in tmp_path.iterdir()} == {"b", ".c.calibration.safetensors"}


class TestCommands:
    def test_verify_against(self, cli, source, balanced):
        words = ("--against", "exact", "--frames", "synthetic", "--observations", "3")
        found = cli("verify", balanced.path, *words, "--json")
        assert found.code == 0, found.err
        assert found.json["reference"]["name"] == source.provenance["source"]
        shown = cli("verify", balanced.path, *words)
        for word in ("p95", "signal to noise", "closed loop: unmeasured", "synthetic"):
            assert word in shown.out
        assert "synthetic noise" in shown.err
        refused(cli("verify", balanced.path, "--against", "exact"), "--frames")
        refused(cli("verify", balanced.path, *words, "--save"), "300 observations or more")
        plain = source.provenance["source"]
        refused(cli("verify", plain, *words), "a quantised bundle")
        refused(cli("verify", plain, "--frames", "synthetic"), "go with --against")

    def test_exact_is_what_the_bundle_was_made_from_and_nothing_else(self, cli, source, tmp_path):
        pytest.importorskip("torch")
        origin = write_bundle(read_checkpoint(source.provenance["source"]), tmp_path / "origin")
        made = quantize(open_source(origin.path), tmp_path / "made", RECIPES["int8"])
        words = ("--against", "exact", "--frames", "synthetic", "--observations", "1")
        assert cli("verify", made.path, *words).code == 0
        fitted = quantize(
            open_source(origin.path), tmp_path / "fitted", RECIPES["int8"],
            find_observations(source, "synthetic", 2),
        )  # fmt: skip
        for path, seen in ((made.path, False), (fitted.path, True)):
            found = cli("verify", path, *words, "--json").json["observations"]
            assert found["fitted_to_it"] == seen
        shutil.rmtree(origin.path)
        other = read_checkpoint(source.provenance["source"])
        write_bundle(other, tmp_path / "origin", dtype="bfloat16")
        refused(cli("verify", made.path, *words), "is not what the bundle was made from")
        shutil.rmtree(origin.path)
        refused(cli("verify", made.path, *words), "which is not there")

    def test_evidence_is_of_recorded_observations(self, cli, balanced):
        words = ("--against", "exact", "--frames", "synthetic", "--save")
        refused(cli("verify", balanced.path, *words), "not of synthetic ones")

    def test_the_reference_is_no_presets_name(self, balanced):
        preset = Preset("exact", Plan.exact(4), {})
        with pytest.raises(PlanError, match="cannot be a preset's name"):
            write_preset(balanced.path, balanced.digest, preset)
        with pytest.raises(QuantizationError, match="expected text other than 'exact'"):
            parse_recipe({"name": "exact", "rules": [{"match": "*", "bits": 8}]}, "x.toml")

    def test_policies_that_differ_in_more_than_numbers_are_refused(self, source):
        other = replace(source, model=replace(source.model, num_steps=2))
        with pytest.raises(InputError, match="the same denoise steps"):
            measure(other, source, find_observations(source, "synthetic", 1))

    def test_the_evidence_is_kept_with_the_bundle(self, cli, balanced, tmp_path):
        frame = b"P6\n64 64\n255\n" + bytes(range(256)) * 48
        (tmp_path / "frame.ppm").write_bytes(frame)
        cameras = dict.fromkeys(open_source(balanced.path).contract.cameras, "frame.ppm")
        item = {"images": cameras, "state": [0.0] * 6, "task": "pick it up"}
        (tmp_path / LIST_FILE).write_text(json.dumps({"observations": [item] * 300}))
        words = ("--against", "exact", "--frames", tmp_path, "--save", "--json")
        found = cli("verify", balanced.path, *words)
        assert found.code == 0, found.err
        preset = read_presets(balanced.path, balanced.digest)["balanced"]
        assert preset.evidence is not None and str(preset) == "balanced (measured)"
        assert preset.evidence["action_error"] == found.json["action_error"]
        assert preset.evidence["observations"]["count"] == 300
        assert read_bundle(balanced.path).digest == balanced.digest
        assert open_source(balanced.path).presets["balanced"].evidence == preset.evidence
        with pytest.raises(PlanError, match="measured on other weights"):
            read_presets(balanced.path, "0" * 64)
        (balanced.path / PRESETS_FILE).unlink()

    def test_sensitivity(self, cli, source, tmp_path):
        pytest.importorskip("matplotlib")
        path = source.provenance["source"]
        plot = tmp_path / "layers.svg"
        words = ("--data", "synthetic", "--observations", "1", "--recipe", "int8")
        found = cli("sensitivity", path, *words, "--plot", plot)
        assert found.code == 0, found.err
        assert "costliest first" in found.out and "w8a8" in found.out
        assert "<svg" in plot.read_text()
        shown = cli("sensitivity", path, *words, "--json").json
        assert len(shown["groups"]) > 20 and shown["observations"]["count"] == 1
        refused(cli("sensitivity", path, *words, "--plot", tmp_path / "a.txt"), ".svg")

    def test_quantize_to_a_bound(self, cli, source, tmp_path):
        pytest.importorskip("torch")
        words = ("quantize", source.provenance["source"], tmp_path / "b")
        refused(cli(*words, "--max-error", "2"), "--data")
        more = ("--data", "synthetic", "--observations", "2", "--held-out", "1")
        found = cli(*words, *more, "--max-error", "5", "--recipe", "int8")
        assert found.code == 0, found.err
        assert "of the range" in found.err and "w8a8" in found.out


def test_every_recipe_is_drawn_by_size_and_error(source, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    compression = pytest.importorskip("benchmarks.compression")
    words = [source.provenance["source"], str(tmp_path), "--data", "synthetic", "--threads", "1",
             "--calibration", "2", "--held-out", "2", "--layers", "1"]  # fmt: skip
    assert compression.main(words) == 0
    found = json.loads((tmp_path / "compression.json").read_text())
    names = [row["name"] for row in found["rows"]]
    assert names[0] == "bfloat16" and {"int8", "balanced, fitted", "small"} < set(names)
    sizes = {row["name"]: row["bytes"] for row in found["rows"]}
    assert sizes["small"] < sizes["balanced"] < sizes["int8"] < sizes["bfloat16"]
    assert "<svg" in (tmp_path / "sizes.svg").read_text()
    assert "<svg" in (tmp_path / "layers.svg").read_text()
    text = (tmp_path / "compression.md").read_text()
    assert text.count("\n") == 2 + len(names)
    assert compression.main(words) == 0  # the bundles are kept
    again = json.loads((tmp_path / "compression.json").read_text())
    assert all(row["seconds"] is None for row in again["rows"])
    assert [row["error"] for row in again["rows"]] == [row["error"] for row in found["rows"]]
