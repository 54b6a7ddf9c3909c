"""A policy to an export folder: graphs, their weights, tokenizer, manifest.

The folder is made under another name beside its own, and renamed when all of it is there and has
been verified: what looks finished is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import InlinePass

from smolvla_edge.bundle_format import TOKENIZER_FILE
from smolvla_edge.codes import CodeFormat
from smolvla_edge.errors import ExportError, PlanError
from smolvla_edge.export import tensorrt
from smolvla_edge.export.forms import (
    MICROSOFT,
    PLAIN,
    Form,
    attach,
    count_nodes,
    every_graph,
    weight_names,
)
from smolvla_edge.export.functions import DOMAIN, functions
from smolvla_edge.export.graphs import Setting, flow_graph, prefix_graph, vision_graph
from smolvla_edge.export.layers import Arithmetic
from smolvla_edge.export.letterbox import letterbox_graph
from smolvla_edge.export.plain_stored import PlainWeights
from smolvla_edge.export.policy_graph import policy_graph
from smolvla_edge.export.stored import Weights, WeightsFile, embedding_dtype
from smolvla_edge.export.tracing import IR_VERSION
from smolvla_edge.flow_rows import schedule_rows
from smolvla_edge.healed import check_healed
from smolvla_edge.onnx_folder import Graph, Manifest, Port, describe_files, write_manifest
from smolvla_edge.onnx_manifest import FORMS, TARGETS
from smolvla_edge.paths import shown
from smolvla_edge.plan import Plan
from smolvla_edge.plan_fit import check_fit
from smolvla_edge.source import Source
from smolvla_edge.version import __version__

PRECISIONS = ("as-stored", "float32", "float16", "int8", "int4")
EXPRESSED = ("steps", "solver", "schedule", "horizon", "skip", "exit", "warm_start")
"""Fields of a plan that a graph can hold, or takes as inputs."""

Progress = Callable[[str], None]  # what is being done now
Verify = Callable[[Path], Mapping[str, str]]  # the made folder -> files to add, {name: text}


@dataclass(frozen=True)
class Options:
    """How to export. precision: "as-stored" holds a bundle's codes; "int8" and "int4" say which
    codes are expected there; "float32" and "float16" are of what the codes stand for.  letterbox:
    frames of any size go into `policy`; without, letterboxed pixels.  frame: (height, width), of a
    policy that does not resize.  target: "onnxruntime", or "tensorrt" (see tensorrt.py; there is no
    `policy` and no letterbox then)."""

    precision: str = "as-stored"
    form: Form = field(default_factory=Form)
    letterbox: bool = True
    frame: tuple[int, int] | None = None
    target: str = "onnxruntime"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ExportError(
                f"precision: expected one of {', '.join(PRECISIONS)}, got {self.precision!r}"
            )
        if self.form.name not in FORMS:
            raise ExportError(f"form: expected one of {', '.join(FORMS)}, got {self.form.name!r}")
        if self.target not in TARGETS:
            raise ExportError(f"target: expected one of {', '.join(TARGETS)}, got {self.target!r}")
        if self.target == tensorrt.NAME:
            tensorrt.check_options(self.precision, self.form.name)


def export_onnx(
    source: Source,
    dest: str | os.PathLike[str],
    plan: Plan | None = None,
    options: Options | None = None,
    *,
    verify: Verify | None = None,
    progress: Progress | None = None,
    command: str | None = None,
    force: bool = False,
) -> Manifest:
    """Write the export folder `dest`. plan: which layers are left out, and the steps that hold when
    a caller gives no others; the exact one without.

    `verify` is shown the finished folder under its temporary name; if it raises, nothing stays.
    What it returns is written into the folder. Raises ExportError for a precision that the source
    does not have and for a target that exists (unless `force`), PlanError for what a graph cannot
    hold.
    """
    options = options or Options()
    plan = plan or Plan.exact(source.model.num_steps)
    check_plan(plan, source, options.target)
    dest = Path(dest)
    if dest.exists() and not force:
        raise ExportError(f"{dest} exists already: expected a new name; replace it with --force")
    with _making(dest) as folder:
        made = _write(source, folder, plan, options, progress or (lambda doing: None))
        manifest = replace(
            made,
            files=describe_files(folder),
            provenance={**made.provenance, **_provenance(source, command)},
        )
        write_manifest(folder, manifest)
        if verify is not None:
            (progress or (lambda doing: None))("verifying")
            for name, text in verify(folder).items():
                (folder / name).write_text(text, encoding="utf-8")
            manifest = replace(manifest, files=describe_files(folder))
            write_manifest(folder, manifest)
    return manifest


def check_plan(plan: Plan, source: Source, target: str = "onnxruntime") -> None:
    """Raises PlanError for what graphs cannot hold, by name."""
    if target == tensorrt.NAME:
        plan.require(tensorrt.SETTLED, target)
    plan.require(EXPRESSED, "onnx")
    if plan.skip.reuse:
        raise PlanError(
            "skip.reuse: a step of the exported flow cannot know what the one before added; remove "
            "it from the plan"
        )
    check_fit(plan, source.model, source.contract)
    check_healed(plan, source)


def codes_of(source: Source, precision: str) -> dict[str, CodeFormat]:
    """Which weights an export of this precision holds as codes. Raises ExportError."""
    stored = {} if source.bundle is None else dict(source.bundle.codes)
    found = (
        "float" if not stored else " and ".join(sorted({f"{f.bits}-bit" for f in stored.values()}))
    )
    if precision in ("float32", "float16"):
        return {}
    if precision == "as-stored":
        return stored
    bits = int(precision.removeprefix("int"))
    if not any(form.bits == bits for form in stored.values()):
        recipe = "small" if bits == 4 else "int8"
        raise ExportError(
            f"precision {precision}: expected a bundle with {bits}-bit weights, got one with "
            f"{found} weights. Rounding belongs to `quantize`, which measures what it costs: "
            f"smolvla-edge quantize SOURCE OUT --recipe {recipe}, then export OUT"
        )
    return stored


@contextlib.contextmanager
def _making(dest: Path) -> Iterator[Path]:
    """A folder that becomes `dest` when the body ends, and is gone if it fails."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{dest.name}.", dir=dest.parent))
    try:
        yield folder
        folder.chmod(0o755)
        if dest.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{dest.name}.old.", dir=dest.parent))
            os.replace(dest, old / "was")
            os.replace(folder, dest)
            shutil.rmtree(old)
        else:
            os.replace(folder, dest)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(
    source: Source, folder: Path, plan: Plan, options: Options, progress: Progress
) -> Manifest:
    """All files but export.json -> what it will say, but for files and provenance."""
    found = codes_of(source, options.precision)
    how = _arithmetic(source, found, options)
    codes, model = how.codes, source.model
    frame = options.frame
    if model.resize is not None:
        frame = model.resize[1], model.resize[0]
    setting = Setting(
        model,
        source.contract,
        plan,
        how,
        frame or (model.image_size, model.image_size),
    )
    stored = model, source.tensors, codes, how.dtype, options.form.name, setting.grid
    if how.fused:
        schedule = schedule_rows(plan)
        weights = Weights(*stored)
        # Our library computes in float32.
        custom = options.form.custom and how.dtype is torch.float32
        form = replace(options.form, custom=custom)
    else:
        schedule = schedule_rows(plan, pull_limit=source.contract.rtc.max_guidance_weight)
        weights = PlainWeights(*stored, schedule=schedule)
        form = Form(PLAIN, custom=False)
    version = tensorrt.IR_VERSIONS.get(how.opset, IR_VERSION)
    graphs: dict[str, Graph] = {}

    def save(name: str, made: ir.Model) -> None:
        path = folder / f"{name}.onnx"
        graphs[name] = save_graph(made, path, form.custom, version)

    if model.resize is not None and how.fused:
        save("letterbox", letterbox_graph(model.resize))
    makers: dict[str, Callable[[], ir.Model]] = {
        "vision": lambda: vision_graph(setting),
        "prefix": lambda: prefix_graph(setting),
        "flow": lambda: flow_graph(setting, schedule),
    }
    for name, make in makers.items():
        progress(f"{name}: tracing")
        made = make()
        progress(f"{name}: writing weights")
        _attach(made, WeightsFile(folder / f"{name}.weights"), weights, codes, form)
        if not how.fused:
            made.opset_imports.pop(DOMAIN, None)  # of products that are standard ONNX by now
        save(name, made)
    if how.fused:
        progress("policy: joining")
        save("policy", join_policy(setting, folder, schedule, options.letterbox))
    if source.tokenizer_file is not None:
        shutil.copyfile(source.tokenizer_file, folder / TOKENIZER_FILE)
    return Manifest(
        precision=_precision(how),
        form=options.form.name,
        target=options.target,
        opset=how.opset,
        ir=version,
        custom_ops=form.custom,
        plan=plan,
        model=model,
        contract=source.contract,
        graphs=graphs,
        files={},
        provenance={} if how.fused else {"dequantised": tensorrt.dequantised(found, how)},
    )


