"""The checks of a policy: bundles and checkpoints, whole and damaged, and what they need."""

from __future__ import annotations

import json
import shutil

import pytest
from bundle_helpers import DESCRIPTION, TOKENIZER, WEIGHTS, describe
from doctor_helpers import stands

from smolvla_edge import _core
from smolvla_edge.backends.native import NativeBackend
from smolvla_edge.bundle import read_bundle
from smolvla_edge.bundle_writer import write_bundle
from smolvla_edge.checkpoint import read_checkpoint
from smolvla_edge.doctor import policy
from smolvla_edge.doctor.cpu import CpuFacts
from smolvla_edge.doctor.device import device_name
from smolvla_edge.doctor.finding import FAIL, PASS, WARN
from smolvla_edge.doctor.gpu import GpuFacts
from smolvla_edge.doctor.need import model_need, reference_need
from smolvla_edge.source import open_source
from smolvla_edge.synthetic import make_checkpoint

DEVICE = "a-board-4core"


@pytest.fixture(scope="module")
def original(pristine, tmp_path_factory):
    path = tmp_path_factory.mktemp("doctor") / "bundle"
    write_bundle(read_checkpoint(pristine), path)
    return path


@pytest.fixture
def bundle(original, tmp_path):
    return shutil.copytree(original, tmp_path / "bundle")


class TestOpening:
    def test_a_bundle(self, bundle):
        opened, finding = policy.open_policy(str(bundle))
        stands(finding, PASS, "bundle", "116 tensors", "camera1", "state 6")
        assert opened.bundle is not None and opened.tokenizer_file == bundle / TOKENIZER

    def test_a_checkpoint(self, folder):
        opened, finding = policy.open_policy(str(folder))
        stands(finding, PASS, "not converted")
        assert opened.bundle is None and opened.tokenizer_file is not None

    def test_a_place_that_does_not_exist(self, tmp_path):
        opened, finding = policy.open_policy(str(tmp_path / "no" / "such"))
        assert opened is None
        stands(finding, FAIL, "no/such")

    @pytest.mark.parametrize("name", [DESCRIPTION, WEIGHTS, TOKENIZER])
    def test_a_bundle_with_a_cut_file(self, bundle, name):
        path = bundle / name
        path.write_bytes(path.read_bytes()[:-9])
        opened, finding = policy.open_policy(str(bundle))
        assert opened is None
        stands(finding, FAIL, name, "copy the bundle again")

    def test_a_checkpoint_whose_statistics_fit_nothing(self, folder):
        for path in folder.glob("*normalizer_processor.safetensors"):
            path.unlink()
        opened, finding = policy.open_policy(str(folder))
        assert opened is None
        stands(finding, FAIL)

    def test_a_revision_of_a_bundle(self, bundle):
        _, finding = policy.open_policy(str(bundle), revision="main")
        stands(finding, FAIL, "local bundle")

    def test_renaming(self, bundle):
        names = {"top": "observation.images.camera1"}
        _, finding = policy.open_policy(str(bundle), rename=names)
        stands(finding, PASS, "cameras top, observation.images.camera2")
        _, finding = policy.open_policy(str(bundle), rename={"top": "nothing"})
        stands(finding, FAIL, "nothing", "--rename")


class TestFiles:
    def test_whole(self, bundle):
        seen = []
        finding = policy.check_files(read_bundle(bundle), lambda *pair: seen.append(pair))
        stands(finding, PASS, WEIGHTS, "SHA-256")
        assert seen and seen[-1][0] == seen[-1][1]

    def test_one_bit_of_the_weights(self, bundle):
        read = read_bundle(bundle)
        name, entry = next(iter(read.tensors.items()))
        data = bytearray((bundle / WEIGHTS).read_bytes())
        data[entry.offset] ^= 1
        (bundle / WEIGHTS).write_bytes(data)
        stands(policy.check_files(read), FAIL, name, "copy the bundle again")

    def test_a_file_that_vanished(self, bundle):
        read = read_bundle(bundle)
        (bundle / WEIGHTS).unlink()
        stands(policy.check_files(read), FAIL, WEIGHTS)


class TestNormalisation:
    def test_with_statistics(self, pristine):
        contract = read_checkpoint(pristine).contract
        stands(policy.check_normalization(contract), PASS)

    def test_without(self, folder):
        for path in folder.glob("policy_*processor*"):
            path.unlink()
        opened, _ = policy.open_policy(str(folder), allow_unnormalized=True)
        stands(policy.check_normalization(opened.contract), WARN, "action", "--stats")


