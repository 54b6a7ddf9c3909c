"""`smolvla-edge doctor` as a person and as a program see it."""

from __future__ import annotations

import json
import shutil

import pytest
from bundle_helpers import WEIGHTS

from smolvla_edge import doctor as package
from smolvla_edge.bundle_writer import write_bundle
from smolvla_edge.checkpoint import read_checkpoint
from smolvla_edge.cli.app import app
from smolvla_edge.doctor import report as report_module
from smolvla_edge.doctor.finding import FAIL, PASS, SECTIONS, STATUSES, WARN, Finding
from smolvla_edge.errors import BackendError


@pytest.fixture
def whole_cli(capsys):
    """The command as it is; it takes seconds for every backend."""

    def call(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            app(args=["doctor", *map(str, arguments)], prog_name="smolvla-edge")
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def cli(whole_cli, monkeypatch):
    """The same with one backend, for tests of everything else."""
    jobs = report_module.backends.jobs
    monkeypatch.setattr(
        report_module.backends,
        "jobs",
        lambda isas, _, environment, with_cuda: jobs(["scalar"], False, environment),
    )
    return whole_cli


@pytest.fixture(scope="module")
def original(pristine, tmp_path_factory):
    path = tmp_path_factory.mktemp("doctor-cli") / "bundle"
    write_bundle(read_checkpoint(pristine), path)
    return path


@pytest.fixture
def bundle(original, tmp_path):
    return shutil.copytree(original, tmp_path / "bundle")


def report(out: str) -> dict:
    """The JSON report, its schema checked."""
    data = json.loads(out)
    assert data.keys() == {"smolvla_edge", "passed", "counts", "findings"}
    assert set(data["counts"]) == set(STATUSES)
    assert sum(data["counts"].values()) == len(data["findings"])
    assert data["passed"] == (data["counts"][FAIL] == 0)
    for finding in data["findings"]:
        assert finding.keys() == {"section", "check", "status", "message", "remedy", "facts"}
        assert finding["section"] in SECTIONS and finding["status"] in STATUSES
        assert finding["message"] and isinstance(finding["facts"], dict)
        assert bool(finding["remedy"]) == (finding["status"] != PASS)
        assert "internal" not in finding["facts"], finding
    order = [SECTIONS.index(finding["section"]) for finding in data["findings"]]
    assert order == sorted(order)
    return data


def named(data: dict, check: str) -> dict:
    (found,) = [finding for finding in data["findings"] if finding["check"] == check]
    return found


def test_this_machine(whole_cli):
    code, out, _ = whole_cli("--json")
    data = report(out)
    assert code == (0 if data["passed"] else 1)
    checks = {finding["check"] for finding in data["findings"]}
    expected = ("cpu", "threads", "load", "memory", "swap", "clock", "temperature", "gpu", "disk")
    software = ("core", "system", "python", "packages", "extra torch", "extra hub", "extra viz")
    assert {*expected, *software, "policy", "native scalar"} <= checks
    ran = [f for f in data["findings"] if f["section"] == "backends"]
    assert len(ran) >= len(named(data, "cpu")["facts"]["supported"])
    assert {f["status"] for f in ran} == {PASS}
    memory = named(data, "memory")
    assert memory["facts"]["weights"] > 600 << 20  # of a full-sized policy


def test_a_bundle(cli, bundle):
    code, out, _ = cli(bundle, "--json", "--threads", 1)
    data = report(out)
    for check in ("policy", "files", "normalisation", "tokenizer", "presets"):
        assert named(data, check)["status"] == PASS
    assert code == (0 if data["passed"] else 1)
    assert named(data, "memory")["facts"]["weights"] < 10 << 20
    assert named(data, "threads")["facts"]["threads"] == 1


def test_a_checkpoint(cli, pristine):
    _, out, _ = cli(pristine, "--json")
    data = report(out)
    assert "not converted" in named(data, "policy")["message"]
    assert not [f for f in data["findings"] if f["check"] in ("files", "presets")]


def test_a_damaged_bundle(cli, bundle):
    data = bytearray((bundle / WEIGHTS).read_bytes())
    data[-1] ^= 0x80
    (bundle / WEIGHTS).write_bytes(data)
    code, out, _ = cli(bundle, "--json")
    assert code == 1
    damaged = named(report(out), "files")
    assert damaged["status"] == FAIL and "checksum" in damaged["message"]


def test_a_bundle_that_cannot_be_read_leaves_the_rest_of_the_report(cli, bundle):
    (bundle / WEIGHTS).unlink()
    code, out, _ = cli(bundle, "--json")
    data = report(out)
    assert code == 1 and named(data, "policy")["status"] == FAIL
    assert named(data, "native scalar")["status"] == PASS


def test_a_place_that_does_not_exist(cli, tmp_path):
    code, out, err = cli(tmp_path / "nothing")
    assert code == 1 and "Traceback" not in err
    assert "nothing" in out and "fail" in out


def test_words_for_a_person(cli, bundle):
    (bundle / WEIGHTS).unlink()
    code, out, err = cli(bundle)
    assert code == 1
    for words in (
        "machine",
        "software",
        "policy",
        "backends",
        "-> copy the bundle again",
        "1 fail",
    ):
        assert words in out
    assert "pass" not in err and out.strip().splitlines()[-1].endswith("1 fail")


def test_help_teaches(cli):
    code, out, _ = cli("--help")
    assert code == 0
    for words in ("Example:", "smolvla-edge doctor my_bundle", "warn", "Exit code", "Read next"):
        assert words in out


def test_a_check_of_ours_that_breaks_is_a_line(cli, monkeypatch):
    def broken(*_):
        raise KeyError("x")

    monkeypatch.setattr(report_module.clock, "read_clock", broken)
    monkeypatch.setattr(report_module.gpu, "read_gpu", broken)
    monkeypatch.setattr(report_module, "read_limits", broken)
    monkeypatch.setattr(report_module.backends, "run_all", broken)
    _, out, err = cli("--json")
    data = json.loads(out)
    internal = [f for f in data["findings"] if "internal" in f["facts"]]
    found = {f["check"]: f["status"] for f in internal}
    assert found == {"limits": WARN, "clock": WARN, "gpu": WARN, "backends": FAIL}
    assert all("KeyError" in f["message"] and "report this line" in f["remedy"] for f in internal)
    assert "Traceback" not in err
    assert named(data, "threads")["facts"]["quota"] is None


def test_no_core(cli, monkeypatch):
    def missing():
        raise BackendError("the C++ core cannot be imported: no such file")

    monkeypatch.setattr(report_module, "load_core", missing)
    code, out, _ = cli("--json")
    data = report(out)
    assert code == 1 and named(data, "core")["status"] == FAIL
    assert not [f for f in data["findings"] if f["section"] == "backends"]


def test_a_forced_isa(cli, monkeypatch):
    monkeypatch.setenv("SMOLVLA_FORCE_ISA", "scalar")
    code, out, _ = cli("--json")
    data = report(out)
    assert named(data, "cpu")["status"] == WARN
    assert named(data, "native (as forced)")["facts"]["isa"] == "scalar"
    assert code == 0


def test_a_forced_isa_that_is_not_there(cli, monkeypatch):
    monkeypatch.setenv("SMOLVLA_FORCE_ISA", "abacus")
    code, out, _ = cli("--json")
    data = report(out)
    assert code == 1
    cpu = named(data, "cpu")
    assert cpu["status"] == FAIL and "abacus" in cpu["message"] and "unset" in cpu["remedy"]


def test_a_path_that_is_no_text(cli):
    code, _, err = cli("no\udcffbundle")
    assert code == 1 and "Traceback" not in err


def test_examine_is_silent_and_complete_without_a_terminal(cli, capsys):
    findings = package.examine()
    assert capsys.readouterr() == ("", "")
    assert all(isinstance(finding, Finding) for finding in findings)
    assert package.counts(findings)[PASS] > 10
