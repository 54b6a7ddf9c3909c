"""What weights are fitted to: observations, what layers read, and how inputs are smoothed."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from policy_helpers import IMAGES, STATE, TASK, tiny_checkpoint
from quantize_helpers import damaged, rounded_bundles

from smolvla_edge.backends import open_backend
from smolvla_edge.bundle import read_bundle
from smolvla_edge.codes import INPUT_SCALE, CodeFormat, round_to_nearest
from smolvla_edge.compress import calibration_state, smooth
from smolvla_edge.compress.calibrate import LayerInputs, layer_inputs
from smolvla_edge.compress.observations import LIST_FILE, find_observations
from smolvla_edge.compress.quantize import quantize, write_codes
from smolvla_edge.compress.recipe import RECIPES
from smolvla_edge.compress.solve import Solution, weight_of
from smolvla_edge.errors import (
    BundleError,
    DatasetError,
    InputError,
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


class TestCalibration:
    @pytest.fixture(autouse=True)
    def torch(self):
        pytest.importorskip("torch")

    def test_fitted_codes_come_nearer(self, checkpoint, bundles, tmp_path):
        source = open_source(checkpoint)
        seen = find_observations(source, "synthetic", 6)
        fitted = quantize(source, tmp_path / "fitted", RECIPES["balanced"], seen)
        notes = fitted.provenance["quantized"]
        assert notes["solver"] == "smooth+gptq" and notes["calibration"]["kind"] == "synthetic"
        again = quantize(source, tmp_path / "again", RECIPES["balanced"], seen)
        assert again.digest == fitted.digest  # the same data and seed give the same bytes
        held = list(find_observations(source, "synthetic", 4, seed=99))
        found = {}
        for name, path in (("exact", checkpoint), ("fitted", fitted.path),
                           ("rounded", bundles["balanced"])):  # fmt: skip
            policy = load(path)
            found[name] = np.stack(
                [policy.predict(o.images, o.state, o.task, seed=i).actions
                 for i, o in enumerate(held)]
            )  # fmt: skip
        error = {n: np.sqrt(((found[n] - found["exact"]) ** 2).mean()) for n in found}
        assert error["fitted"] < 0.85 * error["rounded"]

    def test_an_interrupted_calibration_goes_on(self, checkpoint, tmp_path, monkeypatch):
        monkeypatch.setattr(calibration_state, "EVERY", 2)
        source = open_source(checkpoint)
        seen = find_observations(source, "synthetic", 5)
        names = ["vision.layers.0.attn.q.weight", "expert.layers.0.mlp.down.weight"]
        whole = layer_inputs(source, seen, names, names)
        file = tmp_path / "state.safetensors"
        done = []

        def stop(number, total):
            done.append(number)
            if number == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            layer_inputs(source, seen, names, names, keep=file, progress=stop)
        del done[:]
        again = layer_inputs(source, seen, names, names, keep=file,
                             progress=lambda number, total: done.append(number))  # fmt: skip
        assert done == [2, 3, 4, 5]
        for name in names:
            assert np.array_equal(again[name].hessian, whole[name].hessian)
            assert np.array_equal(again[name].sample, whole[name].sample)
            assert np.array_equal(again[name].largest, whole[name].largest)
        # Another seed, and a file that was cut: from the beginning.
        for change in ({"seed": 1}, {}):
            del done[:]
            layer_inputs(source, seen, names, names, keep=file, **change,
                         progress=lambda number, total: done.append(number))  # fmt: skip
            assert done[0] == 0
            file.write_bytes(file.read_bytes()[:-9])
        bundle = quantize(source, tmp_path / "b", RECIPES["int8"], seen)
        assert bundle.path.is_dir() and not list(tmp_path.glob(".b.*"))

    def test_what_a_layer_reads(self, checkpoint):
        """Against the model itself: the first layer's norm, seen from outside."""
        source = open_source(checkpoint)
        seen = find_observations(source, "synthetic", 2)
        name = "vision.layers.0.attn.q.weight"
        found = layer_inputs(source, seen, [name], [name])[name]
        width = source.model.vision_width
        assert found.hessian.shape == (width, width) and found.largest.shape == (width,)
        assert np.allclose(found.hessian, found.hessian.T)
        assert (np.abs(found.sample).max(axis=0) <= found.largest).all()
        values, bias = (
            as_float32(read_tensor(entry), entry.dtype)
            for entry in (
                source.tensors[f"vision.layers.0.norm1.{kind}"] for kind in ("weight", "bias")
            )
        )
        # A norm's output less its bias, over its weight, has a mean square of 1 in every row.
        inner = (found.sample - bias) / values
        assert np.allclose((inner**2).mean(axis=1), 1, atol=1e-2)

    def test_a_nan_in_an_observation_is_refused(self, checkpoint, tmp_path):
        source = open_source(checkpoint)
        seen = find_observations(source, "synthetic", 2)
        originals = list(seen)
        broken = [originals[0], type(originals[1])(originals[1].images, STATE * np.nan, TASK)]
        seen._make = lambda: iter(broken)
        with pytest.raises(InputError, match="finite"):
            quantize(source, tmp_path / "b", RECIPES["balanced"], seen)
        assert not (tmp_path / "b").exists()

    def test_a_layer_that_gives_nan_is_named(self, checkpoint, tmp_path):
        """The observation is right and a weight is not: the layer behind it says so."""
        shutil.copytree(checkpoint, tmp_path / "c")
        entry = open_source(tmp_path / "c").tensors["text.layers.1.norm2.weight"]
        data = bytearray(entry.path.read_bytes())
        width = entry.nbytes // entry.shape[0]
        nan = np.float32(np.nan).tobytes()[-width:]
        data[entry.offset : entry.offset + width] = nan
        entry.path.write_bytes(data)
        source = open_source(tmp_path / "c")
        seen = find_observations(source, "synthetic", 2)
        with pytest.raises(
            QuantizationError, match=r"text\.layers\.1\.mlp\.gate_up: observation 0"
        ):
            quantize(source, tmp_path / "b", RECIPES["balanced"], seen)
        assert not (tmp_path / "b").exists()

    def test_a_dataset_of_a_policy_with_an_empty_camera(self, tmp_path):
        """Only what a robot has is looked for in the recording, by the robot's names."""
        pytest.importorskip("pyarrow")
        pytest.importorskip("PIL")
        from smolvla_edge.dataset import DatasetWriter
        from smolvla_edge.dataset.layout import Feature
        from smolvla_edge.synthetic import make_checkpoint

        folder = make_checkpoint(
            tmp_path / "c", "tiny", cameras=["observation.images.one"], state_dim=6, action_dim=6,
            overrides={"empty_cameras": 1},
        )  # fmt: skip
        features = {"observation.images.top": Feature("image", (32, 32, 3)),
                    "observation.state": Feature("float32", (6,)),
                    "action": Feature("float32", (6,))}  # fmt: skip
        frames = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones(
            (1, 32, 32, 3), np.uint8
        )
        with DatasetWriter(tmp_path / "set", 10, features) as writer:
            writer.add({"observation.images.top": frames, "observation.state": np.zeros((5, 6)),
                        "action": np.zeros((5, 6))}, TASK)  # fmt: skip
        names = {"observation.images.top": "observation.images.one"}
        source = open_source(folder, rename=names)
        seen = find_observations(source, str(tmp_path / "set"), 3)
        assert [int(o.images["observation.images.top"][0, 0, 0]) for o in seen] == [0, 2, 4]
        policy = load(folder, rename=names)
        first = next(iter(seen))
        assert policy.predict(first.images, first.state, first.task, seed=0).actions.shape[1] == 6
        with pytest.raises(DatasetError, match="--rename DATASET="):
            find_observations(open_source(folder), str(tmp_path / "set"), 3)

    def test_pictures_with_a_list(self, checkpoint, tmp_path):
        source = open_source(checkpoint)
        names = list(source.contract.cameras)
        for number, frame in enumerate(IMAGES.values()):
            head = f"P6\n{frame.shape[1]} {frame.shape[0]}\n255\n".encode()
            (tmp_path / f"{number}.ppm").write_bytes(head + frame.tobytes())
        item = {"images": {names[0]: "0.ppm", names[1]: "1.ppm"}, "state": [0.0] * 6, "task": TASK}
        (tmp_path / LIST_FILE).write_text(json.dumps({"observations": [item, item, item]}))
        seen = find_observations(source, str(tmp_path), 2)
        assert len(seen) == 2 and seen.evidence()["kind"] == "pictures"
        assert next(iter(seen)).images[names[1]].shape == (64, 64, 3)
        with pytest.raises(QuantizationError, match="list of 4 or more"):
            find_observations(source, str(tmp_path), 4)
        for bad in ({"images": {}}, {**item, "state": "x"}, {**item, "task": 3},
                    {**item, "images": {names[0]: "../out.ppm"}},
                    {**item, "images": {names[0]: "a\0.ppm"}}):  # fmt: skip
            (tmp_path / LIST_FILE).write_text(json.dumps({"observations": [bad]}))
            with pytest.raises(QuantizationError):
                find_observations(source, str(tmp_path), 1)
        with pytest.raises(QuantizationError, match="expected a LeRobotDataset folder"):
            find_observations(source, str(tmp_path / "none"), 1)


