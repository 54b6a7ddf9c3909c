"""`smolvla-edge inspect`: what a policy needs, what it is made of, and which kernels would run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smolvla_edge.cli import arguments as args
from smolvla_edge.cli import output
from smolvla_edge.cli.loading import load_policy

if TYPE_CHECKING:
    from smolvla_edge.bundle import Bundle
    from smolvla_edge.config import ModelConfig
    from smolvla_edge.safetensors_file import TensorEntry


def inspect(
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="CHECKPOINT|BUNDLE|EXPORT",
            help="A LeRobot checkpoint folder, a Hub id (owner/name), a bundle, or a folder made "
            "by export.",
            show_default=False,
        ),
    ] = None,
    kernels: Annotated[
        bool,
        typer.Option("--kernels", help="The table of native kernels and which of them are chosen."),
    ] = False,
    precision: Annotated[
        bool,
        typer.Option(
            "--precision",
            help="Load it and list every linear layer: bits and bytes in memory, and the kernel "
            "that computes it here.",
        ),
    ] = False,
    device: args.Device = "auto",
    rename: args.Rename = None,
    tokenizer: args.TokenizerFile = None,
    stats: args.Stats = None,
    revision: args.Revision = None,
    allow_unnormalized: args.AllowUnnormalized = False,
    as_json: args.AsJson = False,
) -> None:
    """Show what a policy needs and is made of.

    The contract (cameras, state, action, statistics, task, chunk), the layers, the size by part and
    dtype; with --json also where everything came from. Nothing is computed. With --precision the
    policy is loaded, and what is said of its weights is what is in memory. With --kernels, the
    native dispatch table of this CPU: for each operation the candidates, what they need of the CPU,
    and the chosen one (first that fits); and what CUDA there is in this build and on this machine.

    \b
    Example:
      smolvla-edge inspect my_policy
      smolvla-edge inspect my_bundle --json
      smolvla-edge inspect my_bundle --precision     is low-bit really low-bit?
      smolvla-edge inspect --kernels

    \b
    Read next: smolvla-edge run --help (--image takes the names of the cameras)
    """
    if path is None and not kernels:
        raise typer.BadParameter("name a checkpoint or a bundle, or ask for --kernels")
    result: dict[str, Any] = {}
    if path is not None:
        names = args.pairs(rename, "--rename") or None
        options = {
            "rename": names,
            "tokenizer": tokenizer,
            "stats": stats,
            "revision": revision,
            "allow_unnormalized": allow_unnormalized,
        }
        result = _describe_export(path, options) or _describe(path, options)
        if precision:
            result |= _in_memory(path, device, options)
    elif precision:
        raise typer.BadParameter("--precision needs a checkpoint or a bundle")
    if kernels:
        result["kernels"] = _kernels()
    if as_json:
        output.emit_json(result)
    else:
        _print(result)


def _describe_export(path: str, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """None for what is no export folder."""
    from smolvla_edge.cli.inspect_export import describe_export
    from smolvla_edge.onnx_folder import is_export

    if not is_export(path):
        return None
    return describe_export(path, options)


def _describe(path: str, options: Mapping[str, Any]) -> dict[str, Any]:
    from smolvla_edge.bundle import is_bundle, read_bundle
    from smolvla_edge.checkpoint import read_checkpoint
    from smolvla_edge.healed import healed_for

    if is_bundle(path):
        bundle = read_bundle(path)
        contract = bundle.contract
        if options["rename"] is not None:
            contract = contract.with_rename(options["rename"])
        if options["stats"] is not None:
            contract = contract.with_stats(options["stats"])
        found: Any = bundle
        identity: dict[str, Any] = {
            "kind": "bundle", "digest": bundle.digest, "presets": _presets(bundle),
        }  # fmt: skip
        codes: Mapping[str, Any] = bundle.codes
        dead: Mapping[str, TensorEntry] = {}
    else:
        checkpoint = read_checkpoint(path, **options)
        found, contract, dead = checkpoint, checkpoint.contract, checkpoint.dead
        identity = {"kind": "checkpoint", "digest": None, "presets": []}
        codes = {}
    tokenizer = options["tokenizer"] or found.tokenizer_file
    return {
        "path": str(found.path),
        **identity,
        "tokenizer": None if tokenizer is None else str(tokenizer),
        "contract": contract.to_json(),
        "contract_lines": contract.describe(),
        "model": found.model.to_dict(),
        "layers": _layers(found.model),
        "parts": _parts(found.model, found.tensors, codes),
        "dead": {"tensors": len(dead), "bytes": sum(e.nbytes for e in dead.values())},
        "healed_for": healed_for(found.provenance, found.model.num_steps),
        "provenance": dict(found.provenance),
    }


def _presets(bundle: Bundle) -> list[dict[str, Any]]:
    from smolvla_edge.plan_words import write_words
    from smolvla_edge.presets import known_of, read_presets

    return [
        {
            "name": preset.name,
            "words": write_words(preset.plan, bundle.model.num_steps),
            "plan": preset.plan.to_json(),
            "evidence": preset.evidence,
            "lines": known_of(preset),
        }
        for preset in read_presets(bundle.path, bundle.digest).values()
    ]


def _layers(model: ModelConfig) -> list[tuple[str, str]]:
    """(part, what it is made of)."""
    last = model.last_used_text_layer
    own = sum(
        model.is_self_layer(layer)
        for layer in range(model.text_layers)
        if model.expert_layer_of(layer) is not None
    )
    size = "any size" if model.resize is None else f"{model.resize[0]} x {model.resize[1]}"
    group = f"{model.heads} heads of {model.head_dim} on {model.kv_heads} of keys and values"
    tokens = "" if model.resize is None else f", {model.tokens_per_image(*model.resize)} tokens"
    return [
        (
            "vision",
            f"{model.vision_layers} layers of {model.vision_width} (MLP {model.vision_mlp}, "
            f"{model.vision_heads} heads); frames letterboxed to {size}, "
            f"patches of {model.patch_size}",
        ),
        (
            "connector",
            f"{model.scale_factor} x {model.scale_factor} patches a token{tokens}",
        ),
        (
            "text",
            f"{model.text_layers} layers of {model.text_width} (MLP {model.text_mlp}, {group}); "
            f"of layer {last}, the last that is read, only keys and values run",
        ),
        (
            "expert",
            f"{model.expert_layers} layers of {model.expert_width} (MLP {model.expert_mlp}): "
            f"{own} with self-attention, {model.expert_layers - own} with cross-attention",
        ),
        ("vocabulary", f"{model.vocab} tokens"),
        *_declared(model),
    ]


def _declared(model: ModelConfig) -> list[tuple[str, str]]:
    rows = []
    if model.flow_kind != "flow_matching":
        rows.append(("flow", f"{model.flow_kind}: distilled, one Euler step from noise"))
    if model.exits:
        layers = ", ".join(map(str, model.exits))
        rows.append(("exits", f"trained to give actions after {layers} layers too"))
    return rows


def _parts(model: ModelConfig, tensors: Mapping[str, TensorEntry], codes: Any) -> list[Any]:
    """Sizes by part, in the order of the data's path; codes count with their scales."""
    from math import prod

    from smolvla_edge.bundle_format import PARTS, precision_map
    from smolvla_edge.codes import INPUT_SCALE, SCALE
    from smolvla_edge.names import expected_tensors

    shapes = {name: spec.shape for name, spec in expected_tensors(model).items()}
    groups: dict[str, list[str]] = {part: [] for part in PARTS}
    for name in tensors:
        part = name.partition(".")[0]
        groups[part if part in groups else "heads"].append(name)
    kinds = precision_map(((name, entry.dtype) for name, entry in tensors.items()), codes)
    parts = []
    for part, names in groups.items():
        weights = [name for name in names if not name.endswith((SCALE, INPUT_SCALE))]
        if weights:
            parts.append({
                "part": part,
                "tensors": len(weights),
                "parameters": sum(prod(shapes[name]) for name in weights),
                "bytes": sum(tensors[name].nbytes for name in names),
                "dtypes": dict(sorted(kinds[part].items(), key=lambda item: -item[1])),
            })  # fmt: skip
    return parts


