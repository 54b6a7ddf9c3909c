"""`smolvla-edge inspect` of an ONNX export folder: graphs in place of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smolvla_edge.cli import output


def describe_export(path: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What is shown of the folder; options as of `open_source`."""
    from smolvla_edge.onnx_folder import CUSTOM_DOMAIN
    from smolvla_edge.plan_words import write_words
    from smolvla_edge.source import open_source

    source = open_source(path, exports=True, **options)
    folder = source.export
    if folder is None:
        raise RuntimeError(f"{path} was an export folder and is none any more")
    manifest = folder.manifest
    tokenizer = source.tokenizer_file
    weights = sum(r.nbytes for name, r in manifest.files.items() if name.endswith(".weights"))
    custom = f", with nodes of {CUSTOM_DOMAIN}" if manifest.custom_ops else ""
    return {
        "path": str(folder.path),
        "kind": "export folder",
        "digest": manifest.provenance["bundle"],
        "presets": [],
        "tokenizer": None if tokenizer is None else str(tokenizer),
        "contract": source.contract.to_json(),
        "contract_lines": source.contract.describe(),
        "model": manifest.model.to_dict(),
        "healed_for": None,
        "provenance": dict(manifest.provenance),
        "export": {
            name: value
            for name, value in manifest.to_json().items()
            if name not in ("model", "contract", "provenance")
        },
        "export_lines": [
            ("for", f"{manifest.target}, opset {manifest.opset}, IR {manifest.ir}{custom}"),
            ("precision", f"{manifest.precision}, integers as {manifest.form}"),
            ("plan", write_words(manifest.plan, manifest.model.num_steps)),
            ("weights", output.megabytes(weights)),
        ],
    }


def print_export(result: Mapping[str, Any]) -> None:
    output.print_facts("export", result["export_lines"])
    graphs = result["export"]["graphs"]
    columns = [("graph", "left"), ("nodes", "right"), ("takes", "left"), ("gives", "left")]
    rows = [
        (name, f"{graph['nodes']:,}", _names(graph["inputs"]), _names(graph["outputs"]))
        for name, graph in graphs.items()
    ]
    output.print_table("graphs", columns, rows)


def _names(ports: list[Mapping[str, Any]]) -> str:
    return ", ".join(str(port["name"]) for port in ports)
