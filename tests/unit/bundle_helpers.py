"""Ways to damage a bundle, and the load that every policy does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smolvla_edge.bundle import Bundle, read_bundle
from smolvla_edge.bundle_format import digest_of
from smolvla_edge.errors import BundleError

WEIGHTS = "model.safetensors"
DESCRIPTION = "bundle.json"
TOKENIZER = "tokenizer.json"


def describe(
    folder: Path, change: Callable[[dict[str, Any]], None], *, resign: bool = True
) -> None:
    """Change bundle.json; with `resign` its digest is made to match, as an attacker would."""
    path = folder / DESCRIPTION
    data = json.loads(path.read_text())
    change(data)
    if resign:
        data["digest"] = digest_of(data)
    path.write_text(json.dumps(data))


def header(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the header of the weights file and keep the description's size in step."""
    path = folder / WEIGHTS
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    fields = json.loads(raw[8 : 8 + length])
    change(fields)
    text = json.dumps(fields).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    describe(folder, lambda d: d["files"][WEIGHTS].update(bytes=path.stat().st_size))


def load(folder: Path) -> Bundle:
    """What every load of a policy does."""
    bundle = read_bundle(folder)
    bundle.verify_tensors()
    return bundle


def refused(folder: Path, *parts: str) -> None:
    with pytest.raises(BundleError) as caught:
        load(folder)
    for part in parts:
        assert part in str(caught.value)
