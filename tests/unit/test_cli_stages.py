"""The comparison of `verify`: it must not be able to pass by accident."""

from __future__ import annotations

import json

import numpy as np
import pytest

from smolvla_edge.cli import stages


class TestCompare:
    def traces(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        names = ["mid.vision_embed.0", "out.vision.0", "out.connector.0", "mid.time.step0"]
        names += ["mid.step0.expert_layer0", "out.v_t.step0", "out.x_t.after_step0"]
        names += ["predict.normalized", "predict.actions"]
        random = np.random.default_rng(0)
        reference = {name: random.standard_normal((1, 4, 3)) for name in names}
        reference["out.prefix_pad_masks"] = np.array([[True, False, True, True, True]])
        reference["out.prefix_embs"] = random.standard_normal((1, 5, 3))
        reference["out.kv.0.key"] = random.standard_normal((1, 2, 5, 3))
        native = {name: value.copy() for name, value in reference.items()}
        valid = reference["out.prefix_pad_masks"][0]
        native["out.prefix_embs"] = native["out.prefix_embs"][:, valid]
        native["out.kv.0.key"] = native["out.kv.0.key"][:, :, valid]
        return native, reference

    def test_equal_passes(self) -> None:
        results = stages.compare(*self.traces(), tolerance=0.0)
        assert all(result.passed for result in results)
        assert {result.stage for result in results} == stages.REQUIRED

    @pytest.mark.parametrize("name", ["out.vision.0", "out.kv.0.key", "predict.actions"])
    @pytest.mark.parametrize("fault", ["value", "nan", "shape", "missing"])
    def test_a_fault_fails_its_stage_alone(self, name: str, fault: str) -> None:
        native, reference = self.traces()
        if fault == "value":
            native[name].flat[-1] += 1e-3
        elif fault == "nan":
            native[name].flat[0] = np.nan
        elif fault == "shape":
            native[name] = native[name][..., :2]
        elif name == "out.vision.0":
            del reference[name]  # the reference lost it: nothing to compare with
        else:
            del native[name]
        results = stages.compare(native, reference, tolerance=2e-5)
        failed = [result for result in results if not result.passed]
        assert len(failed) == 1
        assert failed[0].worst in (name, "")
        json.dumps(failed[0].to_json(), allow_nan=False)

    def test_a_reference_of_zeros_allows_no_error(self) -> None:
        native, reference = self.traces()
        reference["out.v_t.step0"][:] = 0
        native["out.v_t.step0"][:] = 0
        assert all(r.passed for r in stages.compare(native, reference, 2e-5))
        native["out.v_t.step0"].flat[0] = 1e-30
        assert not all(r.passed for r in stages.compare(native, reference, 2e-5))
