"""What is fuzzed: every file that a policy is loaded from, one of them replaced at a time.

An input is a text line that names a file, then what stands in it:

    bundle.json                          raw: the rest is the file
    bundle.json edits                    the rest is JSON, [[path, value], ...]: changes to a good
    [[["model", "heads"], -1]]           document ([path] alone deletes), so inputs stay small

Around the replaced file everything is good, and what an attacker would put right (sizes, digests,
the length of a header) is put right, so that the checks behind are reached. `run` returns what was
refused; anything but a SmolVLAEdgeError leaves it, and that is a finding.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_export import make_export

from smolvla_edge.bundle import read_bundle
from smolvla_edge.bundle_format import DESCRIPTION_FILE, TOKENIZER_FILE, WEIGHTS_FILE, digest_of
from smolvla_edge.bundle_writer import write_bundle
from smolvla_edge.checkpoint import read_checkpoint
from smolvla_edge.cli.arguments import parse_state
from smolvla_edge.errors import SmolVLAEdgeError
from smolvla_edge.image_file import read_image
from smolvla_edge.onnx_folder import MANIFEST_FILE, read_export
from smolvla_edge.onnx_wire import scan_model
from smolvla_edge.plan import Plan
from smolvla_edge.policy import load
from smolvla_edge.presets import PRESETS_FILE
from smolvla_edge.synthetic import TINY_VLM, make_checkpoint
from smolvla_edge.vlm_config import VlmConfig

EDITS = " edits"
# Stands for the digest that fits the document: edited bundles are signed again.
SIGNED = "0" * 64
_ONE_STEP = Plan(steps=1, horizon=1)
_MOST_CAMERAS = 4  # that are shown to a policy; more are the same, slower

SMALL_VLM = VlmConfig(
    **{
        **vars(TINY_VLM),
        "text_width": 32, "text_mlp": 32, "heads": 2, "kv_heads": 1, "head_dim": 16,
        "text_layers": 2, "vision_width": 32, "vision_mlp": 32, "vision_heads": 2,
        "vision_layers": 1, "image_size": 32,
    }
)  # fmt: skip
SMALL = {"num_vlm_layers": 2, "resize_imgs_with_padding": [32, 32], "num_steps": 2}


class Target:
    """One folder of good files and what is done with it."""

    def __init__(self, good: dict[str, bytes], folder: Path, use: Callable[[Path], None]) -> None:
        self.good = good
        self.folder = folder
        self._use = use

    def run(self, data: bytes) -> SmolVLAEdgeError | None:
        """Replace a file as `data` says, use the folder, put the file back."""
        name, content = self.split(data)
        if name not in self.good or content is None:
            return None
        try:
            self.put(name, content)
            self._use(self.folder)
        except SmolVLAEdgeError as refusal:
            return refusal
        finally:
            self.restore()
        return None

    def restore(self) -> None:
        for name, content in self.good.items():
            _write(self.folder / name, content)

    def split(self, data: bytes) -> tuple[str, bytes | None]:
        """(file name, its content); None for edits that are no edits."""
        first, _, content = data.partition(b"\n")
        name = first.decode("latin-1")
        if not name.endswith(EDITS):
            return name, content
        name = name.removesuffix(EDITS)
        if name not in self.good:
            return name, None
        return name, edited(self.template(name), content)

    def template(self, name: str) -> bytes:
        """What edits of the file `name` are made to."""
        return self.good[name]

    def put(self, name: str, content: bytes) -> None:
        _write(self.folder / name, content)


class BundleTarget(Target):
    """Replacing a file also corrects what bundle.json says of it."""

    def template(self, name: str) -> bytes:
        good = self.good[name]
        if name != DESCRIPTION_FILE:
            return good
        return json.dumps({**json.loads(good), "digest": SIGNED}).encode()

    def put(self, name: str, content: bytes) -> None:
        path = self.folder / DESCRIPTION_FILE
        if name == WEIGHTS_FILE:
            content += _data_of(self.good[WEIGHTS_FILE])
        super().put(name, content)
        if name == DESCRIPTION_FILE:
            signed = _signed(content)
            if signed is not None:
                _write(path, signed)
        elif name in (WEIGHTS_FILE, TOKENIZER_FILE):
            description = json.loads(self.good[DESCRIPTION_FILE])
            description["files"][name] = {
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
            description["digest"] = digest_of(description)
            _write(path, json.dumps(description).encode())

    def restore(self) -> None:
        """Presets name the bundle's digest, so they are there only when it is their turn."""
        super().restore()
        (self.folder / PRESETS_FILE).unlink()


