"""Which device computes: what the words mean, and what is said when there is no CUDA backend."""

from __future__ import annotations

import pytest
from core_helpers import make
from policy_helpers import tiny_checkpoint

import smolvla_edge
from smolvla_edge import _core
from smolvla_edge.backends import choose, native
from smolvla_edge.errors import BackendError
from smolvla_edge.source import open_source

BUILT = _core.cuda()["built"]
not_built = pytest.mark.skipif(BUILT, reason="this build has the CUDA backend")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture
def gpu(monkeypatch):
    """As if a GPU answered."""
    monkeypatch.setattr(native, "why_no_gpu", lambda: None)


class TestChoosing:
    def test_auto_without_a_gpu_is_the_cpu(self):
        assert choose() == choose("native") == ("native", "cpu")

    def test_auto_with_a_gpu(self, gpu):
        assert choose() == choose("native", "cuda") == ("native", "cuda")
        assert choose("auto", "cpu") == ("native", "cpu")
        assert choose("torch", "auto") == ("torch", "cpu")

    def test_options_of_the_cpu_mean_the_cpu(self, gpu):
        assert choose(cpu_options=["threads"]) == ("native", "cpu")

    def test_options_of_the_cpu_beside_cuda_are_refused_by_name(self, gpu):
        with pytest.raises(BackendError, match=r"threads, packed_cache: expected none with device"):
            choose("native", "cuda", cpu_options=["threads", "packed_cache"])

    @pytest.mark.parametrize("words", [("jax", "auto"), ("native", "tpu"), ("torch", "gpu")])
    def test_unknown_words(self, words):
        with pytest.raises(BackendError, match="must be one of"):
            choose(*words)

    def test_cuda_says_what_is_missing(self):
        with pytest.raises(BackendError, match="device='cuda': tests that are not marked gpu"):
            choose("native", "cuda")


class TestCuda:
    def test_what_is_told(self):
        told = _core.cuda()
        assert set(told) == {"built", "emulated", "architectures", "driver", "devices", "error"}
        assert told["built"] is bool(told["architectures"]) and told["emulated"] is False
        assert all(type(sm) is int and sm >= 80 for sm in told["architectures"])

    @not_built
    def test_a_build_without_it_says_how_to_build(self, tiny, monkeypatch):
        monkeypatch.setattr(native, "why_no_gpu", lambda: _core.cuda()["error"])
        assert _core.cuda()["devices"] == [] and _core.cuda()["driver"] is None
        for words in (r"cmake\.define\.SMOLVLA_CUDA=ON", "nvcc .* on PATH", "pip install"):
            with pytest.raises(BackendError, match=words):
                smolvla_edge.load(tiny, device="cuda")
        with pytest.raises(BackendError, match=r"SMOLVLA_CUDA=ON"):
            make(open_source(tiny), threads=0, device="cuda")

    @pytest.mark.parametrize(
        ("option", "value"), [("threads", 2), ("isa", "scalar"), ("packed", object())]
    )
    def test_the_engine_refuses_options_of_the_cpu_by_name(self, tiny, option, value):
        options = {"threads": 0, option: value}
        with pytest.raises(BackendError, match=f"{option}: expected none with device cuda"):
            make(open_source(tiny), **options, device="cuda")

    def test_the_engine_refuses_other_devices(self, tiny):
        with pytest.raises(BackendError, match="expected cpu or cuda, got tpu"):
            make(open_source(tiny), device="tpu")


class TestWarmUp:
    def test_the_cpu_is_ready_and_gives_the_same_after_it(self, tiny):
        policy = smolvla_edge.load(tiny, threads=1)
        assert policy.engine.info()["ready"] is True
        seen = []
        policy.warm_up(progress=lambda *pair: seen.append(pair))
        assert seen[0][0] == 0 and seen[-1][0] == seen[-1][1]

    @pytest.mark.parametrize("frame", [(0, 10), (10, 20000)])
    def test_impossible_frames(self, tiny, frame):
        from smolvla_edge.errors import InputError

        with pytest.raises(InputError, match=r"outside 1\.\.16384"):
            smolvla_edge.load(tiny, threads=1).warm_up(frame)

    def test_it_leaves_no_prefix_behind(self, tiny):
        """denoise() goes on from a prefill() of its caller's, not from ours."""
        import numpy as np

        from smolvla_edge.errors import InputError

        policy = smolvla_edge.load(tiny, threads=1)
        policy.warm_up()
        noise = np.zeros((policy.model.chunk_size, policy.model.max_action_dim), np.float32)
        with pytest.raises(InputError, match="prefill"):
            policy.engine.denoise(noise)
