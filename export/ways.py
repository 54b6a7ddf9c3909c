"""The ways of computing an exported policy: native, by its three graphs, by `policy` alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.backends.native import NativeBackend, load_core
from smolvla_edge.backends.onnx import OnnxBackend
from smolvla_edge.backends.onnx_session import OnnxOptions, Runtime, Session
from smolvla_edge.export.bounds import PIXELS
from smolvla_edge.export.measure import Found
from smolvla_edge.export.observed import Observed, Seen
from smolvla_edge.export.policy_graph import real_cameras
from smolvla_edge.onnx_folder import ExportFolder
from smolvla_edge.plan import Plan
from smolvla_edge.preprocess import normalize
from smolvla_edge.safetensors_file import TensorEntry
from smolvla_edge.source import Source

Progress = Callable[[int, int], None]


def native(
    source: Source,
    tensors: Mapping[str, TensorEntry],
    plan: Plan,
    observed: Observed,
    traced: int,
    threads: int | None,
    progress: Progress,
) -> tuple[Found, dict[str, Any]]:
    """Float32 arithmetic on these tensors -> what it gave, and the backend's facts."""
    backend = NativeBackend(source.model, tensors, source.contract, threads=threads)
    found = _run(backend, source, plan, observed, traced, progress)
    for seen, _ in zip(observed, range(traced), strict=False):
        found.keep(PIXELS, {f"frame {i}": image for i, image in _pixels(source, seen).items()})
    return found, backend.info()


def graphs(
    folder: ExportFolder,
    source: Source,
    observed: Observed,
    traced: int,
    threads: int | None,
    options: OnnxOptions,
    progress: Progress,
) -> tuple[Found, dict[str, Any]]:
    """Three graphs in ONNX Runtime, and the letterbox beside them."""
    backend = OnnxBackend(folder, source.contract, threads=threads, options=options)
    plan = folder.manifest.plan
    found = _run(backend, source, plan, observed, traced, progress)
    if "letterbox" in folder.manifest.graphs:
        session = _session("letterbox", folder, threads, options)
        for seen, _ in zip(observed, range(traced), strict=False):
            pixels = {
                f"frame {i}": session.run({"frames": frame[None]})["pixels"][0]
                for i, frame in enumerate(seen.frames)
                if frame is not None
            }
            found.keep(PIXELS, pixels)
    return found, backend.info()


def policy_graph(
    folder: ExportFolder,
    source: Source,
    observed: Observed,
    count: int,
    threads: int | None,
    options: OnnxOptions,
    progress: Progress,
) -> Found:
    """The graph `policy` alone, on the first `count` observations."""
    session, found = _session("policy", folder, threads, options), Found()
    ports = {port.name for port in folder.manifest.graphs["policy"].inputs}
    for number, seen in enumerate(observed):
        if number == count:
            break
        progress(number, count)
        made = session.run(_policy_inputs(source, seen, ports))
        found.keep_actions(made["normalized"], made["actions"])
    progress(count, count)
    return found


def _policy_inputs(source: Source, seen: Seen, ports: set[str]) -> dict[str, NDArray[Any]]:
    """Of the cameras that a robot has: those that are always blank are no inputs."""
    order = [seen.names.index(name) for name in real_cameras(source.contract)]
    inputs: dict[str, NDArray[Any]] = {
        "camera_mask": np.array([seen.frames[i] is not None for i in order]),
        "tokens": seen.tokens,
        "state": seen.state,
        "noise": seen.noise,
    }
    if "pixels" in ports:
        present = _pixels(source, seen)
        blank = np.full_like(next(iter(present.values())), -1.0)
        return {**inputs, "pixels": np.stack([present.get(i, blank) for i in order])}
    shape = next(frame.shape for frame in seen.frames if frame is not None)
    for i in order:
        frame = seen.frames[i]
        inputs[seen.names[i]] = np.zeros(shape, np.uint8) if frame is None else frame
    return inputs


def _run(
    backend: NativeBackend | OnnxBackend,
    source: Source,
    plan: Plan,
    observed: Observed,
    traced: int,
    progress: Progress,
) -> Found:
    """Actions of every observation from raw frames; of the first `traced` what comes between."""
    found, model = Found(), source.model
    for number, seen in enumerate(observed):
        progress(number, observed.count)
        made = backend.predict(seen.frames, seen.tokens, seen.state, seen.noise, plan)
        found.keep_actions(made.normalized, made.actions)
        if number >= traced:
            continue
        present = _pixels(source, seen)
        blank = np.full_like(next(iter(present.values())), -1.0)
        pixels = np.stack([present.get(i, blank) for i in range(len(seen.frames))])
        state = np.zeros(model.max_state_dim, np.float32)
        state[: model.state_dim] = normalize(seen.state, source.contract.state)
        mask = np.array([frame is not None for frame in seen.frames])
        words = np.ones(len(seen.tokens), bool)
        found.keep_trace(backend.trace(pixels, mask, seen.tokens, words, state, seen.noise, plan))
    progress(observed.count, observed.count)
    return found


def _pixels(source: Source, seen: Seen) -> dict[int, NDArray[np.float32]]:
    """Place -> float32 [3, height, width] in [-1, 1], as the native core makes them."""
    core, resize = load_core(), source.model.resize
    return {
        i: core.letterbox(frame, *(resize or (frame.shape[1], frame.shape[0])))
        for i, frame in enumerate(seen.frames)
        if frame is not None
    }


def _session(name: str, folder: ExportFolder, threads: int | None, options: OnnxOptions) -> Session:
    count = threads or int(load_core().cpu_info()["threads"])
    return Runtime(folder, "cpu", count, options).open(name, folder)
