"""The arithmetic of the benchmarks: turns, percentiles, what is left out, ratios."""

from __future__ import annotations

import benchmark_helpers  # noqa: F401  (puts the repository on the path)
import numpy as np
import pytest

from benchmarks import end_to_end, harness
from benchmarks.summary import (
    P99_NEEDS,
    Sample,
    action_difference,
    percentile,
    ratio,
    summarise,
    turns,
    undisturbed,
)
from benchmarks.workers.burst import bursts, counted
from benchmarks.workers.device_memory import DeviceMemory


def sample(ms, foreign=0.0, actions=((0.0,),), stages=None, rss=100.0):
    return Sample(ms, stages or {"vision": ms / 2}, foreign, 0.0, rss, [list(r) for r in actions])


def test_rounds_go_forth_and_back():
    names = ["a", "b", "c"]
    assert [turns(names, i) for i in range(3)] == [names, ["c", "b", "a"], names]
    assert names == ["a", "b", "c"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_percentiles_are_numpys(share, count):
    values = np.random.default_rng(count).standard_normal(count).tolist()
    assert percentile(values, share) == pytest.approx(np.percentile(values, share * 100), abs=1e-12)


def test_percentiles_by_hand():
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert percentile([10.0, 20.0], 0.9) == 19.0


def test_disturbed_samples_are_left_out():
    samples = [sample(10.0), sample(11.0), sample(12.0), sample(99.0, foreign=0.5)]
    result = summarise(samples, quiet_limit=0.05)
    assert (result["p50_ms"], result["max_ms"]) == (11.0, 12.0)
    assert (result["samples"], result["samples_used"], result["disturbed"]) == (4, 3, 1)
    assert result["disturbed_used"] is False
    assert result["all_ms"] == [10.0, 11.0, 12.0, 99.0]
    assert result["stages_ms"] == {"vision": 5.5}


def test_with_too_few_quiet_samples_all_count_and_it_is_said():
    samples = [sample(10.0), sample(20.0, foreign=0.5), sample(30.0, foreign=0.5)]
    result = summarise(samples, quiet_limit=0.05)
    assert (result["p50_ms"], result["samples_used"], result["disturbed"]) == (20.0, 3, 2)
    assert result["disturbed_used"] is True


def test_a_single_quiet_sample_is_enough_when_there_is_one():
    assert undisturbed([sample(1.0)], 0.05) == ([sample(1.0)], False)
    assert undisturbed([sample(1.0, foreign=0.5)], 0.05)[1] is True


def test_p99_needs_a_hundred_samples():
    assert P99_NEEDS == 100
    few = summarise([sample(float(i)) for i in range(99)], 0.05)
    assert few["p99_ms"] is None and few["max_ms"] == 98.0
    enough = summarise([sample(float(i)) for i in range(100)], 0.05)
    assert enough["p99_ms"] == pytest.approx(98.01)


def test_action_difference():
    left = sample(1.0, actions=[[1.0, 2.0], [3.0, 4.0]])
    right = sample(1.0, actions=[[1.0, 2.5], [3.0, -4.0]])
    assert action_difference(left, right) == {
        "max_abs": 8.0, "mean_abs": 8.5 / 4, "largest_action": 4.0,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"shorter|longer"):
        action_difference(left, sample(1.0, actions=[[1.0, 2.0]]))


def test_ratio_is_the_rivals_time_over_ours():
    ours = {"engine": "a", "cameras": 1, "language": "longest", "p50_ms": 10.0, "p10_ms": 8.0,
            "p90_ms": 12.0}  # fmt: skip
    rival = {"engine": "b", "p50_ms": 30.0, "p10_ms": 24.0, "p90_ms": 40.0}
    found = ratio(ours, rival)
    assert (found["ratio"], found["low"], found["high"]) == (3.0, 2.0, 5.0)
    assert (found["engine"], found["rival"], found["cameras"]) == ("a", "b", 1)


class FakeWorker:
    """Answers at once; the sample's disturbance comes from a list."""

    def __init__(self, name, foreign):
        self.name, self.foreign = name, list(foreign)
        self.asked = []

    def ask(self, timeout=None, **request):
        self.asked.append(request["cmd"])
        return {"seconds": 1.0, "peak_rss_mib": 5.0}


@pytest.fixture
def asked(monkeypatch):
    order = []

    def timed_runs(worker, calls, lead_in, **request):
        order.append(worker.name)
        foreign = worker.foreign.pop(0) if worker.foreign else 0.0
        return [sample(10.0, foreign=foreign) for _ in range(calls)]

    monkeypatch.setattr(end_to_end, "timed_runs", timed_runs)
    monkeypatch.setattr(end_to_end, "wait_for_quiet", lambda *_: None)
    monkeypatch.setattr(end_to_end, "log", lambda *_: None)
    return order


def test_engines_take_turns_and_the_order_alternates(asked):
    workers = {n: FakeWorker(n, []) for n in "abc"}
    options = end_to_end.parse(["--repeats", "3", "--warmup", "1"])
    samples, prepared = end_to_end.measure(workers, 1, "longest", options)
    assert "".join(asked) == "abc" + "cba" + "abc"
    assert all(worker.asked == ["prepare", "run"] for worker in workers.values())
    assert {name: len(series) for name, series in samples.items()} == dict.fromkeys("abc", 3)
    assert [p["engine"] for p in prepared] == ["a", "b", "c"]


def test_a_disturbed_sample_is_repeated_at_once_while_retries_last(asked):
    workers = {"a": FakeWorker("a", [0.5, 0.5, 0.5]), "b": FakeWorker("b", [])}
    options = end_to_end.parse(["--repeats", "1", "--warmup", "0", "--retries", "2"])
    samples, _ = end_to_end.measure(workers, 1, "longest", options)
    assert "".join(asked) == "aaab"
    assert len(samples["a"]) == 3 and len(samples["b"]) == 1


def test_a_rival_that_cannot_be_prepared_is_left_out_and_named(asked):
    class Broken(FakeWorker):
        def ask(self, timeout=None, **request):
            raise harness.WorkerError(f"{self.name}: out of memory")

        def close(self):
            self.asked.append("close")

    broken = Broken("lerobot bfloat16 compiled", [])
    workers = {"smolvla-edge bfloat16": FakeWorker("a", []), broken.name: broken}
    options = end_to_end.parse(["--repeats", "2", "--warmup", "0"])
    samples, prepared = end_to_end.measure(workers, 1, "longest", options)
    assert list(samples) == ["smolvla-edge bfloat16"] == list(workers)
    assert prepared[1]["failed"] == "lerobot bfloat16 compiled: out of memory"
    assert broken.asked == ["close"]
    # Ours has to work: without it there is nothing to compare.
    with pytest.raises(harness.WorkerError):
        end_to_end.measure({"smolvla-edge float32": broken}, 1, "longest", options)


def test_on_a_gpu_a_turn_is_a_burst(asked):
    options = end_to_end.parse(["--device", "cuda", "--repeats", "6", "--warmup", "0"])
    assert (options.burst, options.lead_in) == (20, 5)
    samples, _ = end_to_end.measure({"a": FakeWorker("a", [])}, 1, "longest", options)
    assert len(asked) == 6 and len(samples["a"]) == 120  # enough for a 99th percentile
    assert (end_to_end.parse([]).burst, end_to_end.parse([]).lead_in) == (1, 0)


def test_a_burst_leaves_its_first_calls_out_and_passes_errors_on():
    answers = iter(range(10))
    burst = bursts(lambda request: {"ms": next(answers), "cameras": request["cameras"]})
    got = burst({"cmd": "burst", "lead_in": 2, "calls": 3, "cameras": 1})
    assert [a["ms"] for a in got["answers"]] == [2, 3, 4] and got["answers"][0]["cameras"] == 1
    assert bursts(lambda request: {"error": "no"})({"lead_in": 0, "calls": 1}) == {"error": "no"}


def test_memory_of_a_gpu_is_what_it_grew_by_while_this_process_worked(monkeypatch):
    memory = DeviceMemory()
    memory.own_mib = 0.0  # as where there is a driver
    held = iter([100.0, 600.0, 900.0, 950.0])  # somebody else took 300 in between
    monkeypatch.setattr(memory, "_used_mib", lambda: next(held))
    for _ in range(2):
        with memory.during():
            pass
    assert memory.own_mib == 550.0
    answer = counted(lambda request: {"ms": 1.0}, DeviceMemory())({})
    assert answer["ms"] == 1.0 and "device_mib" in answer


def test_a_worker_that_dies_or_fails_is_an_error(tmp_path):
    import sys

    with pytest.raises(harness.WorkerError, match="mute: the worker ended"):
        harness.Worker("mute", [sys.executable, "-c", "pass"], tmp_path)
    program = "import sys; print('{\"ready\": {}}', flush=True); sys.stdin.readline(); " \
        "print('{\"error\": \"no such thing\"}', flush=True)"  # fmt: skip
    worker = harness.Worker("sick", [sys.executable, "-c", program], tmp_path)
    with pytest.raises(harness.WorkerError, match="sick: no such thing"):
        worker.ask(cmd="run")
    worker.close()
