"""Healing: the neighbours of skipped layers learn to stand in for them (extra torch).

Layer by layer, in the order of the computation, each with what it is really given once the layers
before it have learnt (gaps.py says which, learn.py how). Nothing is trained end to end: minutes on
a CPU for a small policy, and no demonstrations, only observations.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.bundle import Bundle
from smolvla_edge.bundle_writer import Contents, check_target, check_tokenizer, put_bundle
from smolvla_edge.compress.evidence import ActionError, Subject
from smolvla_edge.compress.gaps import Lesson, lessons
from smolvla_edge.compress.observations import Observations
from smolvla_edge.compress.skip import Progress
from smolvla_edge.errors import PlanError, QuantizationError
from smolvla_edge.healed import NOTE, note_of
from smolvla_edge.paths import shown
from smolvla_edge.plan import Plan
from smolvla_edge.plan_fit import check_fit
from smolvla_edge.precision import convert_chunks, stored_dtype
from smolvla_edge.presets import Preset, write_preset
from smolvla_edge.safetensors_file import (
    SafetensorsFile,
    SafetensorsWriter,
    TensorLayout,
    iter_tensor_bytes,
)
from smolvla_edge.source import Source
from smolvla_edge.version import __version__

if TYPE_CHECKING:
    from smolvla_edge.compress.learn import Practice

PRESET = "healed"
# Of a layer that gives keys and values alone; q is stored as k and v are, with which it is packed.
_FOR_KEYS = ("norm1.", "attn.q.", "attn.k.", "attn.v.")


@dataclass(frozen=True)
class Learnt:
    """A lesson and its loss over all samples (learn.py) before and after."""

    lesson: Lesson
    loss_before: float
    loss_after: float

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self.lesson), "loss_before": self.loss_before, "loss_after": self.loss_after
        }  # fmt: skip


@dataclass(frozen=True)
class Healed:
    """The bundle, and the action error of its plan on held-out observations (rms as a share of the
    range, executed rows, against the exact plan in float32) with the old weights and with these."""

    bundle: Bundle
    plan: Plan
    learnt: Sequence[Learnt]
    error_before: float
    error_after: float


def heal(
    source: Source,
    dest: str | os.PathLike[str],
    plan: Plan,
    observations: Observations,
    held_out: Observations,
    *,
    steps: int = 400,
    batch: int = 16,
    rate: float = 3e-4,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress = lambda what, done, total: None,
    force: bool = False,
    command: str | None = None,
) -> Healed:
    """Write the bundle `dest` for `plan`, which skips layers and says no more than steps besides.

    Each layer learns in `steps` steps of `batch` of its calls (learn.py says how). Observation i
    draws its noise from seed + i, the held-out ones from seeds after those.
    Healed matrices are stored in float32, or as `source` stores them where it computes in bfloat16.
    Raises QuantizationError for a source of codes or one that was healed before, PlanError for a
    plan that cannot be healed, BundleError for the target, MissingExtraError without torch.
    """
    _check(source, plan)
    check_target(Path(dest), force)
    todo = lessons(source.model, plan.skip)
    import smolvla_edge.backends.torch  # noqa: F401  (says what to install when torch is missing)
    from smolvla_edge.compress.learn import Practice
    from smolvla_edge.compress.lesson_samples import Classroom

    practice = Practice(steps, batch, rate, seed)
    seen = observations.first(len(observations))
    classroom = Classroom(source, seen, todo, plan, seed=seed, threads=threads, progress=progress)
    learnt = [_learn(classroom, lesson, practice, progress) for lesson in todo]
    weights: dict[str, NDArray[np.float32]] = {}
    for lesson in todo:
        weights |= _weights(source, lesson, classroom.layer(lesson))
    with tempfile.TemporaryDirectory(prefix="smolvla-edge-") as folder:
        healed = _with(source, weights, Path(folder) / "healed.safetensors")
        before, after = _errors(source, healed, plan, held_out, seed + len(seen), threads, progress)
        note = {
            "plan": plan.to_json(),
            "calibration": seen.evidence(),
            "practice": asdict(practice),
            "learnt": [item.to_json() for item in learnt],
            "held_out": held_out.evidence(),
            "action_error_before": before,
            "action_error_after": after,
        }
        bundle = _write(source, healed, dest, note, force, command)
    write_preset(bundle.path, bundle.digest, Preset(PRESET, plan))
    return Healed(bundle, plan, learnt, before, after)


def _check(source: Source, plan: Plan) -> None:
    if any(entry.dtype in ("I8", "U8") for entry in source.tensors.values()):
        raise QuantizationError(
            "expected floating-point weights to heal, got codes: heal first, and quantise what "
            "comes of it"
        )
    if note_of(source):
        raise QuantizationError(
            "expected weights that know all their layers, got healed ones: heal the bundle that "
            "they were made from, for the whole list"
        )
    if plan != Plan(steps=plan.steps, skip=replace(plan.skip, reuse=())):
        raise PlanError(
            "healing is for layers that never run: expected a plan of skip.vision, skip.vlm, "
            f"skip.expert and steps, got {plan.to_json()}"
        )
    check_fit(plan, source.model, source.contract)


def _learn(classroom: Any, lesson: Lesson, practice: Practice, progress: Progress) -> Learnt:
    from smolvla_edge.compress.learn import learn
    from smolvla_edge.compress.lesson_samples import values_of

    before, after = learn(
        classroom.layer(lesson),
        classroom.samples(lesson),
        partial(values_of, lesson),
        practice,
        partial(progress, f"{lesson.module} learns"),
    )
    return Learnt(lesson, before, after)


def _weights(source: Source, lesson: Lesson, layer: Any) -> dict[str, NDArray[np.float32]]:
    """What the lesson may have changed, by the tensors' names."""
    found = {}
    for name, value in layer.state_dict().items():
        whole = f"{lesson.module}.{name}"
        if whole in source.tensors and (not lesson.keys_only or name.startswith(_FOR_KEYS)):
            found[whole] = value.detach().float().cpu().numpy()
    return found


