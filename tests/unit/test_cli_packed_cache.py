"""--packed-cache of run, convert and demo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_cli import observation

import smolvla_edge
from smolvla_edge.cli.app import app
from smolvla_edge.synthetic import make_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("cli") / "tiny", "tiny")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)  # the demo may draw
    return tmp_path / "cache" / "smolvla-edge" / "packed"


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Any:
    """Call a verb with --json -> (exit code, what it printed, its messages)."""

    def call(*arguments: object) -> tuple[int, dict[str, Any], str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            app(args=[*map(str, arguments), "--json"], prog_name="smolvla-edge")
        captured = capsys.readouterr()
        result = json.loads(captured.out) if captured.out else {}
        return int(exit_.value.code or 0), result, captured.err

    return call


def test_convert_writes_it_and_run_maps_it(
    cli: Any, checkpoint: Path, cache: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    code, made, _ = cli("convert", checkpoint, bundle, "--packed-cache")
    assert (code, made["packed_cache"]) == (0, "written")
    assert [path.name.partition("-")[0] for path in cache.iterdir()] == [made["digest"]]
    code, plain, _ = cli("run", bundle, *observation())
    assert code == 0 and "packed_cache" not in plain["provenance"]
    code, fast, _ = cli("run", bundle, *observation(), "--packed-cache")
    assert (code, fast["provenance"]["packed_cache"]) == (0, "hit")
    assert fast["actions"] == plain["actions"]


def test_a_warning_is_a_line(cli: Any, checkpoint: Path, cache: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    smolvla_edge.write_bundle(smolvla_edge.read_checkpoint(checkpoint), bundle)
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder goes")
    code, result, messages = cli("run", bundle, *observation(), "--packed-cache")
    assert (code, result["provenance"]["packed_cache"]) == (0, "unwritable")
    assert "warning: the packed cache is not kept" in messages
    assert "PackedCacheWarning" not in messages  # no Python in it


def test_a_checkpoint_is_refused(cli: Any, checkpoint: Path) -> None:
    code, _, messages = cli("run", checkpoint, *observation(), "--packed-cache")
    assert code == 2 and "smolvla-edge convert" in messages


def test_the_demo_makes_a_bundle_for_it(cli: Any, tmp_path: Path) -> None:
    statuses = []
    for _ in range(2):
        code, result, _ = cli("demo", "--size", "tiny", "--keep", tmp_path / "d", "--packed-cache")
        assert code == 0
        statuses.append(result["provenance"]["packed_cache"])
    assert statuses == ["written", "hit"]
    assert smolvla_edge.read_bundle(tmp_path / "d-bundle").digest == result["provenance"]["bundle"]