def _in_memory(path: str, device: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The loaded policy's "engine" (info) and "linears"."""
    policy = load_policy(path, backend="native", device=device, **options)
    engine: Any = policy.engine
    return {"engine": engine.info(), "linears": engine.linears()}


def _kernels() -> dict[str, Any]:
    from smolvla_edge.backends.native import load_core

    core = load_core()
    return {
        "cpu": dict(core.cpu_info()),
        "cuda": dict(core.cuda()),
        "table": [dict(row) for row in core.kernel_table()],
    }


def _print(result: Mapping[str, Any]) -> None:
    if "contract" in result:
        output.print_facts(
            f"{result['kind']} {result['path']}",
            [
                *([("digest", result["digest"])] if result["digest"] else []),
                ("tokenizer", result["tokenizer"] or "none found: pass --tokenizer FILE"),
                *([("healed for", result["healed_for"])] if result["healed_for"] else []),
            ],
        )
        output.print_facts("contract", result["contract_lines"])
        if "export" in result:
            from smolvla_edge.cli.inspect_export import print_export

            print_export(result)
        else:
            output.print_facts("layers", result["layers"])
            _print_parts(result)
        for preset in result["presets"]:
            output.print_facts(
                f"preset {preset['name']}", [("plan", preset["words"]), *preset["lines"]]
            )
    if "linears" in result:
        _print_linears(result["linears"])
        _print_engine(result["engine"])
    if "kernels" in result:
        _print_kernels(result["kernels"])


def _print_parts(result: Mapping[str, Any]) -> None:
    rows = [
        (
            part["part"],
            part["tensors"],
            f"{part['parameters']:,}",
            output.megabytes(part["bytes"]),
            ", ".join(f"{count} {dtype}" for dtype, count in part["dtypes"].items()),
        )
        for part in result["parts"]
    ]
    total = [sum(p[key] for p in result["parts"]) for key in ("tensors", "parameters", "bytes")]
    rows.append(("total", total[0], f"{total[1]:,}", output.megabytes(total[2]), ""))
    columns = [
        ("part", "left"),
        ("tensors", "right"),
        ("parameters", "right"),
        ("size", "right"),
        ("dtypes", "left"),
    ]
    output.print_table("weights", columns, rows)
    if result["dead"]["tensors"]:
        output.say(
            f"{result['dead']['tensors']} more tensors never reach an action "
            f"({output.megabytes(result['dead']['bytes'])}); convert leaves them out"
        )


def _print_linears(linears: list[dict[str, Any]]) -> None:
    rows = []
    for row in linears:
        held = f"{row['bits']} bits"
        if row["group"]:
            whole = row["group"] == row["in"]
            held += ", a scale for each row" if whole else f", groups of {row['group']}"
        rows.append((_short(row["name"]), f"{row['in']} x {row['columns']}", held,
                     output.megabytes(row["bytes"]), row["compute"], row["kernel"]))  # fmt: skip
    bits = [8 * row["bytes"] / (row["in"] * row["columns"]) for row in linears]
    weights = [row["in"] * row["columns"] for row in linears]
    mean = sum(b * w for b, w in zip(bits, weights, strict=True)) / sum(weights)
    total = sum(row["bytes"] for row in linears)
    rows.append(("total", f"{sum(weights):,}", f"{mean:.1f} bits a weight in memory",
                 output.megabytes(total), "", ""))  # fmt: skip
    columns = [(name, "left") for name in ("linear layer", "in x out", "held as")]
    columns += [("in memory", "right"), ("products", "left"), ("kernel", "left")]
    output.print_table("linear layers, as they are loaded", columns, rows)


def _print_engine(info: Mapping[str, Any]) -> None:
    """Where it lies, and what it takes there."""
    rows = [
        ("device", " ".join(str(info[name]) for name in ("device", "device_name") if name in info)),
        ("weights", output.megabytes(info["weights_bytes"])),
        ("activations, keys and values", output.megabytes(info["arena_bytes"])),
    ]
    if info["device"] == "cuda":
        rows += [
            ("pinned in the host's memory", output.megabytes(info["pinned_bytes"])),
            ("the GPU has", output.megabytes(info["memory_bytes"])),
            ("stages recorded as graphs", str(info["graphs"])),
        ]
    output.print_facts("in memory", rows)


def _short(name: str) -> str:
    """ "a.q.weight+a.k.weight" -> "a.q+k"."""
    first, *others = (part.removesuffix(".weight") for part in name.split("+"))
    return "+".join([first, *(other.rpartition(".")[2] for other in others)])


def _print_kernels(kernels: Mapping[str, Any]) -> None:
    words = {True: "yes", False: "no"}
    cpu = kernels["cpu"].items()
    output.print_facts("cpu", ((k, words[v] if isinstance(v, bool) else v) for k, v in cpu))
    output.print_table(
        "kernels (for each operation the first supported row is chosen)",
        [(name, "left") for name in ("", "operation", "kernel", "needs", "here")],
        (
            (
                "*" if row["chosen"] else "",
                row["op"],
                row["kernel"],
                row["needs"],
                "chosen" if row["chosen"] else "supported" if row["supported"] else "no",
            )
            for row in kernels["table"]
        ),
    )
    output.say("Rows of one name are one source, compiled for what 'needs' asks of the CPU.")
    _print_cuda(kernels["cuda"])


def _print_cuda(cuda: Mapping[str, Any]) -> None:
    built = ", ".join(f"{sm / 10:.1f}" for sm in cuda["architectures"]) or (
        "emulated" if cuda["emulated"] else "no"
    )
    rows = [("kernels for compute capability", built), ("driver runs CUDA", cuda["driver"] or "-")]
    rows += [
        (f"device {i}", f"{d['name']}, compute capability {d['sm'] / 10:.1f}, "
                        f"{output.megabytes(d['memory_bytes'])}")
        for i, d in enumerate(cuda["devices"])
    ]  # fmt: skip
    if cuda["error"]:
        rows.append(("not used", cuda["error"]))
    output.print_facts("cuda", rows)
