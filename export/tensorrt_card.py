"""CARD.md of an export for TensorRT: what it is, and the lines that build its engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smolvla_edge.onnx_manifest import Manifest
from smolvla_edge.plan_words import write_words

_WORDS = 12  # of a usual instruction


def card(manifest: Manifest, report: Mapping[str, Any]) -> str:
    """report: what VERIFICATION.json will say."""
    made = manifest.provenance
    graphs = "\n".join(
        f"| {graph.file} | {graph.nodes} | "
        + ", ".join(f"{port.name} {port.dtype} {list(port.shape)}" for port in graph.inputs)
        + " |"
        for graph in manifest.graphs.values()
    )
    floats = ", ".join(f"{count} of {form}" for form, count in report["dequantised"].items())
    errors = "\n".join(
        f"| {row['stage']} | {row['relative']:.1e} | {row['sqnr_db']:.1f} |"
        for row in report["stages"]
    )
    plan = write_words(manifest.plan, manifest.model.num_steps)
    lines = "\n".join(trtexec(manifest))
    return f"""# A SmolVLA policy for TensorRT 10 ({manifest.precision})

Made from `{made["source"]}` by {made["exporter"]}, plan `{plan}`, opset {manifest.opset}.

The plan is settled: its steps and {manifest.plan.rows(manifest.model.chunk_size)} actions a chunk
are constants of the graphs. Frames are letterboxed and the state is normalised outside of them.

Weights of codes that are floats here, because TensorRT has no such form: {floats or "none"}.

| graph | nodes | inputs |
|---|---|---|
{graphs}

## Engines

Not run on a Jetson, nor by TensorRT at all. `docs/jetson.md` says what each option does.

```
{lines}
```

## Errors

{report["observations"]["count"]} made-up observations, {report["runtime"]}, against
{report["reference"]}: largest error over largest magnitude, and signal over noise in dB.

| stage | error | dB |
|---|---|---|
{errors}
"""


def trtexec(manifest: Manifest) -> list[str]:
    """One line a graph: engine, timing cache, and the least, usual and largest inputs."""
    model, contract = manifest.model, manifest.contract
    cameras, most = len(contract.cameras), model.tokenizer_max_length
    height, width = (int(side) for side in manifest.graphs["vision"].input("pixels").shape[2:])
    count = model.tokens_per_image(width, height)
    each = count + (3 if model.add_image_special_tokens else 0)
    layers, _, kv = manifest.graphs["flow"].input("keys").shape
    words = min(_WORDS, most)

    def shapes(graph: str, seen: int, said: int) -> str:
        rows = seen * each + said + 1
        return ",".join(
            {
                "vision": [f"pixels:{seen}x3x{height}x{width}"],
                "prefix": [
                    f"image_tokens:{seen}x{count}x{model.text_width}",
                    f"camera_mask:{seen}",
                    f"tokens:{said}",
                    f"token_mask:{said}",
                ],
                "flow": [f"keys:{layers}x{rows}x{kv}", f"values:{layers}x{rows}x{kv}"]
                + [f"valid:{rows}"],
            }[graph]
        )

    return [
        f"trtexec --onnx={name}.onnx --saveEngine={name}.engine --stronglyTyped "
        f"--timingCacheFile=timing.cache --skipInference \\\n"
        f"    --minShapes={shapes(name, 1, 1)} \\\n"
        f"    --optShapes={shapes(name, cameras, words)} \\\n"
        f"    --maxShapes={shapes(name, cameras, most)}"
        for name in manifest.graphs
    ]
