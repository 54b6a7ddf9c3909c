"""Folders whose names are bytes and no UTF-8: everything works there, and every text can be shown.

Linux allows any byte but "/" and NUL in a name; Python keeps the others as lone surrogates, which
neither C++ strings, nor JSON, nor a terminal take.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from policy_helpers import IMAGES, STATE, TASK

import smolvla_edge as se
from smolvla_edge.errors import CheckpointError, SmolVLAEdgeError
from smolvla_edge.paths import shown
from smolvla_edge.synthetic import make_checkpoint

ODD = os.fsdecode(b"caf\xe9 \xff\xfe")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd") / ODD
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes no such name")
    make_checkpoint(folder / "checkpoint", "tiny")
    se.write_bundle(se.read_checkpoint(folder / "checkpoint"), folder / "bundle", command=ODD)
    return folder


def test_shown_is_text_and_says_which_bytes() -> None:
    assert shown(ODD) == "caf\\xe9 \\xff\\xfe"
    assert shown(Path("plain/ä")) == "plain/ä"


@pytest.mark.parametrize("kind", ["checkpoint", "bundle"])
def test_a_policy_loads_and_predicts(odd: Path, tmp_path: Path, kind: str) -> None:
    plain = tmp_path / "plain"
    plain.symlink_to(odd / kind)
    expected = se.load(plain).predict(IMAGES, STATE, TASK, seed=1)
    chunk = se.load(odd / kind).predict(IMAGES, STATE, TASK, seed=1)
    assert np.array_equal(chunk.actions, expected.actions)
    assert chunk.provenance["source"].endswith(f"caf\\xe9 \\xff\\xfe/{kind}")
    json.dumps(chunk.provenance, ensure_ascii=False).encode()  # no lone surrogate in it


def test_the_bundle_says_where_it_came_from_in_text(odd: Path) -> None:
    text = (odd / "bundle" / "bundle.json").read_text(encoding="utf-8")
    provenance = json.loads(text)["provenance"]
    assert provenance["source"].endswith("caf\\xe9 \\xff\\xfe/checkpoint")
    assert provenance["command"] == "caf\\xe9 \\xff\\xfe"


def test_a_refusal_of_the_core_names_the_file(odd: Path) -> None:
    from core_helpers import make, tensors_of

    from smolvla_edge.source import open_source

    source = open_source(odd / "checkpoint")
    name, dtype, shape, path, _, size = tensors_of(source)[0]
    with pytest.raises(CheckpointError, match=r"cannot open .*caf\\xe9 \\xff\\xfe/checkpoint"):
        make(source, tensors=[(name, dtype, shape, path + b".gone", 0, size)])


def test_a_name_with_nul_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SmolVLAEdgeError):
        se.load(str(tmp_path / "a\0b"))


@pytest.mark.parametrize("verb", ["inspect", "run"])
def test_the_command_line_prints_the_bytes(odd: Path, verb: str) -> None:
    """Also where the terminal is strict about UTF-8, which Python is by default."""
    picture = odd / "frame.ppm"
    picture.write_bytes(b"P6 4 4 255\n" + bytes(48))
    observation: list[str | bytes] = []
    if verb == "run":
        for camera in IMAGES:
            observation += ["--image", camera.encode() + b"=" + os.fsencode(picture)]
        observation += ["--state", "0,0,0,0,0,0", "--task", TASK]
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}\n"
            "from smolvla_edge.cli import main; main()",
            verb,
            odd / "bundle",
            *observation,
        ],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict", "COLUMNS": "400"},
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert b"caf\xe9 \xff\xfe" in result.stdout or b"caf\\xe9 \\xff\\xfe" in result.stdout
