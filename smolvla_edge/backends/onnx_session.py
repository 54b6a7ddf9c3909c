"""ONNX Runtime, held to what was asked of it: providers, options, bound inputs and outputs."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smolvla_edge.errors import (
    BackendError,
    ExportError,
    InputError,
    MissingExtraError,
    SmolVLAEdgeError,
)
from smolvla_edge.onnx_folder import ExportFolder, Graph
from smolvla_edge.ort_ops import library_path

OLDEST = (1, 23)
ACCURACY_LEVELS = (0, 4)
_CPU = "CPUExecutionProvider"
# By device; the first is what the device is, those after it take what it cannot.
PROVIDERS: dict[str, tuple[str, ...]] = {
    "cpu": (_CPU,),
    "cuda": ("CUDAExecutionProvider", _CPU),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", _CPU),
}
# CUDA would round the inputs of float32 products to 10 bits of mantissa.
_PROVIDER_OPTIONS = {"CUDAExecutionProvider": {"use_tf32": "0"}}
_TYPES = {"float32": "float", "int64": "int64", "bool": "bool", "uint8": "uint8"}
_MOST_WORDS = 600  # of ONNX Runtime's own, which may hold whole graphs

_arena_lock = threading.Lock()
_arena_made = False


@dataclass(frozen=True)
class OnnxOptions:
    """What `load` takes for this backend alone.

    accuracy_level: 0, or 4: products with integer weights round the activations to int8, which is
    faster and lossy.  custom_ops: True: our library must be there, False: it is not used, None:
    where there is one for the device.  allow_fallback: run on another provider than the device's.
    """

    accuracy_level: int = 0
    custom_ops: bool | None = None
    allow_fallback: bool = False

    def __post_init__(self) -> None:
        if type(self.accuracy_level) is not int or self.accuracy_level not in ACCURACY_LEVELS:
            raise BackendError(f"accuracy_level must be 0 or 4, got {self.accuracy_level!r}")
        if self.custom_ops is not None and type(self.custom_ops) is not bool:
            raise BackendError(f"custom_ops must be None, True or False, got {self.custom_ops!r}")
        if type(self.allow_fallback) is not bool:
            raise BackendError(f"allow_fallback must be True or False, got {self.allow_fallback!r}")


def require_onnxruntime() -> Any:
    """The module. Raises MissingExtraError without it, or with one that is too old."""
    remedy = "run: pip install 'smolvla-edge[onnxruntime]' (on a GPU: pip install onnxruntime-gpu)"
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(
            f"backend 'onnx' needs ONNX Runtime, which cannot be imported ({error}); {remedy}"
        ) from error
    found = tuple(int(n) for n in re.findall(r"\d+", onnxruntime.__version__)[:2])
    if found < OLDEST:
        raise MissingExtraError(
            f"backend 'onnx' needs ONNX Runtime {OLDEST[0]}.{OLDEST[1]} or newer, got "
            f"{onnxruntime.__version__}; {remedy}"
        )
    return onnxruntime


def choose_providers(ort: Any, device: str, allow_fallback: bool) -> list[str]:
    """What to ask for. Raises BackendError when this ONNX Runtime lacks the device's provider."""
    wanted, there = PROVIDERS[device], ort.get_available_providers()
    if wanted[0] not in there and not allow_fallback:
        raise BackendError(
            f"device={device!r}: expected an ONNX Runtime with {wanted[0]}, this one "
            f"({ort.__version__}) has {', '.join(there)}. Install onnxruntime-gpu in its place, "
            "use device='cpu', or pass allow_fallback=True to run on what there is"
        )
    return [name for name in wanted if name in there]


def find_library(folder: ExportFolder, device: str, asked: bool | None) -> Path | None:
    """The custom-op library to use. Raises BackendError when it was asked for and is not there."""
    wanted = folder.manifest.custom_ops and device == "cpu" if asked is None else asked
    if not wanted:
        return None
    if not folder.manifest.custom_ops:
        raise BackendError(
            f"custom_ops=True: {folder.path} was exported without nodes for our library. Export it "
            "with them, or leave custom_ops out"
        )
    try:
        found: Path = library_path()
    except BackendError as missing:
        if asked is None:  # the graphs run without it
            return None
        raise BackendError(f"custom_ops=True: {missing}") from missing
    return found


