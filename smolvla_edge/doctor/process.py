"""Asking another program, which may be absent, fail, crash or hang."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """What a program said. `problem` is empty when it ended with exit code 0."""

    out: str = ""
    err: str = ""
    problem: str = ""
    absent: bool = False  # there is no such program

    @property
    def last_line(self) -> str:
        """The line that says most about a failure: the last of stderr, else of stdout."""
        for text in (self.err, self.out):
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            if lines:
                return lines[-1][:300]
        return ""


Run = Callable[[Sequence[str]], Outcome]


def run(
    command: Sequence[str], *, seconds: float = 10.0, environment: Mapping[str, str] | None = None
) -> Outcome:
    """Run a program without a shell and without input. Never raises for what the program does."""
    try:
        done = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
            env=None if environment is None else dict(environment),
        )
    except FileNotFoundError:
        return Outcome(problem=f"{command[0]} is not installed", absent=True)
    except subprocess.TimeoutExpired:
        return Outcome(problem=f"gave no answer in {seconds:g} s")
    except (OSError, ValueError) as cause:
        return Outcome(problem=f"cannot be started: {cause}")
    out = done.stdout.decode("utf-8", "replace")
    err = done.stderr.decode("utf-8", "replace")
    return Outcome(out, err, _ending(done.returncode))


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}" if code else ""
    try:
        return f"crashed with {signal.Signals(-code).name}"
    except ValueError:
        return f"crashed with signal {-code}"