def _arithmetic(source: Source, codes: Mapping[str, CodeFormat], options: Options) -> Arithmetic:
    if options.target == tensorrt.NAME:
        return tensorrt.arithmetic(codes, options.precision)
    dtype = torch.float16 if options.precision == "float16" else torch.float32
    return Arithmetic(dtype, codes, embedding_dtype(source.tensors, codes, dtype))


def join_policy(setting: Setting, folder: Path, schedule: Any, letterbox: bool) -> ir.Model:
    """The graph `policy` out of those in the folder, whose weights it shares."""

    def load(name: str) -> Callable[[], ir.Model]:
        return lambda: ir.load(folder / f"{name}.onnx")

    return policy_graph(setting, load("vision"), load("prefix"), load("flow"), schedule, letterbox)


def _attach(
    made: ir.Model,
    file: WeightsFile,
    weights: Weights,
    codes: Mapping[str, CodeFormat],
    form: Form,
) -> None:
    """Write the weights of a traced model and put them in the place of its placeholders."""
    graphs = list(every_graph(made.graph))
    names = [name for graph in graphs for name in weight_names(graph)]
    for name in names:
        weights.write(file, name)
    file.close()
    for graph in graphs:
        attach(graph, dict.fromkeys(names, file), codes, form)


def save_graph(
    made: ir.Model, path: Path, custom: bool = True, ir_version: int = IR_VERSION
) -> Graph:
    """Write a graph with the functions that it calls, or, unless `custom`, with their bodies in
    place of the calls -> what the manifest says of it."""
    nodes = [node for graph in every_graph(made.graph) for node in graph]
    called = {node.op_type for node in nodes if node.domain == DOMAIN}
    if any(node.domain == MICROSOFT for node in nodes):
        made.opset_imports[MICROSOFT] = 1
    for proto in functions():
        function = ir.from_proto(proto)
        if function.name in called:
            made.functions[function.identifier()] = function
    if called and custom:
        made.opset_imports[DOMAIN] = 1
    elif called:
        InlinePass()(made)
        made.opset_imports.pop(DOMAIN, None)
    made.ir_version = ir_version
    made.producer_name, made.producer_version = "smolvla-edge", __version__
    ir.save(made, path)
    graph = made.graph
    return Graph(
        path.name,
        count_nodes(made),
        tuple(_port(value) for value in graph.inputs),
        tuple(_port(value) for value in graph.outputs),
    )


def _port(value: ir.Value) -> Port:
    dtype = value.dtype
    if dtype is None or value.shape is None:
        raise ExportError(f"{value.name}: the traced graph has no type for it; this is a bug")
    shape = tuple(side if isinstance(side, int) else str(side) for side in value.shape)
    return Port(value.name or "", dtype.numpy().name, shape)


def _precision(how: Arithmetic) -> str:
    bits = {form.bits for form in how.codes.values()}
    if not bits:
        return "float16" if how.dtype is torch.float16 else "float32"
    return f"int{bits.pop()}" if len(bits) == 1 else "mixed"


def _provenance(source: Source, command: str | None) -> dict[str, Any]:
    return {
        **source.provenance,
        "exporter": f"smolvla-edge {__version__}",
        "command": None if command is None else shown(command),
        "torch": torch.__version__,
        **{name: version_of(name) for name in ("onnx", "onnxscript", "onnx_ir")},
    }
