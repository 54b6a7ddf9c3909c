"""Where tokenizer.json is looked for, in order, and what is said when there is none."""

from __future__ import annotations

import os
import socket

import pytest

from smolvla_edge.errors import TokenizerError
from smolvla_edge.tokenizer_search import find_tokenizer, missing_tokenizer

VLM = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
CACHED = "models--HuggingFaceTB--SmolVLM2-500M-Video-Instruct"


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """An empty Hugging Face cache, and no network."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(socket, "socket", None)
    return tmp_path / "home" / ".cache" / "huggingface" / "hub"


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    return path


def test_the_order_of_the_search(tmp_path, cache):
    folder = tmp_path / "checkpoint"
    assert find_tokenizer(folder, VLM) is None
    for place in (  # each one before those already there
        cache / CACHED / "snapshots" / "abc" / "tokenizer.json",
        folder / "tokenizer" / "tokenizer.json",
        folder / "tokenizer.json",
    ):
        put(place)
        assert find_tokenizer(folder, VLM) == place
    explicit = put(tmp_path / "mine.json")
    assert find_tokenizer(folder, VLM, explicit) == explicit


def test_the_main_revision_wins_over_newer_ones(tmp_path, cache):
    snapshots = cache / CACHED / "snapshots"
    main = put(snapshots / "old" / "tokenizer.json")
    newest = put(snapshots / "new" / "tokenizer.json")
    os.utime(main.parent, (1, 1))
    assert find_tokenizer(tmp_path, VLM) == newest
    put(cache / CACHED / "refs" / "main").write_text("old\n")
    assert find_tokenizer(tmp_path, VLM) == main
    main.unlink()
    assert find_tokenizer(tmp_path, VLM) == newest


@pytest.mark.parametrize(
    ("variable", "below"),
    [("HF_HUB_CACHE", ""), ("HF_HOME", "hub"), ("XDG_CACHE_HOME", "huggingface/hub")],
)
def test_the_cache_is_where_the_environment_says(variable, below, tmp_path, monkeypatch):
    monkeypatch.setenv(variable, str(tmp_path / "elsewhere"))
    place = put(tmp_path / "elsewhere" / below / CACHED / "snapshots" / "abc" / "tokenizer.json")
    assert find_tokenizer(tmp_path, VLM) == place


@pytest.mark.parametrize("name", ["../../etc", "/etc/passwd", "a/../b", "", "a/b/c", "x" * 300])
def test_a_strange_vlm_name_is_never_a_path(name, tmp_path):
    put(tmp_path / "b" / "snapshots" / "abc" / "tokenizer.json")
    assert find_tokenizer(tmp_path / "checkpoint", name) is None
    assert "Copy the tokenizer.json" in str(missing_tokenizer(tmp_path, name))


def test_a_missing_explicit_file_is_refused_even_with_others_there(tmp_path):
    put(tmp_path / "tokenizer.json")
    with pytest.raises(TokenizerError, match=r"other\.json"):
        find_tokenizer(tmp_path, VLM, tmp_path / "other.json")


def test_the_error_holds_the_command(tmp_path):
    folder = tmp_path / "my checkpoint"
    error = missing_tokenizer(folder, VLM)
    assert isinstance(error, TokenizerError)
    assert (
        f"curl -fL -o '{folder}/tokenizer.json' "
        f"https://huggingface.co/{VLM}/resolve/main/tokenizer.json" in str(error)
    )
    assert "--tokenizer FILE" in str(error)