class TestTokenizer:
    def test_it_encodes(self, bundle):
        opened, _ = policy.open_policy(str(bundle))
        stands(policy.check_tokenizer(opened), PASS, "17 of 48 tokens")

    def test_none(self, folder):
        shutil.rmtree(folder / "tokenizer")
        opened, _ = policy.open_policy(str(folder))
        stands(policy.check_tokenizer(opened), FAIL, "tokenizer.json", "--tokenizer FILE")

    @pytest.mark.parametrize("text", ["", "{}", "no JSON", '{"version": "1.0"}'])
    def test_a_damaged_one(self, folder, text):
        (folder / "tokenizer" / TOKENIZER).write_text(text)
        opened, _ = policy.open_policy(str(folder))
        stands(policy.check_tokenizer(opened), FAIL, TOKENIZER)

    def test_one_that_drops_letters(self, folder):
        path = folder / "tokenizer" / TOKENIZER
        data = json.loads(path.read_text())
        del data["model"]["vocab"]["b"]
        path.write_text(json.dumps(data))
        opened, _ = policy.open_policy(str(folder))
        stands(policy.check_tokenizer(opened), WARN, "no token for 'b'")


class TestPresets:
    def write(self, folder, evidence, **changes):
        data = {
            "format": "smolvla-edge presets",
            "version": 1,
            "bundle": read_bundle(folder).digest,
            "presets": {"fast": {"plan": {"steps": 4}, "evidence": evidence}},
            **changes,
        }
        (folder / "presets.json").write_text(json.dumps(data))
        return policy.check_presets(read_bundle(folder), DEVICE)

    def test_none(self, bundle):
        stands(policy.check_presets(read_bundle(bundle), DEVICE), PASS, "none")

    def test_measured_here(self, bundle):
        stands(self.write(bundle, {"device": DEVICE, "ms": 3}), PASS, "fast", DEVICE)

    @pytest.mark.parametrize(
        ("evidence", "words"),
        [
            ({"device": "another-8core"}, "fast (another-8core)"),
            (None, "fast (unmeasured)"),
            ({"ms": 3}, "fast (unmeasured)"),
            ({"device": 7}, "fast (unmeasured)"),
        ],
    )
    def test_measured_elsewhere_or_not(self, bundle, evidence, words):
        stands(self.write(bundle, evidence), WARN, words)

    def test_an_error_is_the_same_everywhere(self, bundle):
        finding = self.write(bundle, {"device": None, "action_error": {}})
        stands(finding, PASS, "its error measured, no times: fast")

    def test_of_another_bundle(self, bundle):
        stands(self.write(bundle, None, bundle="0" * 64), FAIL, "other weights", "remove")

    def test_the_devices_name(self):
        cpu = CpuFacts("AMD EPYC (x)", "x86_64", ())
        assert device_name(cpu, GpuFacts()).startswith("amd-epyc-x-")
        orin = CpuFacts("Arm Cortex-A78AE", "aarch64", (), "NVIDIA Jetson Orin Nano")
        gpu = GpuFacts(({"name": "Orin (nvgpu)", "capability": "8.7", "memory": 1},))
        name = device_name(orin, gpu)
        assert name.startswith("nvidia-jetson-orin-nano-") and name.endswith("-orin-nvgpu")


class TestNeed:
    @pytest.mark.parametrize("dtypes", ["mixed", "F32", "BF16", "F16"])
    def test_the_estimate_against_a_loaded_engine(self, tmp_path, dtypes):
        """Never less than what the engine packs, and not much more: panels are counted apart."""
        checkpoint = make_checkpoint(tmp_path / "tiny", "tiny", dtypes=dtypes)
        source = open_source(checkpoint)
        need = model_need("tiny", source.model, source.tensors, _core, 2)
        info = NativeBackend(source.model, source.tensors, source.contract, threads=2).info()
        assert info["weights_bytes"] <= need.weights <= 1.15 * info["weights_bytes"]
        assert info["arena_bytes"] <= need.buffers

    def test_of_the_reference(self):
        """docs/performance.md: 663 MiB packed and 78 MiB of activations for smolvla_base."""
        need = reference_need(_core, 2)
        assert 663 << 20 <= need.weights <= 1.03 * (663 << 20)
        assert 78 << 20 <= need.buffers <= 400 << 20

    def test_more_threads_need_more(self):
        assert reference_need(_core, 8).buffers > reference_need(_core, 1).buffers


def test_without_a_policy():
    stands(policy.check_no_policy(), PASS, "smolvla-edge doctor PATH")


def test_a_bundle_converted_without_statistics(bundle):
    """The rule is the contract's, not the file's: the same line as for a checkpoint."""

    def forget(data):
        data["contract"]["state"]["unnormalized"] = True

    contract = json.loads((bundle / DESCRIPTION).read_text())["contract"]
    if "unnormalized" not in contract["state"]:
        pytest.fail(f"the contract's JSON has changed: {sorted(contract['state'])}")
    describe(bundle, forget)
    opened, finding = policy.open_policy(str(bundle))
    if opened is None:  # a contract that says so with statistics in it may be refused instead
        stands(finding, FAIL, "unnormalized")
    else:
        stands(policy.check_normalization(opened.contract), WARN, "state")
