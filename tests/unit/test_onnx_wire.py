"""The reader of .onnx files: what it finds, and that anything malformed is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from needs import needs
from policy_helpers import tiny_checkpoint

from smolvla_edge.errors import ExportError
from smolvla_edge.onnx_wire import MAX_DEPTH, scan_model
from smolvla_edge.source import Source, open_source

with needs("onnx"):
    import onnx
    import onnx_helpers as made


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_source(tiny_checkpoint(tmp_path_factory.mktemp("source") / "tiny"))


@pytest.fixture(scope="module")
def good(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.write_folder(tmp_path_factory.mktemp("bundle") / "onnx", source)


class TestWire:
    def test_facts(self, good: Path) -> None:
        facts = scan_model((good / "flow.onnx").read_bytes(), "flow")
        assert (facts.ir, facts.opsets) == (10, {"": 23})
        assert facts.domains == {""} and ("", "Loop") in facts.operators
        assert [(t.tensor, t.location, t.offset, t.length) for t in facts.external] == [
            ("factor", "flow.weights", 0, 4),
            ("rate", "flow.weights", 4, 4),
        ]

    @pytest.mark.parametrize("name", ["vision", "flow"])
    def test_cut_anywhere(self, good: Path, name: str) -> None:
        """Every beginning of a file is refused, or, between two fields, lacks something."""
        data = (good / f"{name}.onnx").read_bytes()
        whole, passed = scan_model(data, name), 0
        for end in range(len(data)):
            try:
                facts = scan_model(data[:end], name)
            except ExportError:
                continue
            passed += 1
            assert facts != whole or end > len(data) - 16
        assert passed < 4

    @pytest.mark.parametrize(
        "data, words",
        [
            (b"", "no graph"),
            (b"\x08", "ends within a number"),
            (b"\x08" + b"\xff" * 10, "too large"),
            (b"\x08" + b"\xff" * 9 + b"\x7f", "too large"),
            (b"\xff\xff\xff\xff\x7f\x00", "too large"),
            (b"\x00\x00", "number 0"),
            (b"\x0b", "wire type 3"),
            (b"\x3a\x05ab", "5 bytes were announced where 2 are left"),
            (b"\x3a\x02\x0a\x05" + bytes(9), "5 bytes were announced where 0 are left"),
            (b"\x3a\x00\x3a\x00", "stands there twice"),
            (b"\x38\x01", "field 7 of a model has the wire type 0"),
            (b"\x0a\x01a", "field 1 of a model has the wire type 2"),
            (b"\x3a\x06\x0a\x04\x22\x02\xff\xfe", "not UTF-8"),
            (b"\x09" + b"\0" * 7, "8 bytes were announced"),
        ],
    )
    def test_malformed(self, data: bytes, words: str) -> None:
        with pytest.raises(ExportError, match=words):
            scan_model(data, "x")

    def test_depth(self) -> None:
        """A graph in an attribute of a node, over and over."""

        def nested(times: int) -> bytes:
            data = b""
            for _ in range(times):
                for tag in (b"\x32", b"\x2a", b"\x0a"):  # graph in attribute in node in graph
                    data = tag + _varint(len(data)) + data
            return b"\x3a" + _varint(len(data)) + data

        scan_model(nested(MAX_DEPTH // 3 - 1), "x")
        for times in (MAX_DEPTH // 3 + 1, 2000):
            with pytest.raises(ExportError, match="nested deeper"):
                scan_model(nested(times), "x")

    def test_two_graphs_of_which_neither_shows_it(self, good: Path) -> None:
        """Protobuf would merge them: the location of one half, the flag of the other."""
        model = onnx.ModelProto.FromString((good / "vision.onnx").read_bytes())
        bad = b"".join((model.SerializeToString(), b"\x3a\x00"))
        assert onnx.ModelProto.FromString(bad).graph.node  # it does read this
        with pytest.raises(ExportError, match="twice"):
            scan_model(bad, "x")


def _varint(value: int) -> bytes:
    data = b""
    while value > 127:
        data += bytes([value & 127 | 128])
        value >>= 7
    return data + bytes([value])
