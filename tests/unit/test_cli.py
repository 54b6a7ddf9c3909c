"""Every verb of the command line: results, JSON, exit codes, refusals."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import refused

import smolvla_edge
from smolvla_edge.cli import demo_speed, inspect_, output, stages
from smolvla_edge.image_file import read_image
from smolvla_edge.synthetic import make_checkpoint

CAMERAS = ("observation.images.camera1", "observation.images.camera2")
ASSETS = files("smolvla_edge") / "assets"
PHOTOGRAPHS = (str(ASSETS / "coffee.ppm"), str(ASSETS / "cat.ppm"))
STATE = "1,-2,3,4,5,6"
TASK = "pick it up"
needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="needs the extra torch")
needs_matplotlib = pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs viz")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("cli") / "tiny", "tiny")


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    target = checkpoint.parent / "bundle"
    smolvla_edge.write_bundle(smolvla_edge.read_checkpoint(checkpoint), target)
    return target


def observation(*, state: str = STATE, task: str = TASK) -> list[str]:
    images = [f"--image={name}={file}" for name, file in zip(CAMERAS, PHOTOGRAPHS, strict=True)]
    return [*images, "--state", state, "--task", task]


class TestApp:
    @pytest.mark.parametrize(
        "verb",
        [
            "demo",
            "run",
            "convert",
            "inspect",
            "verify",
            "doctor",
            "profile",
            "eval",
            "quantize",
            "sensitivity",
            "tune",
            "influence",
            "heal",
            "export",
        ],
    )
    def test_help_teaches(self, cli: Any, verb: str) -> None:
        result = cli(verb, "--help")
        assert result.code == 0
        assert (
            "Example:" in result.out or "Examples:" in result.out
        ) and f"smolvla-edge {verb}" in result.out
        assert any(word in result.out for word in ("next", "Read next", "In a program"))

    def test_version(self, cli: Any) -> None:
        assert smolvla_edge.__version__ in cli("--version").out

    def test_unknown_verb_and_option(self, cli: Any) -> None:
        refused(cli("fly"), "fly")
        refused(cli("demo", "--fast"), "--fast")

    def test_an_error_of_ours_is_not_mistaken_for_a_refusal(
        self, cli: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken() -> None:
            raise KeyError("x")

        monkeypatch.setattr(inspect_, "_kernels", broken)
        result = cli("inspect", "--kernels")
        assert result.code == output.BUG
        assert "Traceback" in result.err and "report" in result.err

    @pytest.mark.parametrize(
        ("raised", "words"),
        [(MemoryError(), "memory"), (OSError(28, "No space left on device", "f"), "f: No space")],
    )
    def test_the_machines_limits_are_short_messages(
        self, cli: Any, monkeypatch: pytest.MonkeyPatch, raised: Exception, words: str
    ) -> None:
        def broken() -> None:
            raise raised

        monkeypatch.setattr(inspect_, "_kernels", broken)
        refused(cli("inspect", "--kernels"), words)

    def test_import_needs_no_extra(self) -> None:
        code = (
            "import sys; import smolvla_edge.cli\n"
            "heavy = {'torch', 'matplotlib', 'PIL', 'huggingface_hub'} & sys.modules.keys()\n"
            "sys.exit(f'imported {heavy}' if heavy else 0)"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

    def test_messages_keep_their_brackets(self, cli: Any, tmp_path: Path) -> None:
        refused(cli("inspect", tmp_path / "[red]x[/red]"), "[red]x[/red]")


class TestOutput:
    @pytest.mark.parametrize("value", [-123456.789, 1e-5, 1e-3, 3e9, 0.0, 1.5])
    def test_actions_fit_80_columns_with_every_digit(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, value: float
    ) -> None:
        monkeypatch.setattr(output, "_PIPE_WIDTH", 80)
        output.print_actions(np.full((50, 12), value, np.float32), "robot units")
        title, heading, *rows = capsys.readouterr().out.rstrip("\n").split("\n")
        steps = heading.split()[2::2]
        assert f"steps 0 to {len(steps) - 1} of 50" in title and len(steps) >= 5
        assert [row.split()[:2] for row in rows] == [["action", str(i)] for i in range(12)]
        for row in rows:
            assert len(row) <= 80
            numbers = [float(word) for word in row.split()[2:]]
            assert numbers == pytest.approx([value] * len(steps), rel=1e-3)

    def test_no_blanks_at_the_ends_of_lines_in_a_pipe(self, cli: Any, bundle: Path) -> None:
        out = cli("inspect", bundle, "--kernels").out
        assert out and all(line == line.rstrip() for line in out.splitlines())

    @pytest.mark.parametrize(
        "verb", [[], ["demo"], ["run"], ["convert"], ["inspect"], ["verify"], ["export"]]
    )
    def test_help_fits_80_columns(
        self, cli: Any, monkeypatch: pytest.MonkeyPatch, verb: list[str]
    ) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        assert max(map(len, cli(*verb, "--help").out.splitlines())) <= 80


class TestRun:
    def test_table(self, cli: Any, bundle: Path) -> None:
        result = cli("run", bundle, *observation())
        assert result.code == 0, result.err
        for word in ("action 5", "step 0", "vision", "total", "native", "flags: none", "camera2"):
            assert word in result.out

    def test_json_is_what_predict_returns(self, cli: Any, checkpoint: Path) -> None:
        result = cli("run", checkpoint, *observation(), "--seed", "7", "--json", "--threads", "1")
        policy = smolvla_edge.load(checkpoint, threads=1)
        images = {n: read_image(f) for n, f in zip(CAMERAS, PHOTOGRAPHS, strict=True)}
        chunk = policy.predict(images, np.array([1, -2, 3, 4, 5, 6], np.float32), TASK, seed=7)
        got = result.json
        np.testing.assert_array_equal(np.array(got["actions"], np.float32), chunk.actions)
        np.testing.assert_array_equal(np.array(got["normalized"], np.float32), chunk.normalized)
        assert got["provenance"]["seed"] == 7 and got["provenance"]["threads"] == 1
        assert got["provenance"]["bundle"] is None and got["flags"] == []
        assert set(got["timings_ms"]) == {"preprocess", "vision", "prefix", "flow", "total"}

    def test_a_state_far_outside_is_flagged(self, cli: Any, bundle: Path) -> None:
        far = observation(state="1,2,3,4,5,5000")
        assert "observation.state[5]" in cli("run", bundle, *far).err
        assert "5000" in cli("run", bundle, *far, "--json").json["flags"][0]

    def test_renames(self, cli: Any, checkpoint: Path) -> None:
        files_ = dict(zip(("top", "wrist"), PHOTOGRAPHS, strict=True))
        images = [f"--image={name}={file}" for name, file in files_.items()]
        names = [f"--rename=top={CAMERAS[0]}", f"--rename=wrist={CAMERAS[1]}"]
        rest = ("--state", STATE, "--task", TASK, "--json")
        renamed = cli("run", checkpoint, *images, *names, *rest).json
        plain = cli("run", checkpoint, *observation(), "--json").json
        assert renamed["actions"] == plain["actions"]

    def test_missing_camera(self, cli: Any, bundle: Path) -> None:
        one = observation()[1:]
        refused(cli("run", bundle, *one), CAMERAS[0], "allow_missing_cameras")
        result = cli("run", bundle, *one, "--allow-missing-cameras")
        assert result.code == 0 and f"{CAMERAS[0]}: missing" in result.err
        assert "missing" not in cli("run", bundle, *observation()).err

    @pytest.mark.parametrize(
        ("name", "content"),
        [("s.json", b"[1, -2, 3, 4, 5, 6]"), ("s.npy", None)],
    )
    def test_state_from_a_file(
        self, cli: Any, bundle: Path, tmp_path: Path, name: str, content: bytes | None
    ) -> None:
        path = tmp_path / name
        if content is None:
            np.save(path, np.array([1, -2, 3, 4, 5, 6], np.float64))
        else:
            path.write_bytes(content)
        got = cli("run", bundle, *observation(state=f"@{path}"), "--json").json
        assert got["actions"] == cli("run", bundle, *observation(), "--json").json["actions"]

    @pytest.mark.parametrize(
        "state", ["", "1,2,3", "1,2,3,4,5,x", "1,2,3,4,5,nan", "1,2,3,4,5,1e99", "@nothing.json"]
    )
    def test_refuses_a_bad_state(self, cli: Any, bundle: Path, state: str) -> None:
        refused(cli("run", bundle, *observation(state=state)), "state")

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("a.json", b"[1, 2, [3]]"),
            ("a.json", b"{"),
            ("a.json", b'"1"'),
            ("a.json", b"[1, true, 3, 4, 5, 6]"),
            ("a.json", b"[1" + b"0" * 400 + b"]"),
            ("a.json", b"[" * 100_000),
            ("a.npy", b"\x93NUMPY"),
            ("a.npy", b"hello"),
            # numpy's header reader gives up with tokenize.TokenError
            ("a.npy", b"\x93NUMPY\x01\x00\x18\x00{'descr': '<f4', 'shape': (" + bytes(8)),
            ("a.txt", b"1 2 3"),
            ("a.json", b" " * (2 << 20)),
        ],
    )
    def test_refuses_a_bad_state_file(
        self, cli: Any, bundle: Path, tmp_path: Path, name: str, content: bytes
    ) -> None:
        (tmp_path / name).write_bytes(content)
        refused(cli("run", bundle, *observation(state=f"@{tmp_path / name}")), "--state")

    def test_a_pickle_is_never_loaded(self, cli: Any, bundle: Path, tmp_path: Path) -> None:
        np.save(tmp_path / "p.npy", np.array([{"a": 1}], object), allow_pickle=True)
        refused(cli("run", bundle, *observation(state=f"@{tmp_path / 'p.npy'}")), "malformed")

    def test_names_what_is_missing(self, cli: Any, bundle: Path) -> None:
        refused(cli("run", bundle), "--image", "--state", "--task", "inspect")
        refused(cli("run"), "CHECKPOINT|BUNDLE")

    @pytest.mark.parametrize("image", ["noequals", "=file", "name="])
    def test_refuses_a_malformed_image_option(self, cli: Any, bundle: Path, image: str) -> None:
        refused(cli("run", bundle, *observation(), "--image", image), "--image")

    @pytest.mark.parametrize(
        "plan, words",
        [
            ("exact", "plan exact: 4 euler steps weights"),
            ("steps=2,solver=ab2", "plan not exact: 2 ab2 steps weights"),
            ("fast", "not exact: 2 euler steps, cache.threshold=0.02,cache.keyframe_every=20"),
        ],
    )
    def test_says_what_was_left_out(self, cli: Any, bundle: Path, plan: str, words: str) -> None:
        printed = cli("run", bundle, *observation(), "--plan", plan)
        assert printed.code == 0 and words in " ".join(printed.out.split())

    def test_refuses_a_camera_given_twice(self, cli: Any, bundle: Path) -> None:
        again = f"{CAMERAS[0]}={PHOTOGRAPHS[0]}"
        refused(cli("run", bundle, *observation(), "--image", again), "twice")

    @pytest.mark.parametrize(
        "more",
        [
            ["--plan", "quick"],
            ["--backend", "gpu"],
            ["--threads", "0"],
            ["--seed", "-1"],
            ["--plot", "actions.txt"],
            ["--tokenizer", "nothing.json"],
            ["--rename", "a=b"],
        ],
    )
    def test_refuses_bad_options(self, cli: Any, bundle: Path, more: list[str]) -> None:
        refused(cli("run", bundle, *observation(), *more))

    def test_refuses_an_empty_and_a_long_task(self, cli: Any, bundle: Path) -> None:
        refused(cli("run", bundle, *observation(task=" ")), "task")
        refused(cli("run", bundle, *observation(task="x" * 200)), "48 tokens")

    @needs_matplotlib
    def test_plot(self, cli: Any, bundle: Path, tmp_path: Path) -> None:
        target = tmp_path / "actions.png"
        assert cli("run", bundle, *observation(), "--plot", target).code == 0
        assert target.read_bytes().startswith(b"\x89PNG")

    def test_plot_without_matplotlib_is_said_before_the_work(
        self, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        target = tmp_path / "a.png"
        refused(cli("run", "nothing", *observation(), "--plot", target), "smolvla-edge[viz]")


class TestConvert:
    def test_makes_a_bundle_once(self, cli: Any, checkpoint: Path, tmp_path: Path) -> None:
        target = tmp_path / "bundle"
        result = cli("convert", checkpoint, target, "--json")
        assert result.code == 0, result.err
        made = smolvla_edge.read_bundle(target)
        assert result.json["digest"] == made.digest
        assert result.json["tensors"] == len(made.tensors) and result.json["dead_tensors"]
        refused(cli("convert", checkpoint, target), "--force")
        refused(cli("convert", tmp_path / "nothing", target), "--force")  # before any download
        again = cli("convert", checkpoint, target, "--force")
        assert again.code == 0 and "next" in again.out

    def test_refuses_what_is_no_checkpoint(self, cli: Any, tmp_path: Path) -> None:
        refused(cli("convert", tmp_path / "nothing", tmp_path / "b"), "nothing")
        assert not list(tmp_path.iterdir())

    def test_allow_unnormalized_is_said_loudly(
        self, cli: Any, checkpoint: Path, tmp_path: Path
    ) -> None:
        bare = tmp_path / "bare"
        shutil.copytree(checkpoint, bare)
        for file in bare.glob("policy_*"):
            file.unlink()
        refused(cli("convert", bare, tmp_path / "b"), "observation.state", "--allow-unnormalized")
        result = cli("convert", bare, tmp_path / "b", "--allow-unnormalized", "--json")
        assert result.json["unnormalized"] == ["observation.state", "action"]
        assert "NOT normalised" in result.err
        refused(cli("run", tmp_path / "b", *observation()), "normali")
        ran = cli("run", tmp_path / "b", *observation(), "--allow-unnormalized")
        assert ran.code == 0 and "NOT NORMALISED" in ran.out
        assert "NOT robot units" in ran.out and "action: not normalised" in ran.err


class TestInspect:
    def test_contract_of_a_checkpoint(self, cli: Any, checkpoint: Path) -> None:
        result = cli("inspect", checkpoint)
        assert result.code == 0, result.err
        for word in (*CAMERAS, "MEAN_STD", "chunk", "expert", "BF16", "never reach an action"):
            assert word in result.out

    def test_json_of_a_bundle(self, cli: Any, bundle: Path) -> None:
        got = cli("inspect", bundle, "--json").json
        read = smolvla_edge.read_bundle(bundle)
        assert got["kind"] == "bundle" and got["digest"] == read.digest
        assert got["contract"]["cameras"] == list(CAMERAS)
        assert sum(part["tensors"] for part in got["parts"]) == len(read.tensors)
        assert sum(p["bytes"] for p in got["parts"]) == sum(e.nbytes for e in read.tensors.values())
        assert got["parts"][0]["part"] == "vision"

    def test_kernels(self, cli: Any) -> None:
        table = cli("inspect", "--kernels", "--json").json["kernels"]["table"]
        served = {row["op"] for row in table if row["supported"]}  # some want what few CPUs have
        chosen = [row["op"] for row in table if row["chosen"]]
        assert set(chosen) == served and len(chosen) == len(served)
        assert {"gemm_f32", "dot8", "softmax"} <= served
        assert "gemm_f32" in cli("inspect", "--kernels").out

    def test_refuses_nothing_and_nonsense(self, cli: Any, tmp_path: Path) -> None:
        refused(cli("inspect"), "--kernels")
        refused(cli("inspect", tmp_path), "config.json")


class TestVerify:
    @needs_torch
    @pytest.mark.parametrize("given", [[], observation()])
    def test_passes(self, cli: Any, bundle: Path, given: list[str]) -> None:
        result = cli("verify", bundle, *given, "--json")
        assert result.code == 0, result.out
        got = result.json
        assert got["passed"] and got["files"] == "passed"
        assert got["synthetic"] == ([] if given else ["images", "state", "task"])
        assert {stage["stage"] for stage in got["stages"]} >= stages.REQUIRED
        assert all(stage["passed"] for stage in got["stages"])

    @needs_torch
    def test_fails_with_exit_code_1(self, cli: Any, checkpoint: Path) -> None:
        result = cli("verify", checkpoint, "--tolerance", "0")
        assert result.code == 1
        assert "FAIL" in result.out and "FAILED" in result.out

    @needs_torch
    def test_blank_cameras_are_compared_by_valid_rows(self, cli: Any, tmp_path: Path) -> None:
        made = make_checkpoint(tmp_path / "c", "tiny", overrides={"empty_cameras": 1})
        got = cli("verify", made, "--json").json
        assert got["passed"] and len(got["cameras"]) == 3

    def test_damaged_files(self, cli: Any, bundle: Path, tmp_path: Path) -> None:
        copy = tmp_path / "bundle"
        shutil.copytree(bundle, copy)
        weights = copy / "model.safetensors"
        data = bytearray(weights.read_bytes())
        data[-100] ^= 1
        weights.write_bytes(data)
        for more in ([], ["--files-only"]):
            result = cli("verify", copy, *more)
            assert result.code == 1
            assert "SHA-256" in result.err and "FAILED" in result.out

    def test_files_only(self, cli: Any, bundle: Path, checkpoint: Path) -> None:
        assert cli("verify", bundle, "--files-only", "--json").json["passed"]
        refused(cli("verify", checkpoint, "--files-only"), "bundle")

    def test_needs_torch(self, cli: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch", None)
        refused(cli("verify", checkpoint), "smolvla-edge[torch]")


class TestDemo:
    def test_makes_uses_and_reports(
        self, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        first = cli("demo", "--size", "tiny")
        assert first.code == 0, first.err
        assert "untrained weights" in first.out and "untrained weights" in first.err
        for word in ("first call", "warm", "action 5", "peak memory", "next:"):
            assert word in first.out
        assert "made" in first.err
        folders = list((tmp_path / "cache" / "smolvla-edge" / "demo").iterdir())
        assert len(folders) == 1  # complete, nothing partial beside it
        again = cli("demo", "--size", "tiny", "--json")
        assert "using the checkpoint" in again.err
        got = again.json
        assert got["same_bytes_every_call"] and got["warm_calls"] == 20
        assert set(got["warm_median_ms"]) == set(got["first_call_ms"])
        assert np.isfinite(got["actions"]).all()
        if find_spec("matplotlib"):
            assert (tmp_path / "actions.png").read_bytes().startswith(b"\x89PNG")

    def test_keep(self, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        kept = tmp_path / "kept"
        assert cli("demo", "--size", "tiny", "--keep", kept).code == 0
        smolvla_edge.read_checkpoint(kept)
        other = tmp_path / "other"
        other.mkdir()
        (other / "important.txt").write_text("mine")
        refused(cli("demo", "--size", "tiny", "--keep", other), "no checkpoint of this demo")
        assert [file.name for file in other.iterdir()] == ["important.txt"]

    def test_disk_full(self, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = shutil.disk_usage(tmp_path)._replace(free=900_000_000)
        monkeypatch.setattr(demo_speed.shutil, "disk_usage", lambda path: usage)
        refused(cli("demo", "--size", "full", "--keep", tmp_path / "c"), "1000 MB", "--size tiny")
        assert not (tmp_path / "c").exists()

    def test_without_matplotlib(
        self, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        arguments = ("demo", "--size", "tiny", "--keep", tmp_path / "c")
        result = cli(*arguments)
        assert result.code == 0 and "smolvla-edge[viz]" in result.err
        refused(cli(*arguments, "--plot", tmp_path / "a.png"), "smolvla-edge[viz]")
