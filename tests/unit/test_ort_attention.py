"""ExpertAttention for ONNX Runtime: numpy's results and the native backend's bits, any mask, and
refusals."""

from __future__ import annotations

import numpy as np
import pytest
from needs import needs

from smolvla_edge import _core

with needs("onnx", "onnxruntime"):
    from ort_ops_helpers import (
        any_mask,
        attention_model,
        needs_bodies,
        reference_attention,
        session,
    )


@pytest.fixture
def random():
    return np.random.default_rng(11)


def expert_mask(random, prefix: int, rows: int) -> np.ndarray:
    """SmolVLA's: the valid columns of a prefix, then those of the rows themselves, causal."""
    valid = random.random(prefix) < 0.7
    return np.concatenate([np.tile(valid, (rows, 1)), np.tri(rows, dtype=bool)], axis=1)


class TestExpertAttention:
    @staticmethod
    def feeds(random, mask, heads, kv_heads, dim):
        rows, columns = mask.shape
        q = random.standard_normal((1, rows, heads * dim), np.float32)
        k, v = (random.standard_normal((1, columns, kv_heads * dim), np.float32) for _ in range(2))
        return {"query": q, "key": k, "value": v, "mask": mask}

    @pytest.mark.parametrize("heads, kv_heads, dim", [(15, 5, 64), (6, 2, 8), (4, 4, 40)])
    @pytest.mark.parametrize("form", ["expert", "all", "any", "one"])
    @pytest.mark.parametrize("threads", [1, 2])
    def test_against_numpy(self, heads, kv_heads, dim, form, threads, random):
        mask = {
            "expert": lambda: expert_mask(random, 113, 50),
            "all": lambda: np.ones((50, 113), bool),
            "any": lambda: any_mask(random, 45, 20),
            "one": lambda: np.ones((1, 1), bool),
        }[form]()
        feeds = self.feeds(random, mask, heads, kv_heads, dim)
        feeds["key"][0, ~mask.any(axis=0)] = np.nan  # what no row reads cannot matter
        (got,) = session(attention_model(heads, kv_heads), threads=threads).run(None, feeds)
        q, k, v = (feeds[name][0] for name in ("query", "key", "value"))
        want, allowed = reference_attention(q, np.nan_to_num(k), v, mask, heads, kv_heads)
        assert (np.abs(got[0] - want) <= allowed).all()

    @pytest.mark.parametrize("heads, kv_heads, dim", [(15, 5, 64), (4, 4, 40)])
    def test_it_is_the_native_backends_attention(self, heads, kv_heads, dim, random):
        mask = expert_mask(random, 113, 50)
        feeds = self.feeds(random, mask, heads, kv_heads, dim)
        (got,) = session(attention_model(heads, kv_heads), threads=2).run(None, feeds)
        read = mask.any(axis=0)
        ops = _core.CpuOps(1)
        kv = ops.make_kv(kv_heads, dim, int(read.sum()))
        ops.store_kv(kv, feeds["key"][0][read], feeds["value"][0][read], 0)
        want = np.empty_like(feeds["query"][0])
        lengths = mask.sum(axis=1).astype(np.int32)
        ops.attention(kv, feeds["query"][0], lengths, want, heads, kv_heads)
        assert np.array_equal(got[0], want)

    def test_a_row_does_not_depend_on_the_masks_of_others(self, random):
        """The general path is the plain one: parts of the rows, each packed for itself."""
        mask = any_mask(random, 45, 20)
        feeds = self.feeds(random, mask, 6, 2, 8)
        made = session(attention_model(6, 2))
        (got,) = made.run(None, feeds)
        for r in range(20):
            alone = {**feeds, "query": feeds["query"][:, r : r + 1], "mask": mask[r : r + 1]}
            assert np.array_equal(made.run(None, alone)[0][0, 0], got[0, r])

    @needs_bodies
    @pytest.mark.parametrize("form", [expert_mask, any_mask])
    def test_the_body_computes_the_same(self, form, random):
        mask = form(random, 60, 30)
        feeds = self.feeds(random, mask, 15, 5, 64)
        content = attention_model(15, 5, bodies=True)
        ours, body = (session(content, library=use).run(None, feeds)[0] for use in (True, False))
        _, allowed = reference_attention(
            *(feeds[n][0] for n in ("query", "key", "value")), mask, 15, 5
        )
        assert (np.abs(ours - body)[0] <= 2 * allowed).all()

    def test_no_rows(self, random):
        feeds = self.feeds(random, np.ones((0, 4), bool), 2, 1, 8)
        (got,) = session(attention_model(2, 1)).run(None, feeds)
        assert got.shape == (1, 0, 16)

    def test_a_row_that_reads_nothing_is_refused(self, random):
        made = session(attention_model(2, 1))
        feeds = self.feeds(random, np.eye(5, dtype=bool), 2, 1, 8)
        made.run(None, feeds)
        feeds["mask"][3] = False
        with pytest.raises(Exception, match="mask: row 3 reads none of the 5 columns"):
            made.run(None, feeds)
        with pytest.raises(Exception, match="row 0 reads none of the 0 columns"):
            made.run(None, self.feeds(random, np.ones((2, 0), bool), 2, 1, 8))

    @pytest.mark.parametrize("heads, kv_heads", [(5, 2), (2, 4), (0, 1), (4, 0), (-4, 2)])
    def test_heads_that_make_no_sense_are_refused(self, heads, kv_heads):
        with pytest.raises(Exception, match="heads"):
            session(attention_model(heads, kv_heads))

    @pytest.mark.parametrize("name, shape, message", [
        ("query", (2, 3, 16), r"query: expected float32 \[1, any, any\], got float32 \[2, 3, 16\]"),
        ("query", (1, 3, 15), "a multiple of 2 heads"),
        ("query", (1, 3, 0), "a multiple of 2 heads"),
        ("query", (1, 4, 16), r"mask: expected bool \[4, 5\], got bool \[3, 5\]"),
        ("key", (1, 5, 16), r"key: expected float32 \[1, any, 8\]"),
        ("key", (1, 6, 8), r"value: expected float32 \[1, 6, 8\]"),
        ("value", (1, 5, 9), r"value: expected float32 \[1, 5, 8\]"),
        ("mask", (3, 6), r"mask: expected bool \[3, 5\]"),
        ("mask", (1, 5), r"mask: expected bool \[3, 5\]"),
    ])  # fmt: skip
    def test_shapes_that_do_not_fit_are_refused(self, name, shape, message, random):
        feeds = self.feeds(random, np.ones((3, 5), bool), 2, 1, 8)
        feeds[name] = np.ones(shape, feeds[name].dtype)
        with pytest.raises(Exception, match=message):
            session(attention_model(2, 1)).run(None, feeds)
