"""Every structural field of a bundle, cut, flipped, exchanged or exaggerated: refused, typed."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bundle_helpers import DESCRIPTION, TOKENIZER, WEIGHTS, describe, header, load, refused

from smolvla_edge.bundle import read_bundle
from smolvla_edge.bundle_format import digest_of
from smolvla_edge.bundle_writer import write_bundle
from smolvla_edge.checkpoint import Checkpoint, read_checkpoint
from smolvla_edge.errors import BundleError, SmolVLAEdgeError
from smolvla_edge.synthetic import make_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return read_checkpoint(make_checkpoint(tmp_path_factory.mktemp("source") / "tiny", "tiny"))


@pytest.fixture(scope="module")
def original(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "original"
    write_bundle(checkpoint, path, command="convert a b")
    return path


@pytest.fixture
def damaged(original: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(original, tmp_path / "bundle"))


class TestDescription:
    @pytest.mark.parametrize("size", [0, 1, 10, 100, -1, -2, -100])
    def test_truncated(self, damaged: Path, size: int) -> None:
        raw = (damaged / DESCRIPTION).read_bytes().rstrip()
        (damaged / DESCRIPTION).write_bytes(raw[:size])
        refused(damaged, DESCRIPTION)

    def test_edited_by_hand(self, damaged: Path) -> None:
        describe(damaged, lambda d: d["contract"].update(num_steps=2), resign=False)
        refused(damaged, "digest", "--stats")

    @pytest.mark.parametrize("version", [0, 4, 1.0, "1", True, None, 1 << 70])
    def test_unknown_version(self, damaged: Path, version: object) -> None:
        describe(damaged, lambda d: d.update(version=version))
        refused(damaged, "version 1 to 3")

    @pytest.mark.parametrize("name", ["format", "version", "digest", "model", "contract", "files"])
    def test_duplicate_key(self, damaged: Path, name: str) -> None:
        text = (damaged / DESCRIPTION).read_text()
        (damaged / DESCRIPTION).write_text(text.replace("{", f'{{"{name}": 1,', 1))
        refused(damaged, name, "twice")

    def test_half_a_surrogate_pair(self, damaged: Path) -> None:
        """JSON can spell it; UTF-8 cannot, so it could be neither printed nor written again."""
        describe(damaged, lambda d: d["contract"]["cameras"].__setitem__(0, "\udc00"))
        refused(damaged, DESCRIPTION, "surrogate")
        describe(damaged, lambda d: d["contract"].update({"\ud800": 1}))
        refused(damaged, DESCRIPTION, "surrogate")

    def test_a_whole_surrogate_pair_is_a_character(self, damaged: Path) -> None:
        describe(damaged, lambda d: d["provenance"].update(command="\U0001f44b"))
        assert "\\ud83d\\udc4b" in (damaged / DESCRIPTION).read_text()
        assert load(damaged).provenance["command"] == "\U0001f44b"

    @pytest.mark.parametrize("depth", [33, *range(900, 1000), 100_000])
    def test_nested_too_deeply(self, damaged: Path, depth: int) -> None:
        """Also where the parser still follows, but not who hashes the document."""
        text = (damaged / DESCRIPTION).read_text()
        nested = '"provenance": {"x": ' + "[" * depth + "]" * depth + ","
        (damaged / DESCRIPTION).write_text(text.replace('"provenance": {', nested, 1))
        refused(damaged, DESCRIPTION, "nested too deeply")

    def test_too_large(self, damaged: Path) -> None:
        with open(damaged / DESCRIPTION, "ab") as file:
            file.truncate(17 << 20)
        refused(damaged, "larger")

    @pytest.mark.parametrize(
        "name", ["../model.safetensors", "/etc/passwd", "a/b", "..", "evil.so", ""]
    )
    def test_path_outside(self, damaged: Path, name: str) -> None:
        describe(damaged, lambda d: d["files"].update({name: d["files"][TOKENIZER]}))
        refused(damaged, "directly in")

    @pytest.mark.parametrize("size", [-1, 1 << 63, 1 << 64, 1 << 70, 0.5, "9", None, 12])
    def test_bad_size(self, damaged: Path, size: object) -> None:
        describe(damaged, lambda d: d["files"][WEIGHTS].update(bytes=size))
        refused(damaged, WEIGHTS)

    @pytest.mark.parametrize("value", ["", "00", "G" * 64, "A" * 64, "a" * 63, 7, None])
    def test_bad_sha256(self, damaged: Path, value: object) -> None:
        describe(damaged, lambda d: d["files"][TOKENIZER].update(sha256=value))
        refused(damaged, "sha256")

    def test_wrong_sha256_of_a_small_file(self, damaged: Path) -> None:
        describe(damaged, lambda d: d["files"][TOKENIZER].update(sha256="0" * 64))
        refused(damaged, TOKENIZER, "SHA-256")

    def test_wrong_sha256_of_the_weights_is_found_by_verify(self, damaged: Path) -> None:
        describe(damaged, lambda d: d["files"][WEIGHTS].update(sha256="0" * 64))
        with pytest.raises(BundleError, match="SHA-256"):
            load(damaged).verify_files()

    @pytest.mark.parametrize(
        "path, value",
        [
            (("model", "text_layers"), 1 << 40),
            (("model", "vision_layers"), 1 << 62),
            (("model", "expert_layers"), 0),
            (("model", "scale_factor"), 0),
            (("model", "patch_size"), 0),
            (("model", "patch_size"), -16),
            (("model", "kv_heads"), 4),
            (("model", "vision_heads"), 7),
            (("model", "head_dim"), 15),
            (("model", "vocab"), 1 << 40),
            (("model", "chunk_size"), 9),
            (("model", "chunk_size"), 1 << 60),
            (("model", "max_cameras"), 3),
            (("model", "tokenizer_max_length"), 1),
            (("model", "rope_theta"), -1.0),
            (("model", "rms_eps"), float("nan")),
            (("model", "fake_token_id"), 1 << 40),
            (("model", "resize"), [0, 64]),
            (("model", "resize"), [1 << 60, 64]),
            (("precision", "vision"), {"F32": 37}),
            (("contract", "state", "values", "std"), [0.0] * 6),
        ],
    )
    def test_numbers_that_would_hurt(
        self, damaged: Path, path: tuple[str, ...], value: Any
    ) -> None:
        describe(damaged, lambda d: _set(d, path, value))
        refused(damaged)

    def test_every_structural_field(self, damaged: Path) -> None:
        """Each key and element down to three levels: gone, or of another type or size."""
        good = json.loads((damaged / DESCRIPTION).read_text())
        path = damaged / DESCRIPTION
        accepted = []
        for keys in _structure(good):
            for value in (_REMOVE, None, [], {}, "x", -1, 1 << 70):
                bad = copy.deepcopy(good)
                _set(bad, keys, value)
                if bad == good or keys[0] == "provenance" or _legal(keys, value):
                    continue
                if keys != ("digest",):
                    bad["digest"] = digest_of(bad)
                path.write_text(json.dumps(bad))
                try:
                    read_bundle(damaged)
                    accepted.append((keys, value))
                except BundleError:
                    pass
        assert accepted == []


class TestWeights:
    def test_every_length(self, damaged: Path) -> None:
        """Cut anywhere: in the length, in the header, in the data."""
        raw = (damaged / WEIGHTS).read_bytes()
        length = 8 + int.from_bytes(raw[:8], "little")
        for size in (0, 4, 7, 8, 9, length // 2, length - 1, length, length + 1, len(raw) - 1):
            (damaged / WEIGHTS).write_bytes(raw[:size])
            refused(damaged, WEIGHTS)
            describe(damaged, lambda d, size=size: d["files"][WEIGHTS].update(bytes=size))
            refused(damaged, WEIGHTS)
            describe(damaged, lambda d: d["files"][WEIGHTS].update(bytes=len(raw)))

    def test_every_bit_of_the_header_length(self, damaged: Path) -> None:
        raw = bytearray((damaged / WEIGHTS).read_bytes())
        for bit in range(64):
            raw[bit // 8] ^= 1 << bit % 8
            (damaged / WEIGHTS).write_bytes(raw)
            refused(damaged)
            raw[bit // 8] ^= 1 << bit % 8

    def test_bits_of_the_header(self, damaged: Path) -> None:
        """No flip may crash, and none may be accepted: names, dtypes, shapes and offsets count."""
        raw = bytearray((damaged / WEIGHTS).read_bytes())
        length = int.from_bytes(raw[:8], "little")
        text = bytes(raw[8 : 8 + length]).rstrip()
        for at in range(8, 8 + len(text), 11):
            raw[at] ^= 1 << at % 8
            (damaged / WEIGHTS).write_bytes(raw)
            refused(damaged)
            raw[at] ^= 1 << at % 8

    def test_bits_of_the_data(self, damaged: Path, original: Path) -> None:
        """One bit of any tensor: its name is said."""
        raw = bytearray((damaged / WEIGHTS).read_bytes())
        for name, entry in list(read_bundle(original).tensors.items())[::7]:
            at = entry.offset + entry.nbytes // 2
            raw[at] ^= 1
            (damaged / WEIGHTS).write_bytes(raw)
            refused(damaged, name, "checksum")
            raw[at] ^= 1

    def test_wrong_checksum(self, damaged: Path) -> None:
        describe(damaged, lambda d: d["tensors"]["action_in.bias"].update(crc32="00000000"))
        refused(damaged, "action_in.bias")

    def test_trailing_bytes(self, damaged: Path) -> None:
        size = (damaged / WEIGHTS).stat().st_size
        with open(damaged / WEIGHTS, "ab") as file:
            file.write(b"\0")
        refused(damaged, "bytes")
        describe(damaged, lambda d: d["files"][WEIGHTS].update(bytes=size + 1))
        refused(damaged, "follow the last tensor")

    @pytest.mark.parametrize(
        "offsets", [[0, 0], [-4, 0], [1 << 62, (1 << 62) + 4], [4, 0], [0, 1 << 65], [8], "0"]
    )
    def test_offsets(self, damaged: Path, offsets: object) -> None:
        header(damaged, lambda f: f["action_in.bias"].update(data_offsets=offsets))
        refused(damaged, "action_in.bias")

    def test_overlap(self, damaged: Path) -> None:
        def overlap(fields: dict[str, Any]) -> None:
            fields["time_in.bias"]["data_offsets"] = fields["action_in.bias"]["data_offsets"]

        header(damaged, overlap)
        refused(damaged, "overlaps")

    def test_swapped_tensors_of_one_shape(self, damaged: Path) -> None:
        def swap(fields: dict[str, Any]) -> None:
            one, two = fields["time_in.bias"], fields["action_in.bias"]
            one["data_offsets"], two["data_offsets"] = two["data_offsets"], one["data_offsets"]

        header(damaged, swap)
        refused(damaged, "time_in.bias", "action_in.bias", "checksum")

    @pytest.mark.parametrize("change", [{"dtype": "BF16"}, {"shape": [36, 2]}, {"dtype": "I32"}])
    def test_other_dtype_or_shape(self, damaged: Path, change: dict[str, Any]) -> None:
        header(damaged, lambda f: f["action_in.bias"].update(change))
        refused(damaged, "action_in.bias")

    def test_renamed_tensor(self, damaged: Path) -> None:
        header(damaged, lambda f: f.update({"evil": f.pop("action_in.bias")}))
        refused(damaged, "action_in.bias", "evil")

    def test_huge_shape(self, damaged: Path) -> None:
        header(damaged, lambda f: f["action_in.bias"].update(shape=[1 << 62, 1 << 62]))
        refused(damaged, "action_in.bias")

    def test_typed_error_only(self, damaged: Path) -> None:
        (damaged / WEIGHTS).write_bytes(os.urandom(1 << 12))
        describe(damaged, lambda d: d["files"][WEIGHTS].update(bytes=1 << 12))
        with pytest.raises(SmolVLAEdgeError):
            load(damaged)


_REMOVE = object()


def _set(data: Any, keys: tuple[Any, ...], value: Any) -> None:
    for key in keys[:-1]:
        data = data[key]
    if value is _REMOVE:
        del data[keys[-1]]
    else:
        data[keys[-1]] = value


def _structure(data: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    for key, value in data.items():
        yield (key,)
        if isinstance(value, dict):
            names = list(value)[:4] if key == "tensors" else list(value)
            for name in names:
                yield key, name
                if isinstance(value[name], dict):
                    for inner in value[name]:
                        yield key, name, inner


def _legal(keys: tuple[Any, ...], value: object) -> bool:
    """Replacements that are legal values of their field."""
    if keys[-1] in ("self_attn_every_n", "fake_token_id", "global_token_id"):
        return value == -1
    if keys == ("model", "resize"):
        return value is None
    if keys[-1] in ("source", "pad_language_to"):
        return isinstance(value, str)
    if keys == ("files", TOKENIZER):  # a bundle may have none
        return value is _REMOVE
    return keys == ("contract", "rename") and value == {}
