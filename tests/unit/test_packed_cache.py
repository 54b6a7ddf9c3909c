"""The packed cache: the same actions, never from a damaged or foreign file, never in the way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from policy_helpers import IMAGES, STATE, TASK

import smolvla_edge as se
from smolvla_edge import _core, packed_cache
from smolvla_edge.errors import BackendError, BundleError, CheckpointError
from smolvla_edge.packed_cache import PackedCacheWarning
from smolvla_edge.safetensors_file import SafetensorsFile
from smolvla_edge.synthetic import make_checkpoint

HEADER = 4096


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("packed") / "checkpoint", "tiny")


@pytest.fixture(scope="module", params=["keep", "bfloat16"])
def bundle(checkpoint: Path, request: pytest.FixtureRequest) -> Path:
    folder = checkpoint.with_name(f"bundle-{request.param}")
    se.write_bundle(se.read_checkpoint(checkpoint), folder, dtype=request.param)
    return folder


@pytest.fixture(scope="module")
def expected(bundle: Path) -> bytes:
    return actions(se.load(bundle))


def actions(policy: se.Policy) -> bytes:
    return bytes(policy.predict(IMAGES, STATE, TASK, seed=7).actions.tobytes())


def load(bundle: Path, cache: Any, **options: Any) -> tuple[se.Policy, str]:
    """A load that may not warn, and what it says of the cache."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy = se.load(bundle, packed_cache=cache, **options)
    return policy, policy.provenance["packed_cache"]


def load_warned(bundle: Path, cache: Any, words: str) -> tuple[se.Policy, str]:
    with pytest.warns(PackedCacheWarning, match=words):
        policy = se.load(bundle, packed_cache=cache)
    return policy, policy.provenance["packed_cache"]


def test_the_second_load_maps_what_the_first_has_packed(
    bundle: Path, expected: bytes, tmp_path: Path
) -> None:
    cache = tmp_path / "cache.bin"
    first, status = load(bundle, cache)
    assert status == "written" and actions(first) == expected
    before = cache.stat()
    second, status = load(bundle, cache)
    assert status == "hit" and actions(second) == expected
    assert second.predict(IMAGES, STATE, TASK, seed=7).provenance["packed_cache"] == "hit"
    third, _ = load(bundle, str(cache), threads=1)  # beside the second, of the same pages
    assert actions(third) == expected == actions(second)
    assert Path("/proc/self/maps").read_text().count(str(cache)) == 2
    assert cache.stat().st_ino == before.st_ino  # not written again
    assert os.listdir(tmp_path) == ["cache.bin"]
    assert cache.stat().st_size == HEADER + second.engine.info()["weights_bytes"]