class TestSmoothing:
    def test_outputs_stay_the_same(self, checkpoint):
        """Every place at once: the smoothed model computes what the model computed."""
        torch = pytest.importorskip("torch")
        from smolvla_edge.model import load_model

        source = open_source(checkpoint)
        model = load_model(source.model, source.tensors)
        state = dict(model.state_dict())
        before = {name: value.clone().numpy() for name, value in state.items()}
        random = np.random.default_rng(0)
        tensors = dict(before)
        for spot in smooth.spots(source.model):
            if any(name not in tensors for name in (*spot.readers, *spot.makers)):
                continue  # the last language layer has only keys and values
            if not spot.makers:
                continue  # an input scale, of codes only
            width = tensors[spot.readers[0]].shape[1]
            s = np.exp(random.uniform(-1, 1, width)).astype(np.float32)
            tensors.update(smooth.apply(spot, s, tensors))
        changed = [name for name in before if not np.array_equal(before[name], tensors[name])]
        assert len(changed) > 30
        backend = open_backend(
            source.model, source.tensors, source.contract, backend="torch", device="cpu"
        )
        policy = Policy(source, backend, Plan.exact(source.model.num_steps))
        want = policy.predict(IMAGES, STATE, TASK, seed=3).normalized
        backend.model.load_state_dict({n: torch.from_numpy(v) for n, v in tensors.items()})
        got = policy.predict(IMAGES, STATE, TASK, seed=3).normalized
        assert np.abs(got - want).max() < 1e-4 * np.ptp(want)

    @pytest.mark.parametrize("backend", ["native", "torch"])
    def test_inputs_are_scaled_where_nothing_makes_them(self, checkpoint, tmp_path, backend):
        """Powers of two: dividing the weights and multiplying the inputs changes no bit but those
        of the rows' codes, which such factors move by less than a code of rounding."""
        if backend == "torch":
            pytest.importorskip("torch")
        source = open_source(checkpoint)
        name = "vision.layers.0.mlp.down.weight"
        weight = weight_of(source, name)
        random = np.random.default_rng(0)
        scale = np.exp2(random.integers(-1, 2, weight.shape[1])).astype(np.float32)

        def chunk(input_scale):
            form = CodeFormat(8)
            codes = round_to_nearest(weight / (1 if input_scale is None else input_scale), form)
            own = {} if input_scale is None else {name: input_scale}
            solution = Solution({name: codes}, input_scales=own)
            path = tmp_path / f"b{len(own)}"
            bundle = write_codes(source, path, "mine", solution)
            assert (name + INPUT_SCALE in bundle.tensors) == bool(own)
            opened = open_source(path)
            engine = open_backend(
                opened.model, opened.tensors, opened.contract, backend=backend, device="cpu"
            )
            policy = Policy(opened, engine, Plan.exact(opened.model.num_steps))
            return policy.predict(IMAGES, STATE, TASK, seed=3).normalized

        exact = load(checkpoint).predict(IMAGES, STATE, TASK, seed=3).normalized
        plain, scaled = chunk(None), chunk(scale)
        assert not np.array_equal(plain, scaled)
        for found in (plain, scaled):
            assert np.abs(found - exact).max() < 0.02 * np.ptp(exact)

    def test_an_input_scale_of_another_layer_is_refused(self, bundles, tmp_path):
        def somewhere_else(data):
            data["codes"]["text.layers.0.mlp.down.weight"]["input_scale"] = True

        def no_truth(data):
            data["codes"]["vision.layers.0.mlp.down.weight"]["input_scale"] = 1

        for change in (somewhere_else, no_truth):
            with pytest.raises(BundleError):
                read_bundle(damaged(bundles["balanced"], tmp_path / change.__name__, change))

    def test_an_outlier_is_shared(self):
        random = np.random.default_rng(1)
        x = random.standard_normal((128, 64)).astype(np.float32)
        x[:, 7] *= 50
        weight = random.standard_normal((32, 64)).astype(np.float32)
        inputs = LayerInputs(np.abs(x).max(axis=0), x, None)
        s = smooth.best_factors(inputs, [weight], CodeFormat(8))
        assert s is not None and s[7] > 3 * np.median(s)
        calm = x.copy()
        calm[:, 7] /= 50
        none = smooth.factors(LayerInputs(np.abs(calm).max(axis=0), calm, None), [weight], 0.5)
        assert none.max() / none.min() < 3

    def test_a_channel_that_is_never_there_stays(self):
        x = np.zeros((4, 3), np.float32)
        x[:, 0] = 1
        inputs = LayerInputs(np.abs(x).max(axis=0), x, None)
        assert smooth.factors(inputs, [np.ones((2, 3), np.float32)], 0.5).tolist() == [1, 1, 1]
