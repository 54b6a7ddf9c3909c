"""Malformed files and lying numbers, and what each is refused with, as JSON on stdout.

python tests/unit/refusals.py FOLDER: for comparing one interpreter or build with another. The
inputs are those of the tests; FOLDER must exist and be empty.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import core_helpers
from bundle_helpers import DESCRIPTION, TOKENIZER, WEIGHTS, load
from test_core_refusals import CONFIG_LIES, WRONG
from test_safetensors_file import MALFORMED

from smolvla_edge.bundle_writer import write_bundle
from smolvla_edge.checkpoint import read_checkpoint
from smolvla_edge.errors import SmolVLAEdgeError
from smolvla_edge.safetensors_file import SafetensorsFile
from smolvla_edge.source import open_source
from smolvla_edge.synthetic import make_checkpoint


def refusals(folder: Path) -> dict[str, list[str]]:
    result: dict[str, list[str]] = {}

    def note(name: str, call: Callable[[], object]) -> None:
        try:
            call()
            result[name] = ["accepted", ""]
        except SmolVLAEdgeError as refusal:
            result[name] = [type(refusal).__name__, str(refusal)]

    for name, data in MALFORMED.items():
        path = folder / "bad.safetensors"
        path.write_bytes(data)
        note(f"safetensors: {name}", lambda path=path: SafetensorsFile(path))

    checkpoint = make_checkpoint(folder / "checkpoint", "tiny")
    source = open_source(checkpoint)
    for lie in CONFIG_LIES:
        note(f"engine: {lie}", lambda lie=lie: core_helpers.make(source, **lie))
    engine = core_helpers.make(source)
    for name, wrong in WRONG.items():
        note(
            f"predict: {name}",
            lambda wrong=wrong: engine.predict(**core_helpers.arguments(**wrong)),
        )

    good = folder / "good"
    write_bundle(read_checkpoint(checkpoint), good)
    bad = folder / "bundle"
    shutil.copytree(good, bad)
    for file in (DESCRIPTION, WEIGHTS, TOKENIZER):
        whole = (good / file).read_bytes()
        for at in range(0, len(whole), max(len(whole) // 40, 1)):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << at % 8
            for kind, data in (("cut", whole[:at]), ("flipped", bytes(flipped))):
                (bad / file).write_bytes(data)
                note(f"{file}: {kind} at {at}", lambda: load(bad))
        (bad / file).write_bytes(whole)
    return result


if __name__ == "__main__":
    json.dump(refusals(Path(sys.argv[1])), sys.stdout)
