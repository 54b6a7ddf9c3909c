"""Exports of golden cases: cases of one model share the traced graphs."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import golden_support as support
import torch

from smolvla_edge.errors import ExportError
from smolvla_edge.export.exporter import Options, export_onnx, join_policy, save_graph
from smolvla_edge.export.forms import Form
from smolvla_edge.export.graphs import Setting
from smolvla_edge.export.layers import Arithmetic
from smolvla_edge.flow_rows import schedule_rows
from smolvla_edge.onnx_folder import (
    MANIFEST_FILE,
    describe_files,
    read_export,
    write_manifest,
)
from smolvla_edge.plan import Plan
from smolvla_edge.source import Source, open_source

Exports = Callable[..., Path]

# What a graph does not depend on: it is an input of it, or of Python alone.
_FREE = (
    "num_steps",
    "n_action_steps",
    "chunk_size",
    "tokenizer_max_length",
    "pad_language_to",
    "max_cameras",
)


def open_case(folder: Path) -> Source:
    """The checkpoint folder of a case; see support.open_checkpoint."""
    if (folder / "policy_preprocessor.json").exists():
        return open_source(folder)
    tokenizer = support.TINY / "pipeline" / "tokenizer" / "tokenizer.json"
    return open_source(folder, tokenizer=tokenizer, allow_unnormalized=True)


def frame_of(case: str, source: Source) -> tuple[int, int] | None:
    """What the vision graph of a policy without a resize is made for."""
    if source.model.resize is not None:
        return None
    frames = [frame for frame in support.observation(case).frames if frame is not None]
    height, width = frames[0].shape[2:]
    return height, width


def export_case(case: str, checkpoint: Path, shared: Path, own: Path, form: Form) -> Path:
    """The export folder of a case in `own`: graphs as they are in `shared` for all cases of this
    model, with the case's own manifest and graph `policy`."""
    source = open_case(checkpoint)
    frame = frame_of(case, source)
    kept = {name: value for name, value in source.model.to_dict().items() if name not in _FREE}
    weights = support.ALL_CASES[case]["weights"]
    key = json.dumps([weights, sorted(kept.items()), frame, form.name, form.custom])
    folder = shared / hashlib.sha256(key.encode()).hexdigest()[:16]
    if not folder.exists():
        try:
            export_onnx(source, folder, options=Options(form=form, frame=frame))
        except (ExportError, OSError):  # another process was faster
            if not folder.exists():
                raise
    shutil.copytree(folder, own)  # ONNX refuses weights with several hard links
    (own / MANIFEST_FILE).unlink()
    shutil.copyfile(source.tokenizer_file, own / "tokenizer.json")
    manifest = read_export(folder).manifest
    plan = Plan.exact(source.model.num_steps)
    setting = Setting(
        source.model,
        source.contract,
        plan,
        Arithmetic(torch.float32, {}, torch.float32),
        frame or (source.model.resize or (0, 0))[::-1],
    )
    joined = join_policy(setting, own, schedule_rows(plan), letterbox=True)
    graphs = {**manifest.graphs, "policy": save_graph(joined, own / "policy.onnx")}
    manifest = replace(
        manifest, model=source.model, contract=source.contract, plan=plan, graphs=graphs
    )
    write_manifest(own, replace(manifest, files=describe_files(own)))
    return own