def test_without_the_option_nothing_is_kept_or_said(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "packed_cache" not in se.load(bundle).provenance
    assert os.listdir(tmp_path) == []


def test_where_it_is_kept(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    policy, status = load(bundle, True)
    assert status == "written"
    (kept,) = (tmp_path / "cache" / "smolvla-edge" / "packed").iterdir()
    compute = se.read_bundle(bundle).compute
    layout = _core.packed_layout("", compute)
    assert kept.name == f"{policy.provenance['bundle']}-{layout}.bin"
    assert load(bundle, True)[1] == "hit"
    assert load(bundle, tmp_path)[1] == "written"  # a folder
    assert (tmp_path / kept.name).read_bytes() == kept.read_bytes()


def test_a_hit_reads_no_weights_but_the_embedding(
    bundle: Path, expected: bytes, tmp_path: Path
) -> None:
    copy, cache = tmp_path / "bundle", tmp_path / "cache.bin"
    shutil.copytree(bundle, copy)
    load(copy, cache)
    weights = copy / "model.safetensors"
    entries = SafetensorsFile(weights, BundleError).entries
    with open(weights, "r+b") as file:
        for name, entry in entries.items():
            if name != "text.embed.weight":
                file.seek(entry.offset)
                file.write(bytes(entry.nbytes))
    policy, status = load(copy, cache)
    assert status == "hit" and actions(policy) == expected
    with pytest.raises(BundleError, match="checksum"):
        se.load(copy)
    with open(weights, "r+b") as file:
        file.seek(entries["text.embed.weight"].offset + 5)
        file.write(b"?")
    with pytest.raises(BundleError, match=r"text\.embed\.weight"):
        se.load(copy, packed_cache=cache)


def flip(at: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        bad = bytearray(data)
        bad[at] ^= 1 << at % 8
        return bytes(bad)

    return change


DAMAGES = {
    **{f"bit of the header {at}": flip(at) for at in (0, 25, 130, 410, 2000, 4095)},
    **{f"bit of the image {at}": flip(HEADER + at) for at in (0, 1, 63, 64, 100_001)},
    "last bit": flip(-1),
    "empty": lambda data: b"",
    "half a header": lambda data: data[:2048],
    "only a header": lambda data: data[:HEADER],
    "half": lambda data: data[: len(data) // 2],
    "a byte short": lambda data: data[:-1],
    "a cache line short": lambda data: data[:-64],
    "a byte long": lambda data: data + b"\0",
    "a page long": lambda data: data + bytes(4096),
    "twice": lambda data: data + data,
    "zeros": lambda data: bytes(len(data)),
    "something else": lambda data: b"{}",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_never_used(
    bundle: Path, expected: bytes, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    cache = tmp_path / "cache.bin"
    load(bundle, cache)
    good = cache.read_bytes()
    cache.write_bytes(damage(good))
    policy, status = load_warned(bundle, cache, "is not used: .*made again")
    assert status == "damaged" and actions(policy) == expected
    assert cache.read_bytes() == good
    assert load(bundle, cache)[1] == "hit"
    assert os.listdir(tmp_path) == ["cache.bin"]


def test_what_is_of_another_bundle_or_program_is_stale(
    bundle: Path, expected: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache.bin"
    other = make_checkpoint(tmp_path / "other", "tiny", seed=1)
    se.write_bundle(se.read_checkpoint(other), tmp_path / "other-bundle")
    assert load(tmp_path / "other-bundle", cache)[1] == "written"
    policy, status = load(bundle, cache)
    assert status == "stale" and actions(policy) == expected
    assert load(bundle, cache)[1] == "hit"
    with monkeypatch.context() as patch:
        patch.setattr(packed_cache, "__version__", "0.0.0")
        assert load(bundle, cache)[1] == "stale"
    assert load(bundle, cache)[1] == "stale"
    flipped = bytearray(cache.read_bytes())
    flipped[16] += 1  # the version of the format
    cache.write_bytes(flipped)
    policy, status = load(bundle, cache)
    assert status == "stale" and actions(policy) == expected


def test_kernels_share_a_cache_exactly_where_they_share_a_layout(
    bundle: Path, tmp_path: Path
) -> None:
    compute = se.read_bundle(bundle).compute
    isas = sorted({row["isa"] for row in _core.kernel_table("") if row["supported"]})
    layouts = {isa: _core.packed_layout(isa, compute) for isa in isas}
    # Sets that multiply unsigned bytes pack codes with an offset; bfloat16 has words or columns.
    most = 2 if compute == "float32" else 4
    assert 1 <= len(set(layouts.values())) <= most
    cache, held, results = tmp_path / "cache.bin", None, set()
    for isa in isas:
        result = python(
            f"""
            policy = se.load({str(bundle)!r}, packed_cache={str(cache)!r})
            print(policy.provenance["packed_cache"], end=" ")
            print(policy.predict(IMAGES, STATE, TASK, seed=7).actions.tobytes().hex())
            """,
            SMOLVLA_FORCE_ISA=isa,
        )
        status, computed = result.stdout.split()
        assert status == ("written" if not held else "hit" if held == layouts[isa] else "stale")
        held = layouts[isa]
        results.add(computed)
    assert len(results) == 1


def test_writers_at_once(bundle: Path, expected: bytes, tmp_path: Path) -> None:
    """Each loads; what stays is whole, and nothing else stays."""
    cache = tmp_path / "cache.bin"
    script = f"""
        for _ in range(4):
            policy = se.load({str(bundle)!r}, packed_cache={str(cache)!r})
            assert policy.predict(IMAGES, STATE, TASK, seed=7).actions.tobytes().hex() == (
                {expected.hex()!r})
            cache = Path({str(cache)!r})
            cache.unlink(missing_ok=True)  # so that the next round writes again
        se.load({str(bundle)!r}, packed_cache={str(cache)!r})
        """
    running = [start(script) for _ in range(4)]
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
        assert "Warning" not in errors
    assert os.listdir(tmp_path) == ["cache.bin"]
    policy, status = load(bundle, cache)
    assert status == "hit" and actions(policy) == expected


def test_a_writer_that_was_killed(bundle: Path, expected: bytes, tmp_path: Path) -> None:
    """What it has begun is never read, and the next writer removes it (see test_packed.cpp)."""
    cache = tmp_path / "cache.bin"
    orphan = tmp_path / "cache.bin.0123456789abcdef.partial"
    orphan.write_bytes(b"half of it")
    policy, status = load(bundle, cache)
    assert status == "written" and actions(policy) == expected
    assert os.listdir(tmp_path) == ["cache.bin"]


class TestUnwritable:
    """A warning, the policy, and nothing left behind."""

    def test_no_such_folder(self, bundle: Path, expected: bytes, tmp_path: Path) -> None:
        policy, status = load_warned(bundle, tmp_path / "none" / "cache.bin", "No such file")
        assert status == "unwritable" and actions(policy) == expected
        assert os.listdir(tmp_path) == []

    def test_a_folder_that_may_not_be_written(self, bundle: Path, expected: bytes) -> None:
        policy, status = load_warned(bundle, "/sys/cache.bin", "not kept")  # root's neither
        assert status == "unwritable" and actions(policy) == expected

    def test_a_user_cache_that_is_a_file(
        self, bundle: Path, expected: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "cache").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        policy, status = load_warned(bundle, True, "not kept")
        assert status == "unwritable" and actions(policy) == expected

    def test_a_file_that_may_not_grow(self, bundle: Path, expected: bytes, tmp_path: Path) -> None:
        result = python(
            f"""
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                policy = se.load({str(bundle)!r}, packed_cache={str(tmp_path / "cache.bin")!r})
            print(policy.provenance["packed_cache"], len(caught), "large" in str(caught[0].message))
            print(policy.predict(IMAGES, STATE, TASK, seed=7).actions.tobytes().hex())
            """
        )
        assert result.stdout.split() == ["unwritable", "1", "True", expected.hex()]
        assert os.listdir(tmp_path) == []

    def test_a_full_disk(self, bundle: Path, expected: bytes, tmp_path: Path) -> None:
        disk = tmp_path / "disk"
        disk.mkdir()
        options = ["-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
        if subprocess.run(["mount", *options], capture_output=True, check=False).returncode != 0:
            pytest.skip("may not mount a small disk; test_a_file_that_may_not_grow is without")
        try:
            policy, status = load_warned(bundle, disk / "cache.bin", "No space left")
            assert status == "unwritable" and actions(policy) == expected
            assert os.listdir(disk) == []
        finally:
            subprocess.run(["umount", str(disk)], check=True)

    def test_the_old_file_stays(self, bundle: Path, expected: bytes, tmp_path: Path) -> None:
        """Also when it is of no use: only a whole new one replaces it."""
        cache = tmp_path / "cache.bin"
        cache.write_bytes(b"old")
        result = python(
            f"""
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            policy = se.load({str(bundle)!r}, packed_cache={str(cache)!r})
            print(policy.provenance["packed_cache"])
            """
        )
        assert result.stdout.strip() == "unwritable"
        assert cache.read_bytes() == b"old" and os.listdir(tmp_path) == ["cache.bin"]


class TestRefusals:
    def test_a_checkpoint(self, checkpoint: Path, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="smolvla-edge convert"):
            se.load(checkpoint, packed_cache=tmp_path / "cache.bin")
        assert os.listdir(tmp_path) == []

    def test_another_backend(self, bundle: Path) -> None:
        with pytest.raises(BackendError, match="native"):
            se.load(bundle, packed_cache=True, backend="torch")

    @pytest.mark.parametrize("option", [None, 1, 0, b"cache.bin", ["cache.bin"]])
    def test_no_option(self, bundle: Path, option: Any) -> None:
        with pytest.raises(BackendError, match="packed_cache: expected"):
            se.load(bundle, packed_cache=option)

    @pytest.mark.parametrize("threads", [0, -1, "2", 1.5])
    def test_threads(self, bundle: Path, tmp_path: Path, threads: Any) -> None:
        load(bundle, tmp_path / "cache.bin")
        for _ in range(2):
            with pytest.raises(BackendError, match="threads"):
                se.load(bundle, packed_cache=tmp_path / "cache.bin", threads=threads)

    def test_a_damaged_bundle(self, bundle: Path, tmp_path: Path) -> None:
        copy = tmp_path / "bundle"
        shutil.copytree(bundle, copy)
        with open(copy / "model.safetensors", "r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"?")
        with pytest.raises(BundleError, match="checksum"):
            se.load(copy, packed_cache=tmp_path / "cache.bin")
        assert os.listdir(tmp_path) == ["bundle"]

    def test_an_image_of_nothing(self, bundle: Path) -> None:
        from core_helpers import make

        from smolvla_edge.source import open_source

        source = open_source(bundle)
        for image in (5, "image", _core.PackedImage.__new__(_core.PackedImage)):
            with pytest.raises(BackendError, match="open_packed"):
                make(source, packed=image)


def start(script: str, **environment: str) -> subprocess.Popen[str]:
    """A Python process with the observation of policy_helpers at hand."""
    beginning = f"""
        import resource, sys, warnings
        sys.path[:0] = {[str(Path(__file__).parent), *filter(None, sys.path)]!r}
        from pathlib import Path
        import smolvla_edge as se
        from policy_helpers import IMAGES, STATE, TASK
        """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(beginning) + textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def python(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    process = start(script, **environment)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return subprocess.CompletedProcess(process.args, 0, out, errors)
