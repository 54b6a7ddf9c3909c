"""Bundles: written whole, read back exactly, found out when files are missing or moved."""

from __future__ import annotations

import os
import shutil
import stat
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundle_helpers import DESCRIPTION, TOKENIZER, WEIGHTS, describe, load, refused

from smolvla_edge import bundle_writer
from smolvla_edge.bundle import is_bundle, read_bundle
from smolvla_edge.bundle_writer import write_bundle
from smolvla_edge.checkpoint import Checkpoint, read_checkpoint
from smolvla_edge.errors import BundleError, PlanError, TokenizerError
from smolvla_edge.presets import read_presets
from smolvla_edge.safetensors_file import read_tensor
from smolvla_edge.synthetic import TINY_VLM, make_checkpoint


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


class TestWriting:
    def test_everything_comes_back(self, checkpoint: Checkpoint, original: Path) -> None:
        bundle = load(original)
        bundle.verify_files()
        assert bundle.model == checkpoint.model
        assert bundle.contract == checkpoint.contract
        assert bundle.tensors.keys() == checkpoint.tensors.keys()
        for name, entry in checkpoint.tensors.items():
            assert bundle.tensors[name].dtype == entry.dtype
            np.testing.assert_array_equal(read_tensor(bundle.tensors[name]), read_tensor(entry))
        assert checkpoint.dead and not set(checkpoint.dead) & set(bundle.tensors)
        assert bundle.tokenizer_file is not None

    def test_provenance(self, original: Path) -> None:
        provenance = read_bundle(original).provenance
        assert provenance["command"] == "convert a b"
        assert provenance["converter"].startswith("smolvla-edge ")
        assert set(provenance["source_sha256"]) >= {"config.json", WEIGHTS}

    def test_precision_map(self, original: Path) -> None:
        assert read_bundle(original).precision["heads"] == {"F32": 10}
        assert set(read_bundle(original).precision["vision"]) == {"BF16"}

    def test_same_source_same_bytes(
        self, checkpoint: Checkpoint, original: Path, tmp_path: Path
    ) -> None:
        write_bundle(checkpoint, tmp_path / "again", command="convert a b")
        for name in (WEIGHTS, DESCRIPTION, TOKENIZER):
            assert (tmp_path / "again" / name).read_bytes() == (original / name).read_bytes()

    def test_readable_by_others(self, original: Path) -> None:
        assert stat.S_IMODE(original.stat().st_mode) == 0o755

    def test_progress_ends_at_the_total(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        seen: list[tuple[int, int]] = []
        write_bundle(checkpoint, tmp_path / "b", lambda done, total: seen.append((done, total)))
        assert seen[-1][0] == seen[-1][1]
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)

    def test_existing_is_kept(self, checkpoint: Checkpoint, damaged: Path) -> None:
        before = (damaged / DESCRIPTION).read_bytes()
        with pytest.raises(BundleError, match=r"exists.*--force"):
            write_bundle(checkpoint, damaged)
        assert (damaged / DESCRIPTION).read_bytes() == before

    def test_force_replaces_a_bundle(self, checkpoint: Checkpoint, damaged: Path) -> None:
        (damaged / WEIGHTS).write_bytes(b"broken")
        write_bundle(checkpoint, damaged, force=True)
        load(damaged)
        assert [path.name for path in damaged.parent.iterdir()] == [damaged.name]

    def test_force_replaces_nothing_else(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "thesis.tex").write_text("precious")
        with pytest.raises(BundleError, match="not a bundle"):
            write_bundle(checkpoint, tmp_path / "home", force=True)
        assert (tmp_path / "home" / "thesis.tex").read_text() == "precious"

    def test_force_replaces_no_link(
        self, checkpoint: Checkpoint, damaged: Path, tmp_path: Path
    ) -> None:
        """Moving the link aside would leave the bundle it names where it was."""
        (tmp_path / "link").symlink_to(damaged)
        with pytest.raises(BundleError, match="not a bundle"):
            write_bundle(checkpoint, tmp_path / "link", force=True)
        assert (tmp_path / "link").is_symlink()
        load(damaged)

    def test_the_old_bundle_comes_back_when_the_new_one_cannot_take_its_place(
        self, checkpoint: Checkpoint, damaged: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = (damaged / DESCRIPTION).read_bytes()
        rename = os.rename

        def refuse_new(source: Path, target: Path) -> None:
            if source.name.endswith(".partial"):
                raise OSError(13, "Permission denied")
            rename(source, target)

        monkeypatch.setattr(bundle_writer.os, "rename", refuse_new)
        with pytest.raises(BundleError, match="Permission denied"):
            write_bundle(checkpoint, damaged, force=True)
        assert (damaged / DESCRIPTION).read_bytes() == before
        assert [path.name for path in damaged.parent.iterdir()] == [damaged.name]

    def test_without_tokenizer(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        bare = Checkpoint(**{**vars(checkpoint), "tokenizer_file": None})
        with pytest.raises(TokenizerError, match="--tokenizer"):
            write_bundle(bare, tmp_path / "b")
        assert write_bundle(bare, tmp_path / "b", allow_no_tokenizer=True).tokenizer_file is None

    @pytest.mark.parametrize("content", ["", "{}", "\x00"])
    def test_malformed_tokenizer(
        self, checkpoint: Checkpoint, tmp_path: Path, content: str
    ) -> None:
        (tmp_path / "t.json").write_text(content)
        broken = replace(checkpoint, tokenizer_file=tmp_path / "t.json")
        with pytest.raises(TokenizerError, match=r"t\.json"):
            write_bundle(broken, tmp_path / "b")
        assert not (tmp_path / "b").exists()

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
    def test_failure_leaves_nothing(
        self,
        checkpoint: Checkpoint,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        error: BaseException,
    ) -> None:
        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(bundle_writer, "_move_into_place", fail)
        with pytest.raises(BundleError if isinstance(error, OSError) else KeyboardInterrupt):
            write_bundle(checkpoint, tmp_path / "b")
        assert list(tmp_path.iterdir()) == []

    def test_full_disk_is_noticed_first(
        self, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
        monkeypatch.setattr(bundle_writer.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(BundleError, match="1 MiB free"):
            write_bundle(checkpoint, tmp_path / "b")

    def test_memory_is_a_chunk_not_the_model(self, tmp_path: Path) -> None:
        many_words = replace(TINY_VLM, vocab=200_000)  # embedding table of 38 MB
        checkpoint = read_checkpoint(make_checkpoint(tmp_path / "c", "tiny", vlm=many_words))
        assert max(entry.nbytes for entry in checkpoint.tensors.values()) > 36 << 20
        tracemalloc.start()
        write_bundle(checkpoint, tmp_path / "b", allow_no_tokenizer=True)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 24 << 20  # a few chunks of 4 MiB


class TestReading:
    def test_no_directory(self, tmp_path: Path) -> None:
        refused(tmp_path / "nothing", "expected a bundle directory")

    def test_is_bundle(self, original: Path, tmp_path: Path) -> None:
        assert is_bundle(original) and not is_bundle(tmp_path)

    @pytest.mark.parametrize("name", [WEIGHTS, DESCRIPTION, TOKENIZER])
    def test_missing_file(self, damaged: Path, name: str) -> None:
        (damaged / name).unlink()
        refused(damaged, name)

    @pytest.mark.parametrize("name", [WEIGHTS, DESCRIPTION, TOKENIZER])
    def test_a_directory_instead(self, damaged: Path, name: str) -> None:
        (damaged / name).unlink()
        (damaged / name).mkdir()
        refused(damaged, name)

    @pytest.mark.parametrize("name", [WEIGHTS, DESCRIPTION, TOKENIZER])
    def test_link_out_of_the_bundle(self, damaged: Path, tmp_path: Path, name: str) -> None:
        (damaged / name).rename(tmp_path / "elsewhere")
        (damaged / name).symlink_to(tmp_path / "elsewhere")
        refused(damaged, name, "outside the bundle")

    def test_link_to_itself(self, damaged: Path) -> None:
        (damaged / WEIGHTS).unlink()
        (damaged / WEIGHTS).symlink_to(damaged / WEIGHTS)
        refused(damaged, WEIGHTS)

    def test_fifo_does_not_hang(self, damaged: Path) -> None:
        (damaged / TOKENIZER).unlink()
        os.mkfifo(damaged / TOKENIZER)
        refused(damaged, "regular file")

    def test_fifo_for_presets_does_not_hang(self, damaged: Path) -> None:
        os.mkfifo(damaged / "presets.json")
        with pytest.raises(PlanError, match="regular file"):
            read_presets(damaged, "digest")

    def test_unknown_neighbours_are_ignored(self, damaged: Path) -> None:
        (damaged / "README.md").write_text("hello")
        load(damaged)

    def test_reformatted_description_is_the_same_bundle(
        self, damaged: Path, original: Path
    ) -> None:
        describe(damaged, lambda d: None, resign=False)
        assert load(damaged).digest == read_bundle(original).digest
