"""Everything that a GPU is needed for, in one command that fits into ten minutes and goes on later.

    make gpu                                       (or python3 -m tools.gpu.run)
    python3 -m tools.gpu.run --list
    python3 -m tools.gpu.run build tests           these parts alone
    python3 -m tools.gpu.run --minutes 60          all of them, if there is time

Parts run in order while there is time; what is done at this commit on this GPU is not done again,
so that the same command goes on where it stopped. Each part has a limit of its own. Results are
filed in benchmarks/results/<device>*.json and .md; logs in build/gpu/logs; with $OUT set both also
go there as one archive, after every part.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from tools.gpu import machine
from tools.gpu.machine import BUILD, ROOT
from tools.gpu.parts import NAMES, PARTS, Options, Part

STATE = BUILD / "state.json"
LOGS = BUILD / "logs"
RESULTS = ROOT / "benchmarks" / "results"
LEAST_SECONDS = 45.0  # with less time left no part is begun


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python3 -m tools.gpu.run", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("parts", nargs="*", choices=[[], *NAMES], default=[], metavar="PART",
                        help=f"of {', '.join(NAMES)}; all by default")  # fmt: skip
    parser.add_argument("--list", action="store_true", help="what there is and what is missing")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all of it together")
    parser.add_argument("--again", action="store_true", help="also what is done already")
    parser.add_argument("--data", type=Path, help="of tools.demo_policy.generate, for `train`")
    return parser.parse_args(arguments)


def identity() -> dict[str, str | None]:
    """What a result belongs to: it is done again for another commit or GPU."""
    return {"commit": machine.commit(), "architecture": machine.architecture()}


def read_state(me: dict[str, str | None]) -> dict[str, Any]:
    """name -> {"status", "seconds", "reason"} of parts done before; of another identity nothing."""
    try:
        held = json.loads(STATE.read_text())
    except (OSError, ValueError):
        return {}
    return dict(held["parts"]) if held.get("identity") == me else {}


def write_state(me: dict[str, str | None], parts: dict[str, Any]) -> None:
    BUILD.mkdir(parents=True, exist_ok=True)
    partial = STATE.with_suffix(".partial")
    partial.write_text(json.dumps({"identity": me, "parts": parts}, indent=1) + "\n")
    partial.replace(STATE)


def run_part(part: Part, options: Options, seconds: float) -> dict[str, Any]:
    """Run it, its output to the log and to ours. status: done, failed, stopped or skipped."""
    reason = part.missing(options)
    if reason:
        return {"status": "skipped", "seconds": 0.0, "reason": reason}
    LOGS.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    failed: list[str] = []
    with (LOGS / f"{part.name}.log").open("w") as log:
        for command in part.commands(options):
            left = seconds - (time.monotonic() - start)
            print("+", *command, file=log, flush=True)
            code = _follow(command, log, max(1.0, left))
            if code is None:
                spent = time.monotonic() - start
                return {"status": "stopped", "seconds": spent, "reason": f"took over {spent:.0f} s"}
            if code:
                failed.append(f"exit {code} of {' '.join(command[:6])} ...")
    spent = time.monotonic() - start
    status = "failed" if failed else "done"
    return {"status": status, "seconds": spent, "reason": "; ".join(failed)}


def _follow(command: list[str], log: Any, seconds: float) -> int | None:
    """The exit code; None when it was stopped with everything that it started."""
    environment = {**machine.environment(), "SMOLVLA_REQUIRE_GPU": "1"}
    process = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=environment,
        start_new_session=True,
    )  # fmt: skip
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return None


def tail(part: Part, lines: int = 25) -> str:
    path = LOGS / f"{part.name}.log"
    if not path.is_file():
        return ""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def summary(parts: dict[str, Any]) -> str:
    """A line a part."""
    rows = []
    for part in PARTS:
        state = parts.get(part.name, {"status": "not run", "seconds": 0.0, "reason": ""})
        rows.append(f"{part.name:11s} {state['status']:8s} {state['seconds']:5.0f} s  "
                    f"{state['reason'] or part.what}")  # fmt: skip
    return "\n".join(rows)


def hand_back(parts: dict[str, Any]) -> None:
    """Everything into $OUT, where that is set: one archive and the summary."""
    if not os.environ.get("OUT"):
        return
    out = Path(os.environ["OUT"])
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.txt").write_text(summary(parts) + "\n")
    partial = out / "gpu-run.partial"
    with tarfile.open(partial, "w:gz") as archive:
        for path in (STATE, *sorted(LOGS.glob("*.log")), *sorted(RESULTS.glob("*"))):
            if path.is_file() and path.stat().st_mtime >= _BEGAN:
                archive.add(path, arcname=str(path.relative_to(ROOT)))
    partial.replace(out / "gpu-run.tar.gz")


_BEGAN = time.time()


def choose(asked: list[str]) -> list[Part]:
    """The named parts and what they require, or all; in their order."""
    wanted = set(asked)
    for part in reversed(PARTS):
        if part.name in wanted:
            wanted.update(part.requires)
    return [part for part in PARTS if not asked or part.name in wanted]


def main(arguments: list[str] | None = None) -> int:
    words = parse(arguments)
    options = Options(data=words.data.resolve() if words.data else None)
    me = identity()
    parts = {} if words.again else read_state(me)
    if words.list:
        for part in PARTS:
            missing = part.missing(options)
            print(f"{part.name:11s} up to {part.seconds:3d} s  {part.what}"
                  + (f"   [skipped here: {missing}]" if missing else ""))  # fmt: skip
        return 0
    if me["architecture"] is None:
        print("error: no GPU: the driver (libcuda.so.1) finds none", file=sys.stderr)
        return 2
    print(f"commit {me['commit']}, a GPU of architecture sm_{me['architecture']}")
    deadline = time.monotonic() + 60 * words.minutes
    for part in choose(words.parts):
        if parts.get(part.name, {}).get("status") == "done":
            print(f"== {part.name}: done before")
            continue
        behind = [name for name in part.requires if parts.get(name, {}).get("status") != "done"]
        left = deadline - time.monotonic()
        if behind:
            parts[part.name] = {"status": "skipped", "seconds": 0.0,
                                "reason": f"needs the part {', '.join(behind)}"}  # fmt: skip
        elif left < LEAST_SECONDS:
            parts[part.name] = {
                "status": "not run",
                "seconds": 0.0,
                "reason": "no time was left; the same command goes on here",
            }
        else:
            print(f"== {part.name}: {part.what}", flush=True)
            parts[part.name] = run_part(part, options, min(part.seconds, left))
        state = parts[part.name]
        print(f"== {part.name}: {state['status']} after {state['seconds']:.0f} s {state['reason']}")
        if state["status"] in ("failed", "stopped"):
            print(tail(part), flush=True)
        write_state(me, parts)
        hand_back(parts)
    print(summary(parts))
    bad = [name for name, state in parts.items() if state["status"] in ("failed", "stopped")]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
