"""Loading from bundles and checkpoints, and how a policy lives with processes and threads."""

from __future__ import annotations

import ast
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from policy_helpers import (
    CAM1,
    CAM2,
    FRAME1,
    FRAME2,
    IMAGES,
    STATE,
    TASK,
    batch,
    changed,
    tiny_checkpoint,
)

import smolvla_edge
from smolvla_edge.backends import choose
from smolvla_edge.bundle_writer import write_bundle
from smolvla_edge.checkpoint import read_checkpoint
from smolvla_edge.errors import (
    BackendError,
    BundleError,
    CheckpointError,
    ContractError,
    PlanError,
    SmolVLAEdgeError,
    TokenizerError,
)
from smolvla_edge.plan import Cache, Plan
from smolvla_edge.policy import Policy, load


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    return load(folder)


class TestLoading:
    def test_bundle_equals_checkpoint(self, folder: Path, policy: Policy, tmp_path: Path) -> None:
        bundle = write_bundle(read_checkpoint(folder), tmp_path / "bundle")
        loaded = load(tmp_path / "bundle")
        chunk = loaded.predict(IMAGES, STATE, TASK, seed=1)
        expected = policy.predict(IMAGES, STATE, TASK, seed=1)
        assert chunk.actions.tobytes() == expected.actions.tobytes()
        assert chunk.provenance["bundle"] == bundle.digest
        with pytest.raises(CheckpointError, match="revision 'v1'"):
            load(tmp_path / "bundle", revision="v1")
        renamed = load(tmp_path / "bundle", rename={"top": CAM1, "wrist": CAM2})
        renamed.predict({"top": FRAME1, "wrist": FRAME2}, STATE, TASK)

    def test_damaged_bundle(self, folder: Path, tmp_path: Path) -> None:
        write_bundle(read_checkpoint(folder), tmp_path / "bundle")
        raw = bytearray((tmp_path / "bundle" / "model.safetensors").read_bytes())
        raw[-5] ^= 4
        (tmp_path / "bundle" / "model.safetensors").write_bytes(raw)
        with pytest.raises(BundleError, match="checksum"):
            load(tmp_path / "bundle")

    def test_other_statistics_for_a_bundle(
        self, folder: Path, policy: Policy, tmp_path: Path
    ) -> None:
        write_bundle(read_checkpoint(folder), tmp_path / "bundle")
        stats = {
            name: {"mean": [0.0] * 6, "std": [1.0] * 6} for name in ("observation.state", "action")
        }
        (tmp_path / "stats.json").write_text(json.dumps(stats))
        chunk = load(tmp_path / "bundle", stats=tmp_path / "stats.json").predict(
            IMAGES, STATE, TASK, seed=1
        )
        np.testing.assert_array_equal(chunk.actions, chunk.normalized)

    def test_unnormalized_bundle_says_so_twice(self, folder: Path, tmp_path: Path) -> None:
        bare = changed(folder, tmp_path)
        for path in bare.glob("policy_p*"):
            path.unlink()
        with pytest.raises(ContractError, match="no statistics"):
            load(bare)
        write_bundle(read_checkpoint(bare, allow_unnormalized=True), tmp_path / "bundle")
        with pytest.raises(ContractError, match="--allow-unnormalized"):
            load(tmp_path / "bundle")
        loaded = load(tmp_path / "bundle", allow_unnormalized=True)
        chunk = loaded.predict(IMAGES, STATE, TASK)
        assert chunk.provenance["unnormalized"] == ["observation.state", "action"]
        np.testing.assert_array_equal(chunk.actions, chunk.normalized)

    def test_without_tokenizer_the_model_still_runs(self, folder: Path, tmp_path: Path) -> None:
        bare = changed(folder, tmp_path, vlm_model_name="nobody/nothing")
        for path in (bare / "tokenizer", bare / "tokenizer.json"):
            path.unlink(missing_ok=True)
        policy = load(bare)
        with pytest.raises(TokenizerError, match="--tokenizer"):
            policy.predict(IMAGES, STATE, TASK)
        assert policy.predict_action_chunk(batch()).shape == (1, 8, 6)

    @pytest.mark.parametrize(
        "options, error",
        [
            ({"backend": "onnx"}, BackendError),
            ({"device": "tpu"}, BackendError),
            ({"device": "cuda"}, BackendError),
            ({"threads": 0}, BackendError),
            ({"threads": "2"}, BackendError),
            ({"plan": "quick"}, PlanError),
            ({"plan": Plan(steps=4, horizon=9)}, PlanError),
            ({"plan": Plan(steps=4, late_state=True)}, PlanError),
            ({"plan": Plan(steps=4, skip={"vlm": (4,)})}, PlanError),  # type: ignore[arg-type]
            ({"plan": Plan(steps=4, cache=Cache(0.1, 1, 1, ("nowhere",)))}, PlanError),
            ({"plan": "steps=0"}, PlanError),
            ({"rename": {"top": "nowhere"}}, ContractError),
            ({"stats": "missing.json"}, ContractError),
            ({"tokenizer": "missing.json"}, TokenizerError),
            ({"revision": "main"}, CheckpointError),
        ],
    )
    def test_refused(self, folder: Path, options: Any, error: type[SmolVLAEdgeError]) -> None:
        with pytest.raises(error):
            load(folder, **options)

    def test_no_silent_backend(self) -> None:
        assert choose() == ("native", "cpu")
        assert choose("torch", "cuda") == ("torch", "cuda")

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError):
            load(tmp_path / "none")
        with pytest.raises(CheckpointError):
            load(tmp_path)


class TestProcess:
    def test_used_after_a_fork(self, policy: Policy) -> None:
        """The child gets a BackendError, not a hang."""
        context = multiprocessing.get_context("fork")
        queue = context.Queue()

        def child() -> None:
            try:
                policy.predict(IMAGES, STATE, TASK)
                queue.put("ran")
            except BackendError as error:
                queue.put(str(error))

        process = context.Process(target=child)
        process.start()
        answer = queue.get(timeout=30)
        process.join(timeout=30)
        assert "fork" in answer and str(os.getpid()) in answer

    def test_concurrent_calls_give_the_same_bytes(self, policy: Policy) -> None:
        expected = policy.predict(IMAGES, STATE, TASK, seed=4).actions.tobytes()
        results: list[bytes] = []

        def work() -> None:
            for _ in range(5):
                results.append(policy.predict(IMAGES, STATE, TASK, seed=4).actions.tobytes())

        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert results == [expected] * 20

    def test_import_loads_nothing(self) -> None:
        code = (
            "import sys, smolvla_edge; "
            "heavy = {'numpy', 'torch', 'tokenizers', 'safetensors'} & set(sys.modules); "
            "sys.exit(f'imported {heavy}' if heavy else 0)"
        )
        root = Path(smolvla_edge.__file__).parents[1]
        subprocess.run([sys.executable, "-c", code], check=True, cwd=root)

    def test_public_names(self) -> None:
        for name in smolvla_edge.__all__:
            assert getattr(smolvla_edge, name) is not None
        with pytest.raises(AttributeError):
            smolvla_edge.no_such_name  # noqa: B018

    def test_no_check_vanishes_under_python_O(self) -> None:
        """`assert` is not validation: `python -O` removes it."""
        package = Path(smolvla_edge.__file__).parent
        found = [
            f"{path.relative_to(package)}:{node.lineno}"
            for path in package.rglob("*.py")
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Assert)
        ]
        assert found == []