def _with(source: Source, weights: Mapping[str, NDArray[np.float32]], path: Path) -> Source:
    """The source with these weights, which are written to `path` as the bundle will hold them."""
    cross = source.model.cross_expert_layers()
    layouts = []
    for name in weights:
        entry, dtype = source.tensors[name], "F32"
        if source.compute == "bfloat16":
            dtype = stored_dtype(name, entry, cross, "bfloat16")
        layouts.append(TensorLayout(name, dtype, entry.shape))
    with SafetensorsWriter(path, layouts, {}) as writer:
        for layout in writer.order:
            raw = weights[layout.name].astype("<f4").tobytes()
            writer.write(layout.name, convert_chunks([raw], "F32", layout.dtype, layout.name))
    return replace(source, tensors={**source.tensors, **SafetensorsFile(path).entries})


def _errors(
    source: Source,
    healed: Source,
    plan: Plan,
    held_out: Observations,
    seed: int,
    threads: int | None,
    progress: Progress,
) -> tuple[float, float]:
    """Of the plan on the native engine, with the old weights and with the new."""
    rows = source.contract.n_action_steps
    seen = held_out.first(len(held_out))

    def chunks(weights: Source, plan: Plan | None, compute: str, what: str) -> NDArray[np.float32]:
        subject = Subject(weights, plan=plan, compute=compute, threads=threads)
        return subject.chunks(seen, seed, partial(progress, what))[:, :rows]

    exact = chunks(source, None, "float32", "held out: exact")
    before = chunks(source, plan, source.compute, "held out: skipped")
    after = chunks(healed, plan, source.compute, "held out: healed")
    return (
        ActionError.between(before, exact).rms_of_range,
        ActionError.between(after, exact).rms_of_range,
    )


def _write(
    source: Source,
    healed: Source,
    dest: str | os.PathLike[str],
    note: Mapping[str, Any],
    force: bool,
    command: str | None,
) -> Bundle:
    if source.bundle is None:
        check_tokenizer(str(source.provenance["source"]), source.tokenizer_file, source.contract)
    contents = Contents(
        model=source.model,
        contract=source.contract,
        tokenizer_file=source.tokenizer_file,
        layouts=[
            TensorLayout(name, entry.dtype, entry.shape) for name, entry in healed.tensors.items()
        ],
        chunks=lambda layout: iter_tensor_bytes(healed.tensors[layout.name]),
        provenance={
            **source.provenance,
            "converter": f"smolvla-edge {__version__}",
            "command": None if command is None else shown(command),
            NOTE: dict(note),
        },
        compute=source.compute,
    )
    return put_bundle(contents, dest, force=force)
