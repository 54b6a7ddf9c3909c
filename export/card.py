"""CARD.md: half a page for whoever finds the folder. Its snippet runs as it stands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from smolvla_edge.onnx_folder import ExportFolder, Port
from smolvla_edge.plan_words import write_words
from smolvla_edge.source import Source

_MEGA = 1e6
_ENCODE = """tokenizer = Tokenizer.from_file("tokenizer.json")
tokenizer.no_truncation(), tokenizer.no_padding()
words = tokenizer.encode("pick up the cube{newline}").ids"""


def card(folder: ExportFolder, source: Source, report: Mapping[str, Any]) -> str:
    """report: what VERIFICATION.json will say."""
    parts = [
        f"# A SmolVLA policy as ONNX graphs ({folder.manifest.precision})",
        _what(folder, source),
        _snippet(folder),
        "## Graphs",
        _graphs(folder),
        "## Weights",
        _weights(report["audit"]["weights"]) + _widened(report),
        f"## Errors, on {_seen(report)}",
        _errors(report),
        "## Lossy",
        _lossy(report),
        f"## Not run\n\n{', '.join(report['not_run'])}: these graphs ran on the CPU of one "
        f"{report['machine']['architecture']} machine, ONNX Runtime "
        f"{report['versions']['onnxruntime']}, threads: {report['machine']['threads']}.",
    ]
    return "\n\n".join(parts) + "\n"


def _what(folder: ExportFolder, source: Source) -> str:
    manifest = folder.manifest
    model, steps = manifest.model, manifest.model.num_steps
    made, rows = manifest.provenance, manifest.plan.rows(model.chunk_size)
    bundle = f", bundle {made['bundle'][:12]}" if made["bundle"] else ""
    return (
        f"Camera frames, joint state and an instruction go in, {rows} actions in robot units come "
        f"out. Made from `{made['source']}`{bundle} by "
        f"{made['exporter']}, plan `{write_words(manifest.plan, steps)}`, form {manifest.form}, "
        f"opset {manifest.opset}. Everything measured is in VERIFICATION.json."
    )


def _snippet(folder: ExportFolder) -> str:
    """Python of at most 25 lines that needs numpy, onnxruntime and tokenizers."""
    manifest = folder.manifest
    model, contract = manifest.model, manifest.contract
    policy = manifest.graphs["policy"]
    level = ""
    if manifest.precision not in ("float32", "float16") and manifest.form != "matmulnbits":
        level = (
            "# Without this line products with integer weights are faster, and lossy.\n"
            'options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")\n'
        )
    newline = "\\n" if contract.tokenizer.newline else ""
    tokenizers, words = "from tokenizers import Tokenizer\n", _ENCODE.format(newline=newline)
    if folder.tokenizer_file is None:
        tokenizers, words = "", "words = [0]  # token ids: this folder has no tokenizer"
    lines = []
    for port in policy.inputs:
        if port.dtype == "uint8" or port.name == "pixels":
            lines.append(f'    "{port.name}": {_example(port)},')
    rows = manifest.plan.rows(model.chunk_size)
    frames = "\n".join(lines)
    return f"""## Run it

With numpy, onnxruntime (1.23 or newer) and tokenizers, in this folder:

```python
import numpy as np
import onnxruntime as ort
{tokenizers}
options = ort.SessionOptions()
options.log_severity_level = 3  # inputs with defaults are no news
{level}policy = ort.InferenceSession("policy.onnx", options, providers=["CPUExecutionProvider"])
{words}
if len(words) > {contract.tokenizer.max_length}:
    raise SystemExit("never cut a prompt: shorten it")
actions, normalized = policy.run(["actions", "normalized"], {{
{frames}
    "tokens": np.array(words, np.int64),
    "state": np.zeros({model.state_dim}, np.float32),  # robot units
    "noise": np.random.default_rng().standard_normal(({rows}, {model.max_action_dim}), np.float32),
}})
print(actions.shape)  # robot units
```

