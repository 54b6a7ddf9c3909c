"""Mutations that know what an input is: edits of JSON documents, headers, and plain bytes.

Random bytes rarely get past a JSON parser. Half of the mutations here therefore work on the edits
of fuzz_targets.py: a path into the good document and a value chosen to hurt.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from fuzz_targets import EDITS, Target, good_input

Bytes = Callable[[bytes], bytes]  # changes bytes without knowing what they are

HURTFUL: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 64, 255, 1 << 16, (1 << 24) + 1, 1 << 31, (1 << 31) - 1,
    1 << 32, 1 << 53, 1 << 62, (1 << 63) - 1, 1 << 63, 1 << 64, -(1 << 63), 10**40, 0.0, 0.5, -0.5,
    1e-9, 1e-45, 1e9, 1e38, 1e308, float("nan"), float("inf"), -float("inf"),
    "", "x", "\x00", "\ud800", "é", "F32", "BF16", "F16", "F8_E4M3", "I64", "../x", "/etc/passwd",
    "a" * 600, "observation.state", "action", "MEAN_STD", "MIN_MAX", "QUANTILES", "IDENTITY",
    "VISUAL", "STATE", "ACTION", [], {}, [0], [1, 1], [0, 1 << 62], [1 << 32, 1 << 32], [[]],
    {"a": 1}, [None], ["x"], {"": {}}, [[[[]]]],
]  # fmt: skip


def mutate(target: Target, data: bytes, rng: random.Random, other: Bytes) -> bytes:
    """A neighbour of `data`: changed edits, an edit of a good file, or changed bytes."""
    choice = rng.random()
    names = sorted(target.good)
    if choice < 0.05:
        return good_input(target, rng.choice(names))
    first, _, content = data.partition(b"\n")
    name = first.decode("latin-1").removesuffix(EDITS)
    if name not in target.good:
        name = rng.choice(names)
        first, content = f"{name}{EDITS}".encode(), b"[]"
    if choice < 0.75 and _paths(target, name):
        edits = _parsed(content) if first.endswith(EDITS.encode()) else []
        changed = _changed(target, name, edits, rng)
        return f"{name}{EDITS}\n{json.dumps(changed, separators=(',', ':'))}".encode()
    return first + b"\n" + other(content)


def random_bytes(rng: random.Random) -> Bytes:
    """A stand-in for libFuzzer's own mutations, where there is no libFuzzer."""

    def change(content: bytes) -> bytes:
        data = bytearray(content)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            at = rng.randrange(len(data) + 1)
            match rng.randrange(4):
                case 0 if at < len(data):
                    data[at] ^= 1 << rng.randrange(8)
                case 1 if at < len(data):
                    del data[at : at + rng.choice((1, 1, 2, 8, 64))]
                case 2:
                    data[at:at] = rng.choice((b"\0", b"{", b"}", b'"', b"[" * 40, b"9" * 70, b"\\"))
                case _:
                    begin = rng.randrange(len(data) + 1)
                    data[at:at] = data[begin : begin + rng.choice((1, 4, 32))]
        return bytes(data)

    return change


def _parsed(content: bytes) -> list[Any]:
    try:
        edits = json.loads(content)
    except (ValueError, RecursionError):
        return []
    return list(edits) if isinstance(edits, list) else []


def _changed(target: Target, name: str, edits: list[Any], rng: random.Random) -> list[Any]:
    paths = _paths(target, name)
    edits = [edit for edit in edits if isinstance(edit, list) and edit]
    if edits and rng.random() < 0.2:
        edits.pop(rng.randrange(len(edits)))
    if edits and rng.random() < 0.3:
        at = rng.randrange(len(edits))
        edits[at] = [edits[at][0], _value(target, name, paths, rng)]
        return edits
    path = list(rng.choice(paths))
    kind = rng.random()
    if kind < 0.12:
        return [*edits, [path]]  # delete
    if kind < 0.2:
        return [*edits, [[*path[:-1], rng.choice(HURTFUL)], _value(target, name, paths, rng)]]
    return [*edits, [path, _value(target, name, paths, rng)]]


def _value(target: Target, name: str, paths: list[list[Any]], rng: random.Random) -> Any:
    kind = rng.random()
    if kind < 0.6:
        return rng.choice(HURTFUL)
    value = _at(_document(target, name), rng.choice(paths))  # something that is elsewhere in it
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return rng.choice((value + 1, value - 1, 2 * value, -value, value // 2, float(value)))
    if isinstance(value, list) and value:
        return rng.choice((value[:-1], value + value[:1], value[::-1]))
    return value


_documents: dict[tuple[int, str], Any] = {}


def _document(target: Target, name: str) -> Any:
    """The good document of a file (the header of a safetensors file), or None."""
    key = (id(target), name)
    if key not in _documents:
        content = target.good[name]
        if name.endswith(".safetensors"):
            content = content[8 : 8 + int.from_bytes(content[:8], "little")]
        try:
            _documents[key] = json.loads(content)
        except ValueError:
            _documents[key] = None
    return _documents[key]


def _paths(target: Target, name: str) -> list[list[Any]]:
    document = _document(target, name)
    return list(_walk(document, [])) if isinstance(document, dict) else []


def _walk(value: Any, path: list[Any]) -> Iterator[list[Any]]:
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value[:4])
    for key, inner in items:
        yield [*path, key]
        yield from _walk(inner, [*path, key])


def _at(document: Any, path: list[Any]) -> Any:
    for step in path:
        document = document[step]
    return document
