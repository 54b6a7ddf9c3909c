"""The one command for GPU machines, with made-up parts: order, limits, going on, handing back."""

from __future__ import annotations

import json
import sys
import tarfile
import time
import zipfile

import pytest
from benchmark_helpers import ROOT

if not (ROOT / "tools" / "gpu").is_dir():
    pytest.skip("the tests run outside of the source folder", allow_module_level=True)

from tools.gpu import build, machine, parts, run
from tools.gpu.parts import Part


def part(name, program, seconds=20, **more):
    return Part(name, f"what {name} does", seconds,
                lambda options: [[sys.executable, "-c", program]], **more)  # fmt: skip


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Runs the command with these parts in a folder of its own; a GPU answers."""
    monkeypatch.setattr(run, "BUILD", tmp_path)
    monkeypatch.setattr(run, "STATE", tmp_path / "state.json")
    monkeypatch.setattr(run, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(machine, "architecture", lambda: "90")
    monkeypatch.delenv("OUT", raising=False)

    def call(*made_parts, arguments=()):
        monkeypatch.setattr(run, "PARTS", made_parts)
        return run.main(list(arguments))

    call.folder = tmp_path
    return call


def statuses(made):
    held = json.loads((made.folder / "state.json").read_text())["parts"]
    return {name: state["status"] for name, state in held.items()}


def test_parts_run_in_order_and_are_not_done_twice(made, capsys):
    note = f"open({str(made.folder / 'order')!r}, 'a').write"
    first, second = part("a", f"{note}('a')"), part("b", f"{note}('b')", requires=("a",))
    assert made(first, second) == 0
    assert made(first, second) == 0
    assert (made.folder / "order").read_text() == "ab"
    assert "a: done before" in capsys.readouterr().out
    assert made(first, second, arguments=["--again"]) == 0
    assert (made.folder / "order").read_text() == "abab"


def test_what_was_done_at_another_commit_is_done_again(made, monkeypatch):
    note = part("a", f"open({str(made.folder / 'order')!r}, 'a').write('a')")
    monkeypatch.setattr(machine, "commit", lambda: "one")
    made(note)
    monkeypatch.setattr(machine, "commit", lambda: "two")
    made(note)
    assert (made.folder / "order").read_text() == "aa"


def test_a_failure_is_told_with_its_output_and_stops_what_needs_it(made, capsys):
    bad = part("a", "import sys; print('so it ends'); sys.exit(3)")
    assert made(bad, part("b", "pass", requires=("a",)), part("c", "pass")) == 1
    assert statuses(made) == {"a": "failed", "b": "skipped", "c": "done"}
    out = capsys.readouterr().out
    assert "so it ends" in out and "exit 3" in out and "needs the part a" in out
    # The next call tries it again, and then what needs it.
    assert made(part("a", "pass"), part("b", "pass", requires=("a",)), part("c", "pass")) == 0
    assert statuses(made) == {"a": "done", "b": "done", "c": "done"}


def test_a_part_that_takes_too_long_is_stopped_with_its_children(made):
    marker = made.folder / "late"
    child = f"import time; time.sleep(3); open({str(marker)!r}, 'w')"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    start = time.monotonic()
    assert made(part("a", program, seconds=1)) == 1
    assert time.monotonic() - start < 3
    assert statuses(made) == {"a": "stopped"}
    time.sleep(3)
    assert not marker.exists()


def test_without_time_parts_are_left_for_the_next_call(made, capsys):
    assert made(part("a", "pass"), arguments=["--minutes", "0.1"]) == 0
    assert statuses(made) == {"a": "not run"}
    assert "no time was left" in capsys.readouterr().out
    assert made(part("a", "pass")) == 0 and statuses(made) == {"a": "done"}


def test_what_is_missing_is_a_reason_and_no_failure(made, capsys):
    assert made(part("a", "1/0", missing=lambda options: "no such tool")) == 0
    assert statuses(made) == {"a": "skipped"} and "no such tool" in capsys.readouterr().out


def test_a_named_part_brings_what_it_requires():
    names = [p.name for p in run.choose(["end-to-end"])]
    assert names == ["build", "bundles", "end-to-end"]
    assert [p.name for p in run.choose([])] == list(parts.NAMES)


def test_every_part_fits_into_one_call_and_requires_what_comes_before():
    for index, p in enumerate(parts.PARTS):
        assert p.seconds < 600
        assert set(p.requires) <= {q.name for q in parts.PARTS[:index]}


def test_everything_goes_into_one_archive(made, monkeypatch, tmp_path):
    out = tmp_path / "out"
    monkeypatch.setenv("OUT", str(out))
    (made.folder / "results").mkdir()
    (made.folder / "results" / "old.json").write_text("{}")
    import os

    os.utime(made.folder / "results" / "old.json", (1, 1))
    monkeypatch.setattr(run, "ROOT", made.folder)
    program = f"open({str(made.folder / 'results' / 'new.json')!r}, 'w').write('{{}}')"
    monkeypatch.setattr(machine, "ROOT", made.folder)
    assert made(part("a", program)) == 0
    assert sorted(p.name for p in out.iterdir()) == ["gpu-run.tar.gz", "summary.txt"]
    with tarfile.open(out / "gpu-run.tar.gz") as archive:
        assert sorted(archive.getnames()) == ["logs/a.log", "results/new.json", "state.json"]


def test_without_a_gpu_the_command_says_so_and_runs_nothing(made, monkeypatch, capsys):
    monkeypatch.setattr(machine, "architecture", lambda: None)
    assert made(part("a", "1/0")) == 2
    assert "no GPU" in capsys.readouterr().err and not (made.folder / "state.json").exists()


def test_the_list_names_every_part_and_what_is_missing(capsys):
    assert run.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(parts.NAMES)
    assert any("no data to train on" in line for line in lines)


def test_a_carried_wheel_is_taken_only_by_its_own_python(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "CARRIED", tmp_path)
    monkeypatch.setattr(build, "TARGET", tmp_path / "core.so")
    here = f"cp{sys.version_info.major}{sys.version_info.minor}"
    for tag, content in ((here, b"ours"), ("cp39", b"another")):
        name = tmp_path / f"smolvla_edge-0.1.0-{tag}-{tag}-linux_x86_64.whl"
        with zipfile.ZipFile(name, "w") as archive:
            archive.writestr(f"smolvla_edge/_core{build.SUFFIX}", content)
    assert build.from_carried() and build.TARGET.read_bytes() == b"ours"
    next(tmp_path.glob(f"*-{here}-*.whl")).unlink()
    assert not build.from_carried()
