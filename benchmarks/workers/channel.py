"""The worker's side of the JSON-lines channel; imported by every worker, needs nothing."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Handler = Callable[[dict[str, Any]], dict[str, Any]]


def open_channel() -> Any:
    """The real stdout; anything that a library prints goes to stderr instead."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return channel


def memory_mib(field: str) -> float:
    """VmHWM (peak since the start or the last `reset_peak`) or VmRSS of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    return float("nan")


def reset_peak() -> bool:
    """Start VmHWM anew, so that the peak of loading does not hide the peak of inference."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def serve(channel: Any, ready: dict[str, Any], handlers: dict[str, Handler]) -> None:
    """Announce `ready`, then answer one line per request until "stop" or end of input."""
    print(json.dumps({"ready": ready}), file=channel, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request["cmd"] == "stop":
            return
        handler = handlers.get(request["cmd"])
        try:
            answer = handler(request) if handler else {"error": f"unknown {request['cmd']!r}"}
        except Exception as error:  # the parent reports it; a worker must not die silently
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=channel, flush=True)