Frames are RGB. A camera that is not there: its `camera_mask` is false, its frame anything.
Through this package: `smolvla_edge.load(folder)`; with graphs of your own loop: docs/onnx.md."""


def _example(port: Port) -> str:
    if port.name == "pixels":
        return f"np.zeros({tuple(port.shape)}, np.float32)"
    height, width = (side if isinstance(side, int) else usual
                     for side, usual in zip(port.shape, (480, 640), strict=False))  # fmt: skip
    return f"np.zeros(({height}, {width}, 3), np.uint8)"


def _graphs(folder: ExportFolder) -> str:
    manifest, rows = folder.manifest, []
    for graph in manifest.graphs.values():
        stem = graph.file.removesuffix(".onnx")
        weights = manifest.files.get(f"{stem}.weights")
        size = manifest.files[graph.file].nbytes + (0 if weights is None else weights.nbytes)
        inputs = ", ".join(
            f"{port.name} {port.dtype} [{', '.join(map(str, port.shape))}]" for port in graph.inputs
        )
        rows.append((graph.file, str(graph.nodes), f"{size / _MEGA:.1f}", inputs))
    note = "\n\n`policy.onnx` reads the weights of the other three."
    return _table(("file", "nodes", "MB", "inputs"), rows) + note


def _weights(weights: Mapping[str, Any]) -> str:
    sizes: Mapping[str, int] = weights["bytes_by_dtype"]
    whole = sum(sizes.values()) or 1
    rows = [
        (kind, f"{size / _MEGA:.2f}", f"{100 * size / whole:.1f}")
        for kind, size in sorted(sizes.items(), key=lambda item: -item[1])
    ]
    said = (
        f"\n\n{weights['floats_compared']} tensors of floats are the source's own, to the bit or "
    )
    said += "rounded once to the type above."
    if weights["codes_compared"]:
        said += (
            f" {weights['codes_compared']} integer weights are the bundle's own codes and scales, "
            "bit for bit; none of them is there as floats too."
        )
    return _table(("type", "MB", "percent"), rows) + said


def _widened(report: Mapping[str, Any]) -> str:
    graphs = report["audit"]["operators"].values()
    count = sum(graph["widened_in_every_call"] for graph in graphs)
    if not count:
        return ""
    return (
        f" ONNX Runtime {report['versions']['onnxruntime']} widens {count} of them in every call, "
        "which is right and slow; newer releases multiply by them as they are."
    )


def _errors(report: Mapping[str, Any]) -> str:
    rows = []
    for stage in report["stages"]:
        rows.append((stage["stage"], *_numbers(stage), _limit(stage)))
    table = _table(
        (
            "stage",
            "largest error, of largest magnitude (robot units: or range)",
            "SQNR dB",
            "bound",
        ),
        rows,
    )
    shares = [f"standard ONNX {_share(report)}"]
    for name, key in (
        ("our operators", "custom_operators"),
        ("accuracy_level 4", "accuracy_level_4"),
        ("the bundle, native", "bundle_native"),
    ):
        if report[key] is not None:
            shares.append(f"{name} {_share(report[key])}")
    return (
        f"Standard ONNX against {report['reference']}. What comes before the actions was compared "
        f"on {report['traced']} observations.\n\n{table}\n\nActions against the same reference, "
        f"rms in percent of their range: {', '.join(shares)}."
    )


def _share(part: Mapping[str, Any]) -> str:
    return f"{100 * part['action_error']['rms_of_range']:.2g} %"


def _numbers(stage: Mapping[str, Any]) -> tuple[str, str]:
    decibels = stage["sqnr_db"]
    return f"{stage['relative']:.1e}", "-" if decibels is None else f"{decibels:.1f}"


def _limit(stage: Mapping[str, Any]) -> str:
    if stage["bound"] is not None:
        return f"{stage['bound']:.1e}"
    return "-" if stage["floor_db"] is None else f"{stage['floor_db']:g} dB"


def _lossy(report: Mapping[str, Any]) -> str:
    lines = []
    if report["lossy"]:
        lines.append("These graphs round rows to int8 before they meet integer weights.")
    if report["precision"] == "float16":
        lines.append("Weights and activations are rounded to float16.")
    if report["accuracy_level_4"] is not None:
        lines.append(
            "ONNX Runtime's default (accuracy_level 4) rounds the rows that meet integer weights "
            "to int8; the line in the snippet turns that off."
        )
    custom = report["custom_operators"]
    if custom is not None and custom["rounds_rows_to_int8"]:
        lines.append("So does this package's library of operators, in products with 4-bit weights.")
    return " ".join(lines) or "Nothing: all arithmetic is float32."


def _seen(report: Mapping[str, Any]) -> str:
    seen = report["observations"]
    made = (
        "made-up observations" if seen["data"] == "synthetic" else f"observations of {seen['data']}"
    )
    return f"{seen['count']} {made}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