class ExportTarget(Target):
    """Replacing a file also corrects what export.json says of it."""

    def put(self, name: str, content: bytes) -> None:
        super().put(name, content)
        if name != MANIFEST_FILE:
            manifest = json.loads(self.good[MANIFEST_FILE])
            manifest["files"][name] = {
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
            _write(self.folder / MANIFEST_FILE, json.dumps(manifest).encode())


class CheckpointTarget(Target):
    def put(self, name: str, content: bytes) -> None:
        if name == WEIGHTS_FILE:
            content += _data_of(self.good[WEIGHTS_FILE])
        super().put(name, content)


def make_targets(folder: Path) -> dict[str, Target]:
    """Good files for every target, made in the empty `folder`."""
    checkpoint = make_checkpoint(folder / "made", "tiny", vlm=SMALL_VLM, overrides=SMALL)
    bundle = folder / "bundle"
    write_bundle(read_checkpoint(checkpoint), bundle, command="fuzz")
    digest = json.loads((bundle / DESCRIPTION_FILE).read_text())["digest"]
    presets = {
        "format": "smolvla-edge presets",
        "version": 1,
        "bundle": digest,
        "presets": {"fast": {"plan": {"steps": 1}, "evidence": {"success": 0.5}}},
    }
    (bundle / PRESETS_FILE).write_text(json.dumps(presets))
    good_bundle = BundleTarget(_files(bundle), bundle, _use_bundle)
    good_bundle.restore()

    plain = folder / "checkpoint"
    shutil.copytree(checkpoint, plain)
    shutil.move(plain / "tokenizer" / TOKENIZER_FILE, plain / TOKENIZER_FILE)
    stats = {"observation.state": {"mean": [0.0] * 6, "std": [1.0] * 6}}
    stats["action"] = {"mean": [0.0] * 6, "std": [1.0] * 6}
    (plain / "stats.json").write_text(json.dumps(stats))

    sharded = folder / "sharded"
    shutil.copytree(plain, sharded)
    shard = sharded / "model-00001.safetensors"
    (sharded / WEIGHTS_FILE).rename(shard)
    header = _header_of(shard.read_bytes())
    index = {"weight_map": {name: shard.name for name in header if name != "__metadata__"}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))

    export = folder / "export"
    make_export(export, bundle)

    inputs = folder / "inputs"
    inputs.mkdir()
    (inputs / "frame.ppm").write_bytes(b"P6\n# a comment\n2 3\n255\n" + bytes(range(18)))
    (inputs / "state.json").write_text("[0.5, -1, 2]")
    np.save(inputs / "state.npy", np.arange(3, dtype=np.float32))
    return {
        "bundle": good_bundle,
        "checkpoint": CheckpointTarget(_files(plain), plain, _use_checkpoint),
        "shards": Target(
            _files(sharded, ("model.safetensors.index.json",)), sharded, _use_checkpoint
        ),
        "export": ExportTarget(_files(export), export, _use_export),
        "inputs": Target(_files(inputs), inputs, _use_inputs),
    }


def good_input(target: Target, name: str) -> bytes:
    """The input that changes nothing of the file `name`."""
    content = target.good[name]
    if name == WEIGHTS_FILE:
        content = content[: len(content) - len(_data_of(content))]
    return name.encode() + b"\n" + content


def edited(good: bytes, edits: bytes) -> bytes | None:
    """A good document after `edits`; None when they are none or do not apply."""
    raw = None
    try:
        changes = json.loads(edits)
        if good[:1] != b"{":  # a safetensors file: its header is edited
            document, raw = _header_of(good), _data_of(good)
        else:
            document = json.loads(good)
        for change in changes:
            path, value = change[0], change[1:]
            parent = document
            for step in path[:-1]:
                parent = parent[step]
            if value:
                parent[path[-1]] = value[0]
            else:
                del parent[path[-1]]
        text = json.dumps(document).encode()
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return None
    return text if raw is None else len(text).to_bytes(8, "little") + text + raw


def _use_bundle(folder: Path) -> None:
    _predict(folder)
    read_bundle(folder).verify_files()


def _use_checkpoint(folder: Path) -> None:
    """What can be read can be converted, and what was converted loads."""
    checkpoint = read_checkpoint(folder)
    target = folder.with_name("converted")
    try:
        write_bundle(checkpoint, target)
        _must_load(target)
        _predict(target)
    finally:
        shutil.rmtree(target, ignore_errors=True)
    if (folder / "stats.json").exists():
        read_checkpoint(folder, stats=str(folder / "stats.json"))


def _use_export(folder: Path) -> None:
    """What is read has nothing in it that is not in the folder."""
    export = read_export(folder)
    export.verify_files()
    for name in export.manifest.graphs:
        facts = scan_model(export.graph_file(name).read_bytes(), name)
        for tensor in facts.external:
            size = (folder / tensor.location).stat().st_size
            if os.sep in tensor.location or tensor.offset + tensor.length > size:
                raise AssertionError(f"a graph was read that reaches out: {tensor}")


def _use_inputs(folder: Path) -> None:
    read_image(folder / "frame.ppm")
    parse_state(f"@{folder / 'state.json'}")
    parse_state(f"@{folder / 'state.npy'}")


def _must_load(folder: Path) -> None:
    try:
        read_bundle(folder).verify_tensors()
    except SmolVLAEdgeError as refusal:
        raise AssertionError("a bundle was written that cannot be read") from refusal


def _predict(folder: Path) -> None:
    policy = load(folder, plan=_ONE_STEP, threads=1)
    contract, model = policy.contract, policy.model
    if len(contract.cameras) > _MOST_CAMERAS:
        return
    height, width = (24, 32) if model.resize is not None else (model.image_size,) * 2
    frame = np.full((height, width, 3), 90, np.uint8)
    frames = dict.fromkeys(contract.robot_names().values(), frame)
    policy.predict(frames, np.zeros(contract.state_dim, np.float32), "pick up", seed=1)


def _signed(content: bytes) -> bytes | None:
    """bundle.json with the digest that fits, where it asks for that."""
    try:
        document = json.loads(content)
        if not isinstance(document, dict) or document.get("digest") != SIGNED:
            return None
        return json.dumps({**document, "digest": digest_of(document)}).encode()
    except (ValueError, RecursionError):
        return None


def _files(folder: Path, only: tuple[str, ...] = ()) -> dict[str, bytes]:
    names = only or sorted(path.name for path in folder.iterdir() if path.is_file())
    return {name: (folder / name).read_bytes() for name in names}


def _write(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        path.write_bytes(content)


def _header_of(safetensors: bytes) -> dict[str, Any]:
    header = json.loads(safetensors[8 : 8 + int.from_bytes(safetensors[:8], "little")])
    return dict(header)


def _data_of(safetensors: bytes) -> bytes:
    return safetensors[8 + int.from_bytes(safetensors[:8], "little") :]
