"""Integer weights in each form: worth what the codes stand for, or rounded as native rounds."""

from __future__ import annotations

import numpy as np
import pytest
from needs import needs

import smolvla_edge
from smolvla_edge.compress.quantize import quantize
from smolvla_edge.compress.recipe import RECIPES
from smolvla_edge.synthetic import make_checkpoint

with needs("torch", "onnx", "onnxscript", "onnxruntime"):
    import onnx

    from smolvla_edge.export.exporter import Options, export_onnx
    from smolvla_edge.export.forms import Form
    from smolvla_edge.source import open_source

ROWS_DB = 20.0  # export/bounds.py says where it comes from


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """8-bit vision and language, 4-bit expert."""
    base = tmp_path_factory.mktemp("forms")
    make_checkpoint(base / "checkpoint", "tiny", cameras=["observation.images.top"])
    quantize(open_source(base / "checkpoint"), base / "balanced", RECIPES["balanced"])
    return base / "balanced"


@pytest.fixture(scope="module")
def exported(bundle):
    """words -> the export folder of these options."""
    made = {}

    def get(precision, form, custom=True):
        key = precision, form, custom
        if key not in made:
            made[key] = bundle.parent / "-".join(map(str, key))
            options = Options(precision, Form(form, custom))
            export_onnx(open_source(bundle), made[key], options=options)
        return made[key]

    return get


def actions(path, **options):
    policy = smolvla_edge.load(path, threads=1, **options)
    random = np.random.default_rng(5)
    frame = random.integers(0, 256, (48, 64, 3), np.uint8)
    state = random.standard_normal(policy.contract.state_dim, np.float32)
    return policy.predict({"observation.images.top": frame}, state, "push", seed=1).normalized


def decibels(got, want):
    return 10 * np.log10((want**2).sum() / ((got - want) ** 2).sum())


def operators(folder):
    found = set()

    def visit(graph):
        for node in graph.node:
            found.add((node.domain, node.op_type))
            for attribute in node.attribute:
                visit(attribute.g)

    for name in ("vision", "prefix", "flow"):
        visit(onnx.load(folder / f"{name}.onnx", load_external_data=False).graph)
    return found


@pytest.mark.parametrize("form", ["qdq", "matmulnbits"])
def test_float_products(exported, form):
    """At level 0 integer weights are worth exactly what they stand for."""
    folder = exported("as-stored", form)
    want = actions(exported("float32", "qdq"))
    got = actions(folder, custom_ops=False)
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
    product = ("com.microsoft", "MatMulNBits") if form == "matmulnbits" else ("", "MatMul")
    assert product in operators(folder)


def test_integer_products(exported, bundle):
    """Rows are rounded as the native backend rounds them; so the two are nearer to each other than
    to float products, and our kernels give what the standard body gives."""
    folder = exported("as-stored", "integer")
    assert ("smolvla_edge", "LinearW8") in operators(folder)
    native, plain = actions(bundle), actions(exported("float32", "qdq"))
    standard, ours = actions(folder, custom_ops=False), actions(folder, custom_ops=True)
    assert decibels(standard, plain) >= ROWS_DB
    assert np.abs(standard - plain).max() > 1e-5 * np.abs(plain).max()
    assert decibels(ours, native) >= ROWS_DB
    assert decibels(ours, standard) >= ROWS_DB


def test_bodies_in_place(exported):
    """Without nodes of our domain the same numbers, bit for bit."""
    plain, ours = exported("as-stored", "integer", False), exported("as-stored", "integer")
    assert {domain for domain, _ in operators(plain)} == {""}
    assert (actions(plain) == actions(ours, custom_ops=False)).all()
