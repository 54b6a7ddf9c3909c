"""Running a tiny policy on each backend, comparing what comes back, and surviving what does not."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import numpy as np
import pytest
from doctor_helpers import stands

from smolvla_edge import _core
from smolvla_edge.doctor import backends
from smolvla_edge.doctor.backends import Ran, check_backends, jobs, run_all
from smolvla_edge.doctor.finding import FAIL, PASS, WARN
from smolvla_edge.doctor.process import Outcome

ACTIONS = np.linspace(-3, 3, 2 * 8 * 6, dtype=np.float32).reshape(2, 8, 6)
ROUNDED = np.round(ACTIONS, 2)
FACTS = {"isa": "scalar", "threads": 2, "ms": 1.5, "gflops": 9.0}


def ran(name: str, actions: np.ndarray | None = ACTIONS, rounded=ROUNDED, **more) -> Ran:
    backend = name.partition(" ")[0]
    facts = {"torch": "2.13.0", "ms": 9.0} if backend == "torch" else FACTS
    results = {} if actions is None else {"float32": actions}
    if actions is not None and backend == "native":
        results["bfloat16"] = rounded
    return Ran(name, backend, results, facts, **more)


def isas() -> list[str]:
    table = _core.kernel_table("scalar")
    return list(dict.fromkeys(row["isa"] for row in table if row["supported"]))


class TestComparing:
    def test_all_agree(self):
        near = ACTIONS * np.float32(1 + 1e-5)
        found = check_backends([ran("native scalar"), ran("native avx2"), ran("torch", near)])
        stands(
            found[0], PASS, "the others are compared", "1.5 ms on 2 threads", "9 float32 GFLOP/s"
        )
        stands(found[1], PASS, "equal native scalar's in every byte (float32, bfloat16)")
        stands(found[2], PASS, "torch 2.13.0 ran", "within 1.0e-05")

    @pytest.mark.parametrize("arithmetic", ["float32", "bfloat16"])
    def test_one_bit_of_a_native_kernel(self, arithmetic):
        wrong = {"float32": ACTIONS.copy(), "bfloat16": ROUNDED.copy()}
        wrong[arithmetic].view(np.uint32)[0, 0, 0] ^= 1
        broken = ran("native avx2", wrong["float32"], wrong["bfloat16"])
        found = check_backends([ran("native scalar"), broken])
        stands(found[1], FAIL, f"{arithmetic} actions differ from native scalar's", "do not use it")

    def test_the_sign_of_zero_is_a_byte_too(self):
        zeros = np.zeros_like(ACTIONS)
        found = check_backends([ran("native scalar", zeros), ran("native avx2", -zeros)])
        stands(found[1], FAIL, "differ")

    @pytest.mark.parametrize("plane", [0, 1])  # model space, robot units
    def test_torch_over_the_tolerance(self, plane):
        wrong = ACTIONS.copy()
        wrong[plane] *= np.float32(1 + 3e-5)
        found = check_backends([ran("native scalar"), ran("torch", wrong)])
        stands(found[1], FAIL, "more than 2e-05")

    def test_a_small_plane_does_not_hide_behind_a_large_one(self):
        large = ACTIONS.copy()
        large[1] *= 1000
        wrong = large.copy()
        wrong[0] *= np.float32(1 + 3e-5)
        found = check_backends([ran("native scalar", large), ran("torch", wrong)])
        stands(found[1], FAIL, "more than 2e-05")

    def test_nan_is_never_equal(self):
        nan = np.full_like(ACTIONS, np.nan)
        found = check_backends([ran("native scalar", nan), ran("native avx2", nan), ran("torch")])
        stands(found[0], FAIL, "NaN")
        stands(found[1], FAIL, "NaN")
        stands(found[2], PASS, "nothing to compare")

    def test_a_gpu_has_tolerances(self):
        near, rounded = ACTIONS * np.float32(1 + 1e-5), ROUNDED * np.float32(1.02)
        found = check_backends([ran("native scalar"), ran("native on cuda", near, rounded)])
        stands(found[1], PASS, "float32 actions within 1.0e-05 of native scalar's")
        for actions in ((ACTIONS * np.float32(1 + 3e-5), ROUNDED), (near, ROUNDED * 1.1)):
            wrong = ran("native on cuda", *(a.astype(np.float32) for a in actions))
            stands(check_backends([ran("native scalar"), wrong])[1], FAIL, "more than")

    def test_a_gpu_that_does_not_run(self):
        gone = ran("native on cuda", None, problem="crashed with SIGSEGV")
        found = check_backends([ran("native scalar"), gone])
        stands(found[1], FAIL, "device 'auto' would take it", "SIGSEGV", "device='cpu'")

    def test_without_scalar_the_first_native_is_the_reference(self):
        crashed = ran("native scalar", None, problem="crashed with SIGILL")
        found = check_backends([crashed, ran("native avx2"), ran("torch")])
        stands(found[0], FAIL, "crashed with SIGILL", "from source")
        stands(found[1], PASS, "the others are compared")
        stands(found[2], PASS, "native avx2")

    def test_a_torch_that_does_not_run_is_a_warning(self):
        found = check_backends([ran("native scalar"), ran("torch", None, problem="no libcudss")])
        stands(found[1], WARN, "no libcudss", "nothing to do if")

    def test_another_shape(self):
        found = check_backends([ran("native scalar"), ran("torch", ACTIONS[:, :4])])
        stands(found[1], FAIL, "no float32 of shape (2, 4, 6)")

    def test_zeros(self):
        zeros = np.zeros_like(ACTIONS)
        found = check_backends([ran("native scalar", zeros), ran("torch", zeros)])
        assert [finding.status for finding in found] == [PASS, PASS]

    def test_nothing_ran(self):
        assert check_backends([]) == []


class TestJobs:
    def test_scalar_first(self):
        assert jobs(["avx512", "avx2", "scalar"], True, {}) == [
            "native scalar",
            "native avx512",
            "native avx2",
            "torch",
        ]

    def test_a_gpu_that_can_be_used(self):
        names = jobs(["scalar"], True, {}, with_cuda=True)
        assert names == ["native scalar", "native on cuda", "torch"]

    def test_what_the_environment_forces_is_run_too(self):
        names = jobs(["scalar"], False, {"SMOLVLA_FORCE_KERNEL": "rope=scalar"})
        assert names == ["native (as forced)", "native scalar"]


class TestRunning:
    def test_every_isa_of_this_machine(self):
        calls = []
        names = jobs(isas(), False, {})
        results = run_all(names, 2, lambda *pair: calls.append(pair))
        assert [result.name for result in results] == names
        assert [result.problem for result in results] == [""] * len(names)
        assert [result.facts["isa"] for result in results] == [n.split()[1] for n in names]
        assert all(result.facts["threads"] == 2 for result in results)
        assert all(finding.status == PASS for finding in check_backends(results))
        assert calls[0] == (0, len(names)) and len(calls) == len(names)
        actions = results[0].actions
        assert np.ptp(actions["float32"]) > 1e-3
        assert not np.array_equal(actions["float32"], actions["bfloat16"])

    def test_the_forced_choice(self, monkeypatch):
        monkeypatch.setenv("SMOLVLA_FORCE_ISA", "scalar")
        forced, named = run_all(["native (as forced)", f"native {isas()[0]}"], 1, lambda *_: None)
        assert forced.facts["isa"] == "scalar" and named.facts["isa"] == isas()[0]
        assert forced.actions["float32"].tobytes() == named.actions["float32"].tobytes()

    def test_an_unknown_isa_is_a_result_too(self):
        (result,) = run_all(["native abacus"], 1, lambda *_: None)
        assert not result.actions
        assert "exit code 1" in result.problem and "abacus" in result.problem

    @pytest.mark.skipif(find_spec("torch") is None, reason="needs the extra torch")
    def test_torch(self):
        results = run_all(["native scalar", "torch"], 2, lambda *_: None)
        found = check_backends(results[:2])
        stands(found[1], PASS, "within")
        assert results[1].facts["cuda_available"] in (True, False)

    @pytest.mark.parametrize(
        ("outcome", "words"),
        [
            (Outcome(problem="crashed with SIGILL"), "crashed with SIGILL"),
            (Outcome(problem="gave no answer in 120 s"), "no answer"),
            (Outcome(err="ImportError: no libcudss.so\n", problem="exit code 1"), "no libcudss.so"),
            (Outcome(), "left no result"),
        ],
    )
    def test_a_process_that_fails(self, monkeypatch, outcome, words):
        monkeypatch.setattr(backends, "run", lambda *_, **__: outcome)
        (result,) = run_all(["torch"], None, lambda *_: None)
        assert not result.actions and words in result.problem

    def test_a_module_of_the_working_directory_is_not_imported(self, monkeypatch, tmp_path):
        (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
        monkeypatch.chdir(tmp_path)
        (result,) = run_all(["native scalar"], 1, lambda *_: None)
        assert result.problem == ""

    def test_the_child_finds_the_package_where_we_did(self, monkeypatch, tmp_path):
        """Its sys.path is ours, not what its own start would make of it."""
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        (result,) = run_all(["native scalar"], 1, lambda *_: None)
        assert "No module named" in result.problem
