"""What an .onnx file of an untrusted folder asks for, read without a protobuf library.

ONNX Runtime opens whatever file a tensor names, so the names have to be known before it sees the
model. Of the messages of onnx.proto only the fields below are looked into; the rest is stepped
over by its length. Every tensor is found: of the graph, of graphs inside attributes at any depth,
of functions, sparse ones too.

Where protobuf readers may differ, or merge two halves of a message into one that neither half
shows, the file is refused: a field twice that stands once, a known field of another wire type.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from smolvla_edge.errors import ExportError

MAX_DEPTH = 48  # messages in messages; a graph in a node's attribute is three of them
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZE = {_FIXED64: 8, _FIXED32: 4}
_NUMBER = re.compile(r"[0-9]{1,19}")
_EXTERNAL = 1  # TensorProto.DataLocation

# message -> field -> (what it is, whether it may stand there more than once). An upper-case word is
# text, a number or a refusal of `_Scan`; any other is a message of this table.
_MESSAGES: dict[str, dict[int, tuple[str, bool]]] = {
    "model": {
        1: ("IR", False), 7: ("graph", False), 8: ("opset", True), 14: ("property", True),
        20: ("TRAINING", True), 25: ("function", True),
    },
    "graph": {1: ("node", True), 5: ("tensor", True), 15: ("sparse", True)},
    "node": {4: ("OPERATOR", False), 5: ("attribute", True), 7: ("DOMAIN", False)},
    "attribute": {
        5: ("tensor", False), 6: ("graph", False), 10: ("tensor", True), 11: ("graph", True),
        22: ("sparse", False), 23: ("sparse", True),
    },
    "function": {7: ("node", True), 10: ("DOMAIN", False), 11: ("attribute", True)},
    "sparse": {1: ("tensor", False), 2: ("tensor", False)},
    "tensor": {8: ("NAME", False), 13: ("pair", True), 14: ("LOCATION", False)},
    "opset": {1: ("DOMAIN", False), 2: ("VERSION", False)},
    "property": {1: ("KEY", False)},
    "pair": {1: ("KEY", False), 2: ("VALUE", False)},
}  # fmt: skip
_NUMBERS = ("IR", "LOCATION", "VERSION")


@dataclass(frozen=True)
class External:
    """Where the bytes of a tensor lie, as the file says it."""

    tensor: str
    location: str
    offset: int
    length: int


@dataclass
class ModelFacts:
    """What a model names. domains: of its nodes and functions, "" for ONNX's own.  operators:
    (domain, type).  properties: keys of its metadata."""

    ir: int = 0
    opsets: dict[str, int] = field(default_factory=dict)
    domains: set[str] = field(default_factory=set)
    operators: set[tuple[str, str]] = field(default_factory=set)
    external: list[External] = field(default_factory=list)
    properties: set[str] = field(default_factory=set)


def scan_model(data: bytes, where: str) -> ModelFacts:
    """The facts of a serialised ModelProto. Raises ExportError for what is none, or cut short."""
    return _Scan(data, where).facts


class _Scan:
    def __init__(self, data: bytes, where: str) -> None:
        self._data = data
        self._where = where
        self.facts = ModelFacts()
        if "graph" not in self._message("model", 0, len(data), 0):
            self._refuse("it holds no graph")

    def _message(self, kind: str, at: int, end: int, depth: int) -> dict[str, str | int]:
        """The words and numbers of a message, after its own messages have been looked at."""
        if depth > MAX_DEPTH:
            self._refuse(f"messages are nested deeper than {MAX_DEPTH}")
        known = _MESSAGES[kind]
        seen: dict[str, str | int] = {}
        once: set[int] = set()
        pairs: dict[str, str] = {}
        for number, wire, start, stop in self._fields(at, end):
            if number not in known:
                continue
            what, repeated = known[number]
            if wire != (_VARINT if what in _NUMBERS else _BYTES):
                self._refuse(f"field {number} of a {kind} has the wire type {wire}")
            if number in once:
                self._refuse(f"field {number} of a {kind} stands there twice")
            if not repeated:
                once.add(number)
            if what == "TRAINING":
                self._refuse("it holds a training graph")
            if what in _NUMBERS:
                seen[what] = start
            elif what.isupper():
                seen[what] = self._text(start, stop)
            else:
                inner = self._message(what, start, stop, depth + 1)
                seen[what] = 1
                if what == "pair":
                    self._add(pairs, inner)
        self._keep(kind, seen, pairs)
        return seen

    def _keep(self, kind: str, seen: dict[str, str | int], pairs: dict[str, str]) -> None:
        """Write down what a message says."""
        domain = str(seen.get("DOMAIN", ""))
        if kind == "model":
            self.facts.ir = int(seen.get("IR", 0))
        elif kind == "node":
            self.facts.operators.add((domain, str(seen.get("OPERATOR", ""))))
            self.facts.domains.add(domain)
        elif kind == "function":
            self.facts.domains.add(domain)
        elif kind == "opset":
            if domain in self.facts.opsets:
                self._refuse(f"the operator set {domain!r:.80} is imported twice")
            self.facts.opsets[domain] = int(seen.get("VERSION", 0))
        elif kind == "property":
            self.facts.properties.add(str(seen.get("KEY", "")))
        elif kind == "tensor":
            self._keep_tensor(str(seen.get("NAME", "")), int(seen.get("LOCATION", 0)), pairs)

    def _keep_tensor(self, name: str, location: int, pairs: dict[str, str]) -> None:
        if (location == _EXTERNAL) != bool(pairs) or location not in (0, _EXTERNAL):
            self._refuse(f"tensor {name!r:.80} says both that its data is here and elsewhere")
        if not pairs:
            return
        missing = {"location", "length"} - pairs.keys()
        unknown = pairs.keys() - {"location", "length", "offset", "checksum"}
        if missing or unknown:
            self._refuse(
                f"tensor {name!r:.80}: external data with location, length and offset was "
                f"expected, got {sorted(pairs)!r:.200}"
            )
        numbers = [pairs.get("offset", "0"), pairs["length"]]
        if not all(_NUMBER.fullmatch(text) for text in numbers):
            self._refuse(f"tensor {name!r:.80}: offset and length are {numbers!r:.200}")
        offset, length = map(int, numbers)
        self.facts.external.append(External(name, pairs["location"], offset, length))

    def _add(self, pairs: dict[str, str], inner: dict[str, str | int]) -> None:
        key = str(inner.get("KEY", ""))
        if key in pairs:
            self._refuse(f"a tensor says its {key!r:.80} twice")
        pairs[key] = str(inner.get("VALUE", ""))

    def _fields(self, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """(number, wire type, start, end) of each field; of a varint (number, 0, value, 0)."""
        data = self._data
        while at < end:
            tag, at = self._varint(at, end, 5)
            number, wire = tag >> 3, tag & 7
            if not 0 < number < 1 << 29:
                self._refuse(f"a field has the number {number}")
            if wire == _VARINT:
                # Most are of one byte, and there are hundreds of thousands of them.
                if at < end and data[at] < 128:
                    value, at = data[at], at + 1
                else:
                    value, at = self._varint(at, end, 10)
                yield number, wire, value, 0
                continue
            if wire == _BYTES:
                size, at = self._varint(at, end, 5)
            elif wire in _FIXED_SIZE:
                size = _FIXED_SIZE[wire]
            else:
                self._refuse(f"a field has the wire type {wire}")
            if size > end - at:
                self._refuse(f"{size} bytes were announced where {end - at} are left")
            yield number, wire, at, at + size
            at += size

    def _varint(self, at: int, end: int, longest: int) -> tuple[int, int]:
        value = 0
        for place in range(longest):
            if at + place >= end:
                self._refuse("it ends within a number")
            byte = self._data[at + place]
            value |= (byte & 127) << (7 * place)
            if byte < 128:
                if value >= 1 << (32 if longest == 5 else 64):
                    break
                return value, at + place + 1
        self._refuse("a number in it is too large")

    def _text(self, start: int, stop: int) -> str:
        try:
            return self._data[start:stop].decode("utf-8")
        except UnicodeDecodeError:
            self._refuse("a name in it is not UTF-8")

    def _refuse(self, reason: str) -> NoReturn:
        raise ExportError(
            f"{self._where}: expected an ONNX model, but {reason}: damaged, or not of this "
            "exporter. Export again, or copy the folder again"
        ) from None