class Runtime:
    """The options that all sessions of a policy share."""

    def __init__(
        self, folder: ExportFolder, device: str, threads: int, options: OnnxOptions
    ) -> None:
        self.ort = require_onnxruntime()
        self.device = device
        self.providers = choose_providers(self.ort, device, options.allow_fallback)
        self.library = find_library(folder, device, options.custom_ops)
        self._allow_fallback = options.allow_fallback
        self._threads = threads
        self._entries = {
            "session.qdq_matmulnbits_accuracy_level": str(options.accuracy_level),
            # Threads spin while a call runs and sleep when it has ended: the robot has other work.
            "session.force_spinning_stop": "1",
            # One arena for all: activations of one stage lie where those of the last did.
            "session.use_env_allocators": "1",
            # Not the other format, which nobody has looked through.
            "session.load_model_format": "ONNX",
            **({} if device == "cpu" else {"session.record_ep_graph_assignment_info": "1"}),
        }
        _share_arena(self.ort)

    def open(self, name: str, folder: ExportFolder) -> Session:
        """A graph, ready to run. Raises BackendError, ExportError."""
        path, graph = folder.graph_file(name), folder.manifest.graphs[name]
        providers = [(p, _PROVIDER_OPTIONS.get(p, {})) for p in self.providers]
        with told(f"load {path}"):
            session = self.ort.InferenceSession(str(path), self._options(), providers=providers)
        made = Session(self.ort, session, name, graph, self.memory(session))
        made.check(path)
        self._check_providers(made, path)
        return made

    def memory(self, session: Any) -> str:
        """Where what stays between two sessions lies."""
        return "cpu" if session.get_providers()[0] == _CPU else "cuda"

    def _options(self) -> Any:
        options = self.ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.execution_mode = self.ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = self.ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3  # errors; initializers that may be replaced are no news
        for key, value in self._entries.items():
            options.add_session_config_entry(key, value)
        if self.library is not None:
            with told(f"load the custom-op library {self.library}"):
                options.register_custom_ops_library(str(self.library))
        return options

    def _check_providers(self, made: Session, path: Path) -> None:
        """ONNX Runtime goes on without a provider that cannot start, and only logs it."""
        if self._allow_fallback:
            return
        wanted = PROVIDERS[self.device][0]
        if wanted not in made.providers:
            raise BackendError(
                f"device={self.device!r}: {wanted} could not be started, and ONNX Runtime went on "
                f"with {', '.join(made.providers)}: its log above names the library that is "
                "missing. Repair it, use device='cpu', or pass allow_fallback=True"
            )
        if made.nodes is not None and not made.nodes.get(wanted):
            raise BackendError(
                f"device={self.device!r}: {wanted} takes no node of {path}, all would run on "
                f"{', '.join(made.nodes)}. Use device='cpu', or pass allow_fallback=True"
            )


class Session:
    """One graph. Values are numpy arrays, or what another session's `run` gave."""

    def __init__(self, ort: Any, session: Any, name: str, graph: Graph, memory: str) -> None:
        self._ort = ort
        self._session = session
        self._name = name
        self._ports = {port.name: port for port in graph.inputs}
        self._outputs = [port.name for port in graph.outputs]
        self._graph = graph
        self._memory = memory
        self.providers: list[str] = session.get_providers()
        self.nodes = _assigned(session)

    def check(self, path: Path) -> None:
        """Raises ExportError where the graph is not what the manifest says of it."""
        given = [*self._session.get_inputs(), *self._session.get_overridable_initializers()]
        for kind, ports, found in (
            ("inputs", self._graph.inputs, given),
            ("outputs", self._graph.outputs, self._session.get_outputs()),
        ):
            expected = {port.name: f"tensor({_TYPES[port.dtype]})" for port in ports}
            came = {value.name: value.type for value in found}
            if came != expected:
                raise ExportError(
                    f"{path}: expected the {kind} {expected}, got {came}. Export again"
                )

    def run(self, inputs: Mapping[str, Any], keep: Sequence[str] = ()) -> dict[str, Any]:
        """Outputs by name; those of `keep` stay where the device has them.

        Raises InputError for an array that the graph does not take, BackendError when it fails.
        """
        values = {name: self._value(name, value) for name, value in inputs.items()}
        with told(f"run {self._graph.file}"):
            binding = self._session.io_binding()
            for name, value in values.items():
                binding.bind_ortvalue_input(name, value)
            for name in self._outputs:
                binding.bind_output(name, self._memory if name in keep else "cpu")
            self._session.run_with_iobinding(binding)
            made = dict(zip(self._outputs, binding.get_outputs(), strict=True))
            return {name: made[name] if name in keep else made[name].numpy() for name in made}

    def _value(self, name: str, value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        port = self._ports[name]
        fits = len(value.shape) == len(port.shape) and all(
            isinstance(want, str) or have == want
            for have, want in zip(value.shape, port.shape, strict=True)
        )
        if value.dtype != port.dtype or not fits:
            raise InputError(
                f"{name}: the exported graph {self._graph.file} takes {port.dtype} "
                f"{list(port.shape)}, got {value.dtype} {list(value.shape)}"
            )
        # It refers to the array's memory, which it keeps alive.
        return self._ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value))


@contextmanager
def told(what: str) -> Iterator[None]:
    """ONNX Runtime's exceptions, of many kinds, as BackendError that says what failed."""
    try:
        yield
    except (SmolVLAEdgeError, MemoryError):
        raise
    except Exception as cause:
        reason = str(cause).strip()
        short = reason if len(reason) <= _MOST_WORDS else reason[:_MOST_WORDS] + " ..."
        raise BackendError(
            f"ONNX Runtime could not {what}: {short}. Check the folder with "
            "'smolvla-edge verify --files-only'; if it is whole, another release of ONNX Runtime "
            "or device='cpu' may run it"
        ) from cause


def _share_arena(ort: Any) -> None:
    """Once for a process: memory that sessions which ask for it have in common."""
    global _arena_made
    with _arena_lock:
        if _arena_made:
            return
        info = ort.OrtMemoryInfo(
            "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
        )
        with told("make an arena"):
            ort.create_and_register_allocator(info, ort.OrtArenaCfg(0, -1, -1, -1))
        _arena_made = True


def _assigned(session: Any) -> dict[str, int] | None:
    """How many nodes each provider took; None where ONNX Runtime does not say."""
    try:
        parts = session.get_provider_graph_assignment_info()
    except Exception:  # before 1.24, or not recorded
        return None
    counts: dict[str, int] = {}
    for part in parts:
        counts[part.ep_name] = counts.get(part.ep_name, 0) + len(part.get_nodes())
    return counts or None
