"""JSON from untrusted files: size-capped, UTF-8, no duplicate keys, no surprises from the parser.

Python's `json` keeps the last of two equal keys, which lets a file show one value to a reviewer and
another to the program; it also spends quadratic time on absurdly long numbers, whoever prints
or hashes a value nested as deeply as the parser allows runs out of stack, and a string with half a
surrogate pair in it can be neither printed nor written to a file again.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any, NoReturn

from smolvla_edge.errors import CheckpointError, SmolVLAEdgeError

MAX_JSON_BYTES = 64 << 20  # the largest honest file here, a tokenizer.json, has 3.5 MB
MAX_INT_DIGITS = 64
MAX_DEPTH = 32  # bundle.json, the deepest honest one, has 5
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # UTF-8 itself can hold none


class _Malformed(ValueError):
    """What is wrong with the text; the caller adds the file's name."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise _Malformed(f"the key {key!r} appears twice in one object")
        result[key] = value
    return result


def _short_int(digits: str) -> int:
    if len(digits) > MAX_INT_DIGITS:
        raise _Malformed(f"a number of {len(digits)} digits")
    return int(digits)


def parse_json_object(
    data: bytes, where: str, error: type[SmolVLAEdgeError] = CheckpointError
) -> dict[str, Any]:
    """The JSON object in `data`; `error` naming `where` if it is anything else."""

    def refuse(reason: str) -> NoReturn:
        raise error(f"{where}: expected a JSON object, but {reason}") from None

    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_int=_short_int)
    except UnicodeDecodeError as cause:
        refuse(f"byte {cause.start} is not UTF-8")
    except RecursionError:
        refuse("it is nested too deeply")
    except ValueError as cause:  # JSONDecodeError and _Malformed
        refuse(f"it cannot be parsed: {cause}")
    if not isinstance(value, dict):
        refuse(f"it holds a {type(value).__name__}")
    if _is_deep(value):
        refuse("it is nested too deeply")
    if _SURROGATE.search(text) and not _is_text(value):
        refuse("a string in it holds half a surrogate pair, which is no character")
    return value


def _is_text(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for parent in level
            if isinstance(parent, (dict, list))
            for item in (parent.values() if isinstance(parent, dict) else parent)
        ]
    return bool(level)


def read_json_object(
    path: Path, error: type[SmolVLAEdgeError] = CheckpointError, max_bytes: int = MAX_JSON_BYTES
) -> dict[str, Any]:
    """The JSON object in a file of at most `max_bytes`; `error` naming the file otherwise."""
    return parse_json_object(read_small_file(path, error, max_bytes), str(path), error)


def read_small_file(
    path: Path, error: type[SmolVLAEdgeError], max_bytes: int = MAX_JSON_BYTES
) -> bytes:
    """The bytes of a regular file of at most `max_bytes`; `error` naming it otherwise."""
    try:
        with open(path, "rb", opener=without_waiting) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise error(f"{path}: expected a regular file")
            if found.st_size > max_bytes:
                raise error(
                    f"{path} is larger than {max_bytes} bytes, the limit for a JSON file here"
                )
            return file.read(found.st_size)
    except OSError as cause:
        raise error(f"cannot read {path}: {cause.strerror or cause}") from cause


def without_waiting(path: str, flags: int) -> int:
    """Opening a named pipe would otherwise wait for somebody to write to it."""
    return os.open(path, flags | os.O_NONBLOCK)
