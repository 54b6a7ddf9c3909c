"""Several calls for one request; imported by every worker.

A GPU lowers its clocks when nothing asks for it, and is fast again after some milliseconds of work:
a sample after a pause is of another machine. So calls come in bursts, whose first are not counted.
"""

from __future__ import annotations

from typing import Any

from benchmarks.workers.channel import Handler
from benchmarks.workers.device_memory import DeviceMemory


def counted(handler: Handler, memory: DeviceMemory) -> Handler:
    """The handler, with what it took of the device's memory in its answer."""

    def call(request: dict[str, Any]) -> dict[str, Any]:
        with memory.during():
            answer = handler(request)
        return {**answer, "device_mib": memory.own_mib}

    return call


def bursts(run: Handler) -> Handler:
    """{"cmd": "burst", "lead_in": n, "calls": m, ...} -> {"answers": m answers of `run`}."""

    def burst(request: dict[str, Any]) -> dict[str, Any]:
        answers = []
        for index in range(request["lead_in"] + request["calls"]):
            answer = run(request)
            if "error" in answer:
                return answer
            if index >= request["lead_in"]:
                answers.append(answer)
        return {"answers": answers}

    return burst
