"""The end-to-end command itself, on the tiny model and without a rival. No time is looked at."""

from __future__ import annotations

import json

import benchmark_helpers  # noqa: F401  (puts the repository on the path)
import pytest

from benchmarks import end_to_end, engines, store


@pytest.fixture
def result(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "out.json"
    words = "--config tiny --no-rival --repeats 2 --retries 0 --patience 0 --threads 1 --no-save"
    languages = ["--cameras", "1", "2", "--language", "longest", "max_length"]
    monkeypatch.setattr("sys.argv", ["x", *words.split(), *languages, "--json", str(path)])
    assert end_to_end.main() == 0
    markdown = capsys.readouterr().out
    return json.loads(path.read_text()), markdown, path


def test_a_run_measures_every_case_and_tells_its_conditions(result):
    run, markdown, _ = result
    assert [(r["engine"], r["cameras"], r["language"]) for r in run["results"]] == [
        (f"smolvla-edge {precision}", cameras, language)
        for language in ("longest", "max_length")
        for cameras in (1, 2)
        for precision in ("float32", "bfloat16")
    ]
    for entry in run["results"]:
        assert entry["samples"] == 2 and entry["repeatable"]
        assert entry["action_difference"] is None  # the reference was not in the run
        assert set(entry["stages_ms"]) == {"preprocess", "vision", "prefix", "flow"}
        assert 0 < sum(entry["stages_ms"].values()) <= 1.5 * entry["p50_ms"]
    assert run["engines"]["smolvla-edge bfloat16"]["info"]["compute"] == "bfloat16"
    assert run["ceilings"]["float32"] > 0
    assert run["ratios"] == [] and "## Ratios" not in markdown
    assert "640x480" in markdown and run["conditions"]["command"] in markdown


def test_a_stored_result_renders_the_same_markdown_again(result, monkeypatch):
    _, markdown, path = result
    monkeypatch.setattr("sys.argv", ["x", str(path)])
    assert store.main() == 0
    assert path.with_suffix(".md").read_text().strip() == markdown.strip()


def test_a_worker_refuses_a_bundle_of_another_precision(pristine, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    float32 = engines.bundle_of(pristine, "float32")
    monkeypatch.setattr(engines, "bundle_of", lambda *_: float32)
    with pytest.raises(engines.WorkerError, match="the worker ended"):
        engines.start_workers([engines.Engine("ours", "bfloat16")], pristine, engines.Start(1))


def test_without_the_rivals_environment_the_remedy_is_named(pristine, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "LEROBOT", tmp_path)
    with pytest.raises(engines.WorkerError, match=r"run .*install.sh or use --no-rival"):
        engines.start_workers([engines.Engine("lerobot", "float32")], pristine, engines.Start(1))
