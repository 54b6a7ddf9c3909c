"""Where a checkpoint may lie: in shards, on the Hub, and nowhere that was not asked for."""

from __future__ import annotations

import json
import os
import socket
import sys
import types

import numpy as np
import pytest
from checkpoint_helpers import (
    read_tensors,
    write_tensors,
)

from smolvla_edge import hub
from smolvla_edge.checkpoint import read_checkpoint
from smolvla_edge.errors import (
    CheckpointError,
    MissingExtraError,
)
from smolvla_edge.safetensors_file import read_tensor

STATE = "model.state_proj.weight"


@pytest.fixture
def sharded(folder):
    tensors = read_tensors(folder / "model.safetensors")
    names = list(tensors)
    weight_map = {}
    for index, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{index:05}-of-00002.safetensors"
        write_tensors(folder / file, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_shards_are_one_checkpoint(sharded, pristine):
    split, whole = read_checkpoint(sharded), read_checkpoint(pristine)
    assert split.tensors.keys() == whole.tensors.keys() and split.dead.keys() == whole.dead.keys()
    for name, entry in split.tensors.items():
        assert np.array_equal(read_tensor(entry), read_tensor(whole.tensors[name]))
    assert len(split.provenance["weights"]) == 2


def change_map(change):
    def apply(folder):
        path = folder / "model.safetensors.index.json"
        raw = json.loads(path.read_text())
        change(raw["weight_map"])
        path.write_text(json.dumps(raw))

    return apply


BAD_SHARDS = {
    "no map": (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "weight_map"),
    "no JSON": (lambda f: (f / "model.safetensors.index.json").write_text("x"), "cannot be parsed"),
    "shard missing": (
        lambda f: (f / "model-00002-of-00002.safetensors").unlink(),
        "cannot open .*model-00002",
    ),
    "shard a named pipe": (
        lambda f: [
            (f / "model-00002-of-00002.safetensors").unlink(),
            os.mkfifo(f / "model-00002-of-00002.safetensors"),
        ],
        "model-00002.* has 0 bytes",
    ),
    "tensor not in its shard": (
        change_map(lambda m: m.update({STATE: "model-00001-of-00002.safetensors"})),
        "shard does not hold.*state_proj",
    ),
    "tensor not listed": (change_map(lambda m: m.pop(STATE)), "does not list.*state_proj"),
    **{
        f"path {name!r}": (
            change_map(lambda m, name=name: m.update({STATE: name})),
            "in this folder",
        )
        for name in (
            "../model.safetensors",
            "/etc/model.safetensors",
            "sub/model.safetensors",
            "..\\model.safetensors",
            "C:model.safetensors",
            ".hidden.safetensors",
            "model.bin",
            "a\0.safetensors",
            "",
            7,
        )
    },
}


@pytest.mark.parametrize("kind", BAD_SHARDS)
def test_bad_shards_are_refused(kind, sharded):
    damage, message = BAD_SHARDS[kind]
    damage(sharded)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(sharded)


# The Hub


def test_a_local_folder_never_touches_the_network(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("network used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(hub, "download", refuse)
    assert read_checkpoint(folder).tensors


@pytest.mark.parametrize(
    "path", ["/no/such/folder", "./a", "a/b/c", "a", "../a", "a/..", "a/b..c", "~/x/y"]
)
def test_a_path_that_is_no_folder_and_no_hub_id(path):
    with pytest.raises(CheckpointError, match=r"owner/name, got .* not there"):
        read_checkpoint(path)


def test_a_file_is_no_checkpoint(folder):
    with pytest.raises(CheckpointError, match="not a folder"):
        read_checkpoint(folder / "model.safetensors")


def test_a_revision_is_for_the_hub(folder):
    with pytest.raises(CheckpointError, match=r"revision 'main'.*local folder"):
        read_checkpoint(folder, revision="main")


def test_a_hub_id_without_the_extra_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"smolvla-edge\[hub\]"):
        read_checkpoint("owner/name")


def fake_hub(monkeypatch, snapshot_download):
    module = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_a_hub_id_is_downloaded_at_its_revision(folder, monkeypatch):
    asked = []

    def snapshot_download(repository, revision, allow_patterns):
        asked.append((repository, revision))
        assert "*.safetensors" in allow_patterns and "adapter_config.json" in allow_patterns
        return str(folder)

    fake_hub(monkeypatch, snapshot_download)
    checkpoint = read_checkpoint("owner/name", revision="v1")
    assert asked == [("owner/name", "v1")]
    assert checkpoint.provenance["source"] == "owner/name"
    assert checkpoint.provenance["revision"] == "v1"
    assert checkpoint.provenance["commit"] == folder.name


def test_a_failed_download_is_a_typed_error(monkeypatch):
    def snapshot_download(repository, revision, allow_patterns):
        raise ConnectionError("Name or service not known")

    fake_hub(monkeypatch, snapshot_download)
    with pytest.raises(CheckpointError, match=r"owner/name \(revision main\).*service not known"):
        read_checkpoint("owner/name")
