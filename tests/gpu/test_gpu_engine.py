"""What recorded stages must not change: other calls, threads, neighbours, memory that ends."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import smolvla_edge
from smolvla_edge import _core
from smolvla_edge.errors import BackendError, NonFiniteError
from smolvla_edge.plan import Plan
from smolvla_edge.policy import Policy

pytestmark = pytest.mark.gpu

CAMERAS = ("observation.images.camera1", "observation.images.camera2")
RANDOM = np.random.default_rng(11)
FRAMES = [RANDOM.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(3)]
TASKS = ("go", "pick up the cube", "put the red cube into the box on the left of it")


@pytest.fixture(scope="module")
def policy(tiny) -> Policy:
    return smolvla_edge.load(tiny, device="cuda", allow_missing_cameras=True)


def observe(policy: Policy, number: int) -> np.ndarray:
    """The chunk of observation `number`: prompt, cameras, state, seed and guidance all differ."""
    cameras = {
        name: FRAMES[(number + i) % 3]
        for i, name in enumerate(CAMERAS)
        if number % 4 != i + 1  # now and then without one of them
    }
    state = np.sin(np.arange(policy.contract.state_dim) + number).astype(np.float32)
    rest = {}
    if number % 3 == 2:
        left_over = np.full((4, policy.contract.action_dim), number % 5 / 10, np.float32)
        rest = {"prev_chunk_left_over": left_over, "inference_delay": number % 3}
    chunk = policy.predict(cameras, state, TASKS[number % 3], seed=number, **rest)
    return chunk.actions


def held(policy: Policy) -> dict:
    """What a call must leave as it found it."""
    info = policy.engine.info()
    return {name: info[name] for name in ("graphs", "arena_bytes", "weights_bytes", "pinned_bytes")}


def test_what_it_says_of_itself(policy):
    info = policy.engine.info()
    (device,) = [d for d in _core.cuda()["devices"] if d["name"] == info["device_name"]][:1]
    assert info["device"] == "cuda" and info["sm"] == device["sm"] >= 80
    assert info["memory_bytes"] == device["memory_bytes"] > info["weights_bytes"] > 0
    assert info["arena_bytes"] > 0 and info["ready"] is True
    assert "threads" not in info and "isa" not in info
    assert policy.provenance["device"] == "cuda"
    assert policy.provenance["device_name"] == info["device_name"]


def test_auto_takes_the_gpu_unless_cpu_options_are_given(tiny):
    auto = smolvla_edge.load(tiny, warm_up=False)
    assert auto.provenance["device"] == "cuda" and auto.engine.info()["ready"] is False
    assert smolvla_edge.load(tiny, threads=1).provenance["device"] == "cpu"
    assert smolvla_edge.load(tiny, device="cpu").provenance["device"] == "cpu"


def test_after_warm_up_no_call_records_or_allocates(policy, world):
    """Every prompt length, camera set, seed and guidance under this plan."""
    before = held(policy)
    blocks = _core.emulator.allocations_in_use() if world.emulated else 0
    for number in range(12):  # 3 prompts x 4 camera sets, guided and not
        observe(policy, number)
    longest = policy.contract.tokenizer.max_length
    state = np.zeros(policy.contract.state_dim, np.float32)
    for words in {*range(1, longest, 16 if world.emulated else 1), longest - 1}:
        policy.predict({CAMERAS[0]: FRAMES[0]}, state, "a" * words, seed=words)
    large = np.zeros((1080, 1920, 3), np.uint8)
    small = large[:540, :960].astype(np.float32)  # as many bytes
    policy.predict({CAMERAS[0]: large, CAMERAS[1]: small}, state, "go", seed=0)
    assert held(policy) == before
    if world.emulated:
        assert _core.emulator.allocations_in_use() == blocks


def test_a_plan_with_a_horizon_is_warmed_up_for_it(policy, tiny):
    plan = Plan(steps=policy.plan.steps, horizon=3)
    short = smolvla_edge.load(tiny, device="cuda", plan=plan, allow_missing_cameras=True)
    before = held(short)
    for number in range(3):
        # The expert is causal: the rows that are computed are those of the whole chunk.
        assert np.array_equal(observe(short, number), observe(policy, number)[:3])
    assert held(short) == before


def test_without_warm_up_stages_are_recorded_when_they_come(tiny, policy):
    cold = smolvla_edge.load(tiny, device="cuda", warm_up=False, allow_missing_cameras=True)
    assert cold.engine.info()["graphs"] == 0
    first = observe(cold, 0)
    recorded = cold.engine.info()["graphs"]
    assert 0 < recorded < policy.engine.info()["graphs"]
    # Computed operation by operation, then replayed; and what a warm-up recorded.
    assert np.array_equal(observe(cold, 0), first)
    assert np.array_equal(observe(policy, 0), first)
    assert cold.engine.info()["graphs"] == recorded


def test_progress_of_a_warm_up(tiny):
    policy = smolvla_edge.load(tiny, device="cuda", warm_up=False)
    seen: list[tuple[int, int]] = []
    policy.warm_up(progress=lambda *pair: seen.append(pair))
    total = seen[0][1]
    assert seen == [(i, total) for i in range(total + 1)]
    assert policy.engine.info()["ready"] is True


def test_a_warm_up_that_is_interrupted(tiny):
    policy = smolvla_edge.load(tiny, device="cuda", warm_up=False)

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        policy.warm_up(progress=stop)
    assert policy.engine.info()["ready"] is False
    policy.warm_up()
    assert policy.engine.info()["ready"] is True


def test_a_larger_frame_makes_room_once(tiny):
    policy = smolvla_edge.load(tiny, device="cuda")
    before = held(policy)
    frame = np.zeros((1200, 2000, 3), np.uint8)
    state = np.zeros(policy.contract.state_dim, np.float32)
    images = dict.fromkeys(CAMERAS, frame)
    policy.predict(images, state, "go", seed=0)
    after = held(policy)
    assert after["arena_bytes"] > before["arena_bytes"] and after["graphs"] == before["graphs"]
    policy.predict(images, state, "go", seed=0)
    assert held(policy) == after
    policy.warm_up(frame=(2000, 2000))
    roomy = held(policy)
    assert roomy["pinned_bytes"] >= len(CAMERAS) * 2000 * 2000 * 3  # so that no copy waits
    policy.predict(dict.fromkeys(CAMERAS, np.zeros((2000, 2000, 3), np.uint8)), state, "go", seed=0)
    assert held(policy) == roomy


def test_many_replays(policy, world):
    """Nothing is left over from the call before, however many there were."""
    different = world.count(12, 4)
    first = [observe(policy, number) for number in range(different)]
    order = np.random.default_rng(1).integers(0, different, world.count(1000, 8))
    for number in order:
        assert np.array_equal(observe(policy, int(number)), first[number])


def test_two_policies_in_one_process(policy, tiny):
    alone = [observe(policy, number) for number in range(2)]
    other = smolvla_edge.load(tiny, device="cuda", allow_missing_cameras=True)
    for number in range(2):
        assert np.array_equal(observe(other, number), alone[number])
        assert np.array_equal(observe(policy, number), alone[number])
    del other
    assert np.array_equal(observe(policy, 0), alone[0])


def test_calls_from_another_thread(policy):
    want, got = observe(policy, 1), []
    thread = threading.Thread(target=lambda: got.append(observe(policy, 1)))
    thread.start()
    thread.join()
    assert np.array_equal(got[0], want)


def test_a_refused_call_leaves_nothing_behind(policy):
    want = observe(policy, 0)
    noise = np.full((policy.model.chunk_size, policy.model.max_action_dim), 3e38, np.float32)
    state = np.zeros(policy.contract.state_dim, np.float32)
    with pytest.raises(NonFiniteError):
        policy.predict({CAMERAS[0]: FRAMES[0]}, state, "go", noise=noise)
    assert np.array_equal(observe(policy, 0), want)


def test_timings_add_up(policy):
    state = np.zeros(policy.contract.state_dim, np.float32)
    timings = policy.predict(dict.fromkeys(CAMERAS, FRAMES[0]), state, "go", seed=1).timings
    stages = [timings[name] for name in ("preprocess", "vision", "prefix", "flow")]
    assert all(ms > 0 for ms in stages)
    assert sum(stages) <= timings["total"] * 1.01


def test_recording_operations_is_refused(policy):
    with pytest.raises(BackendError, match=r"Nsight Systems"):
        policy.engine.start_recording(100)


def test_packed_weights_are_refused(policy, tiny, tmp_path):
    with pytest.raises(BackendError, match="packed_cache"):
        smolvla_edge.load(tiny, device="cuda", packed_cache=True)
    with pytest.raises(BackendError, match="packed cache"):
        policy.engine.write_packed(tmp_path / "packed", "bundle", "config")


class TestMemoryThatEnds:
    def test_while_loading(self, tiny, emulator):
        """Whichever allocation fails: a typed error, and all memory is given back."""
        before = emulator.allocations_in_use()
        failed = 0
        for nth in range(1, 400, 13):
            emulator.fail_allocation(nth)
            try:
                smolvla_edge.load(tiny, device="cuda", warm_up=False)
            except BackendError as error:
                assert "memory" in str(error)
                failed += 1
            emulator.fail_allocation(0)
            assert emulator.allocations_in_use() == before
        assert failed > 3

    def test_in_a_call(self, tiny, emulator, policy):
        """The policy works again when there is memory again."""
        cold = smolvla_edge.load(tiny, device="cuda", warm_up=False, allow_missing_cameras=True)
        emulator.fail_allocation(1)
        with pytest.raises(BackendError, match="memory"):
            observe(cold, 0)
        emulator.fail_allocation(0)
        assert np.array_equal(observe(cold, 0), observe(policy, 0))

    def test_on_a_gpu_that_is_full(self, tiny, world):
        if world.emulated:
            pytest.skip("fills a real GPU; the emulator fails single allocations instead")
        torch = pytest.importorskip("torch", reason="fills the GPU with torch")
        free, _ = torch.cuda.mem_get_info()
        taken = torch.empty(max(free - (8 << 20), 0), dtype=torch.uint8, device="cuda")
        with pytest.raises(BackendError, match="memory"):
            smolvla_edge.load(tiny, device="cuda")
        del taken
        torch.cuda.empty_cache()
        assert smolvla_edge.load(tiny, device="cuda").engine.info()["ready"]


class TestNoDriver:
    def test_it_is_said_and_auto_is_the_cpu(self, tiny, emulator):
        emulator.remove_device(True)
        status = _core.cuda()
        assert status["built"] and status["driver"] is None and status["devices"] == []
        assert "driver" in status["error"]
        with pytest.raises(BackendError, match="no NVIDIA driver"):
            smolvla_edge.load(tiny, device="cuda")
        assert smolvla_edge.load(tiny).provenance["device"] == "cpu"


@pytest.mark.parametrize("seed", [1, 2])
def test_any_order_of_running(seed, tiny, emulator, policy):
    """Blocks, warps and lanes in another order, and work that waits until it is waited for."""
    want = observe(policy, 2)
    emulator.configure(seed=seed, deferred=True)
    shuffled = smolvla_edge.load(tiny, device="cuda", warm_up=False, allow_missing_cameras=True)
    assert np.array_equal(observe(shuffled, 2), want)
    assert np.array_equal(observe(shuffled, 2), want)
