"""Packages that are required, and the extras with what each is for."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import metadata

from smolvla_edge.doctor.finding import FAIL, PASS, WARN, Finding

VersionOf = Callable[[str], "str | None"]

# Oldest versions, as in pyproject.toml (a test compares).
REQUIRED = {
    "numpy": "1.24",
    "safetensors": "0.4",
    "tokenizers": "0.15",
    "typer": "0.12",
    "rich": "13",
}
EXTRAS = {
    "torch": {"torch": "2.2"},
    "onnxruntime": {"onnxruntime": "1.23"},
    "export": {
        "torch": "2.8",
        "onnx": "1.18",
        "onnxscript": "0.5",
        "onnxruntime": "1.23",
        "optimum": "2.1",
        "requests": "2.28",
    },
    "hub": {"huggingface_hub": "0.34"},
    "viz": {"matplotlib": "3.7", "pillow": "10"},
    "data": {"pyarrow": "15", "pillow": "10", "av": "12"},
    "ray": {"ray": "2.9"},
    "tune": {"optuna": "4", "matplotlib": "3.7"},
    "quant": {"torch": "2.2", "bitsandbytes": "0.45"},
    "triton": {"torch": "2.4", "triton": "3.6"},
    "sim": {
        "metaworld": "3.0.0",
        "mujoco": "3.8.1",
        "gymnasium": "1.3",
        "packaging": "23",
        "pillow": "10",
    },
}
EXACT = ("metaworld", "mujoco")  # where a newer version is another benchmark, or none
_PURPOSE = {
    "torch": "the reference: verify, backend='torch'",
    "onnxruntime": "backend='onnx': running ONNX exports",
    "export": "making ONNX exports",
    "hub": "checkpoints by owner/name",
    "viz": "plots, and image files other than PPM",
    "data": "recorded LeRobot datasets",
    "ray": "eval on a cluster",
    "tune": "the search over plans",
    "quant": "quantize --data, and bitsandbytes' formats",
    "triton": "the kernels of smolvla_edge.kernels, on a GPU",
    "sim": "eval, and the demo's closed loop",
}


def installed_version(name: str) -> str | None:
    """The version of an installed distribution, without importing it; None when there is none."""
    try:
        return metadata.version(name)
    except (metadata.PackageNotFoundError, OSError, ValueError):
        return None


def check_required(version_of: VersionOf) -> Finding:
    found = {name: version_of(name) for name in REQUIRED}
    wrong = [
        f"{name} {version or 'missing'} (needs {REQUIRED[name]} or newer)"
        for name, version in found.items()
        if version is None or _older(version, REQUIRED[name])
    ]
    facts = {"versions": found}
    if wrong:
        names = " ".join(f"'{name}>={oldest}'" for name, oldest in REQUIRED.items())
        return Finding(
            "software", "packages", FAIL, "; ".join(wrong), f"pip install {names}", facts
        )
    message = ", ".join(f"{name} {version}" for name, version in found.items())
    return Finding("software", "packages", PASS, message, facts=facts)


def check_extra(extra: str, version_of: VersionOf) -> Finding:
    """An extra that is not installed is no fault; one that is half there or too old is."""
    wanted = EXTRAS[extra]
    found = {name: version_of(name) for name in wanted}
    facts = {"extra": extra, "versions": found}
    check = f"extra {extra}"
    install = f"pip install 'smolvla-edge[{extra}]'"
    if all(version is None for version in found.values()):
        message = f"not installed; for {_PURPOSE[extra]}: {install}"
        return Finding("software", check, PASS, message, facts=facts)
    parts = ", ".join(f"{name} {version or 'missing'}" for name, version in found.items())
    if any(v is None or _unfit(name, v, wanted[name]) for name, v in found.items()):
        needs = ", ".join(
            f"{name} {'exactly ' if name in EXACT else ''}{oldest}"
            for name, oldest in wanted.items()
        )
        message = f"{parts}: incomplete or not what is needed: {needs}"
        return Finding("software", check, WARN, message, install, facts)
    return Finding("software", check, PASS, parts, facts=facts)


def _unfit(name: str, version: str, wanted: str) -> bool:
    return version != wanted if name in EXACT else _older(version, wanted)


def _older(version: str, oldest: str) -> bool:
    return _numbers(version) < _numbers(oldest)


def _numbers(version: str) -> tuple[int, ...]:
    """Of "2.13.0+cpu": (2, 13, 0). Enough for "at least"; pre-releases count as the release."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()
