"""Cubins made ahead of time, the manifest, the configurations, and tuning without a GPU."""

from __future__ import annotations

import hashlib
import json
from importlib import resources

import pytest
from needs import needs

from smolvla_edge.errors import BackendError

with needs("torch", "triton"):
    import torch

    from smolvla_edge.kernels import build, tiles, tune
    from smolvla_edge.kernels.cases import CASES


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_bytes_from_two_builds(tmp_path, capsys, monkeypatch):
    for place in ("one", "two"):
        # A cache of its own: the second build compiles too.
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / f"cache {place}"))
        arguments = [str(tmp_path / place), "--arch", "87,110", "--kernel", "flow_step"]
        assert build.main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("4 cubins and manifest.json in ")
    assert captured.err.splitlines() == ["compiling kernels ..."] * 2  # no bar off a terminal
    made = files(tmp_path / "one")
    assert made == files(tmp_path / "two") and len(made) == 5

    manifest = json.loads(made["manifest.json"])
    for entry in manifest["kernels"]:
        image = made[entry["file"]]
        assert image.startswith(b"\x7fELF") and hashlib.sha256(image).hexdigest() == entry["sha256"]
        assert entry["entry"].encode() in image and entry["spills"] == 0
    guided = next(e for e in manifest["kernels"] if e["case"] == "guided" and e["arch"] == 110)
    assert [a["type"] for a in guided["arguments"]] == (
        ["*fp32"] * 5 + ["i32"] * 3 + ["fp32"] * 3 + ["scratch"] * 2
    )
    assert guided["grid"] == [4, 1, 1] and guided["constants"] == {"BLOCK": 512}


def test_an_unknown_architecture_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        build.main([str(tmp_path), "--arch", "87,75"])
    assert stopped.value.code == 2 and "expected some of 80,87" in capsys.readouterr().err


def test_every_case_finds_a_tile_and_every_tile_a_case():
    keys = {(case.kernel, case.key) for case in CASES}
    for kernel, rows in tiles.load_config("default")["kernels"].items():
        assert "*" in rows
        assert {(kernel, key) for key in rows if key != "*"} <= keys
    known = {name.removesuffix("_f32") for name in tiles.load_config("default")["kernels"]}
    assert {case.kernel for case in CASES} == known


def test_rows_are_rounded_up_and_other_shapes_take_the_star():
    half, full = torch.empty(0, dtype=torch.float16), torch.empty(0)
    wide = tiles.tile_for("linear_w4a16", (50, 2048, 720), half)
    assert tiles.tile_for("linear_w4a16", (64, 2048, 720), half) == wide
    star = tiles.load_config("default")["kernels"]["linear_w4a16"]["*"]
    assert tiles.tile_for("linear_w4a16", (50, 333, 720), half) == star != wide
    assert tiles.tile_for("linear_w4a16", (50, 333, 720), full)["BLOCK_K"] == 32
    assert tiles.tile_for("linear_w8a8", (50, 333, 720), full)["BLOCK_K"] == 64


def test_what_is_shipped_says_whether_it_was_measured():
    folder = resources.files("smolvla_edge.kernels") / "configs"
    for file in folder.iterdir():
        config = json.loads(file.read_text())
        measured = "measured by kernels.tune" in config["origin"]
        assert measured == (config["device"] != "default")
        assert measured or "not measured" in config["origin"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would be tuned")
def test_tuning_needs_a_gpu(capsys):
    with pytest.raises(BackendError, match="expected a CUDA device to measure on, got none"):
        tune.tune(CASES, None)
    assert tune.main([]) == 2
    assert "expected a CUDA device" in capsys.readouterr().err


def test_candidates_name_what_the_kernels_take():
    star = tiles.load_config("default")["kernels"]
    for case in CASES:
        found = list(tune.candidates(case))
        assert 0 < len(found) <= 24
        assert all(tile.keys() == star[case.kernel]["*"].keys() for tile in found)
