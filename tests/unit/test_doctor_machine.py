"""CPU, threads, load, memory, swap, clocks, temperature, disk: a check each, with made-up facts."""

from __future__ import annotations

from pathlib import Path

import pytest
from doctor_helpers import stands, tree

from smolvla_edge.doctor.cgroup import Limits
from smolvla_edge.doctor.clock import ClockFacts, check_clock, check_temperature, read_clock
from smolvla_edge.doctor.cpu import CpuFacts, check_cpu, read_cpu
from smolvla_edge.doctor.disk import DiskFacts, cache_folder, check_disk, read_disk
from smolvla_edge.doctor.finding import FAIL, PASS, WARN
from smolvla_edge.doctor.memory import MemoryFacts, check_memory, check_swap, read_memory
from smolvla_edge.doctor.need import Need
from smolvla_edge.doctor.threads import ThreadFacts, check_load, check_threads, read_threads

MIB, GIB = 1 << 20, 1 << 30


class TestThreads:
    @pytest.mark.parametrize(
        ("facts", "status", "words"),
        [
            (ThreadFacts(8, 8, None, 8), PASS, ["8 threads", "8 of 8"]),
            (ThreadFacts(8, 4, None, 4), PASS, ["4 of 8"]),
            (ThreadFacts(1, 1, None, 1), PASS, ["1 thread:"]),
            (ThreadFacts(8, 8, 4.0, 4), PASS, ["quota of 4 CPUs"]),
            (ThreadFacts(8, 8, 1.5, 2), WARN, ["quota of 1.5", "jitter", "--threads 1"]),
            (ThreadFacts(8, 8, 0.5, 1), WARN, ["--threads 1", "--cpus=1"]),
            (ThreadFacts(4, 2, None, 4, asked=True), WARN, ["at most 2"]),
            (ThreadFacts(8, 1, None, 1), WARN, ["--cpuset-cpus=0-7"]),
            (ThreadFacts(8, 8, 1.0, 1), WARN, ["--cpus=8", "CPUQuota=800%"]),
            (ThreadFacts(8, 8, None, 1, asked=True), WARN, ["leave --threads out"]),
        ],
    )
    def test_threads(self, facts, status, words):
        stands(check_threads(facts), status, *words)

    @pytest.mark.parametrize(
        ("load", "status"), [(None, PASS), (0.2, PASS), (3.0, PASS), (3.1, WARN), (40.0, WARN)]
    )
    def test_load(self, load, status):
        stands(check_load(ThreadFacts(4, 4, None, 4, load=load)), status)

    def test_reading_this_machine(self, tmp_path):
        facts = read_threads(
            tree(tmp_path, {"/proc/loadavg": "0.52 0.40 0.30 1/200 999"}), Limits(2.0), 2, False
        )
        assert facts.load == 0.52 and facts.quota == 2.0
        assert 1 <= facts.affinity <= facts.online
        assert read_threads(tree(tmp_path, {"/proc/loadavg": "?"}), Limits(), 2, True).load is None


class TestMemory:
    need = Need("my_bundle", weights=700 * MIB, buffers=300 * MIB)

    def facts(self, available: int | None, **more: int) -> MemoryFacts:
        return MemoryFacts(total=8 * GIB, available=available, process=50 * MIB, **more)

    @pytest.mark.parametrize(
        ("available", "status", "words"),
        [
            (2 * GIB, PASS, ["my_bundle", "700 MiB", "at most 300 MiB", "50 MiB for Python"]),
            (1051 * MIB, PASS, []),
            (1049 * MIB, WARN, ["may not fit", "close other programs"]),
            (751 * MIB, WARN, ["may not fit"]),
            (749 * MIB, FAIL, ["does not fit", "multi-user.target"]),
            (None, PASS, ["not readable"]),
        ],
    )
    def test_machine(self, available, status, words):
        stands(check_memory(self.facts(available), self.need), status, *words)

    def test_a_containers_limit_is_stricter(self):
        roomy = self.facts(6 * GIB, limit=4 * GIB, limit_used=GIB)
        stands(check_memory(roomy, self.need), PASS, "3.0 GiB free", "limit is 4.0 GiB")
        tight = self.facts(6 * GIB, limit=512 * MIB, limit_used=100 * MIB)
        stands(check_memory(tight, self.need), FAIL, "--memory", "638 MiB")
        over = self.facts(6 * GIB, limit=512 * MIB, limit_used=GIB)  # file pages still to be freed
        stands(check_memory(over, self.need), FAIL, "0 MiB free")

    def test_a_limit_without_meminfo(self):
        facts = MemoryFacts(total=None, available=None, limit=GIB, limit_used=0)
        stands(check_memory(facts, self.need), PASS, "1.0 GiB free")

    @pytest.mark.parametrize(
        ("total", "used", "status"),
        [(0, 0, PASS), (4 * GIB, 100 * MIB, PASS), (4 * GIB, GIB, WARN)],
    )
    def test_swap(self, total, used, status):
        stands(check_swap(self.facts(GIB, swap_total=total, swap_used=used)), status)

    def test_swap_of_an_unreadable_machine(self):
        stands(check_swap(MemoryFacts(total=None, available=None)), PASS, "not readable")

    def test_reading(self, tmp_path):
        meminfo = "MemTotal: 8000 kB\nMemFree: 10 kB\nMemAvailable: 4000 kB\n"
        swap = "SwapTotal: 2000 kB\nSwapFree: 1500 kB\nHugePages_Total: 0\n"
        files = {"/proc/meminfo": meminfo + swap, "/proc/self/status": "VmRSS:\t 300 kB\n"}
        assert read_memory(tree(tmp_path, files), Limits(memory=9, memory_used=4)) == MemoryFacts(
            total=8000 << 10,
            available=4000 << 10,
            swap_total=2000 << 10,
            swap_used=500 << 10,
            limit=9,
            limit_used=4,
            process=300 << 10,
        )

    def test_reading_nothing(self, tmp_path):
        assert read_memory(tree(tmp_path, {}), Limits()) == MemoryFacts(None, None)


class TestClock:
    @pytest.mark.parametrize(
        ("facts", "status", "words"),
        [
            (ClockFacts(), PASS, ["not readable"]),
            (ClockFacts(("performance",), "acpi-cpufreq", 3_000_000, 3_000_000), PASS, ["3.00"]),
            (ClockFacts(("performance",)), PASS, ["unknown driver"]),
            (ClockFacts(("ondemand",), "x", 3_000_000, 3_000_000), WARN, ["cpupower", "pause"]),
            (ClockFacts(("performance", "powersave")), WARN, ["jetson_clocks"]),
            (ClockFacts(("performance",), "x", 1_500_000, 3_000_000), WARN, ["capped", "3000MHz"]),
        ],
    )
    def test_clock(self, facts, status, words):
        stands(check_clock(facts), status, *words)

    @pytest.mark.parametrize(
        ("sensors", "status", "words"),
        [
            ((), PASS, ["no sensor"]),
            ((("cpu", 40.0), ("gpu", 61.4)), PASS, ["61 C", "gpu"]),
            ((("cpu", 85.0),), WARN, ["85 C", "cool"]),
        ],
    )
    def test_temperature(self, sensors, status, words):
        stands(check_temperature(ClockFacts(temperatures=sensors)), status, *words)

    def test_reading(self, tmp_path):
        cpus = "/sys/devices/system/cpu"
        facts = read_clock(
            tree(
                tmp_path,
                {
                    f"{cpus}/cpu0/cpufreq/scaling_governor": "performance\n",
                    f"{cpus}/cpu0/cpufreq/scaling_driver": "cppc\n",
                    f"{cpus}/cpu0/cpufreq/scaling_max_freq": "2000000",
                    f"{cpus}/cpu0/cpufreq/cpuinfo_max_freq": "2000000",
                    f"{cpus}/cpu1/cpufreq/scaling_governor": "powersave\n",
                    f"{cpus}/cpu1/cpufreq/scaling_max_freq": "1000000",
                    f"{cpus}/cpu1/cpufreq/cpuinfo_max_freq": "2000000",
                    f"{cpus}/cpuidle/current_driver": "none",
                    "/sys/class/thermal/thermal_zone0/type": "CPU-therm\n",
                    "/sys/class/thermal/thermal_zone0/temp": "51500\n",
                    "/sys/class/thermal/thermal_zone1/temp": "-256000\n",  # an absent sensor
                    "/sys/class/thermal/thermal_zone2/temp": "30000\n",
                },
            )
        )
        assert facts == ClockFacts(
            ("performance", "powersave"),
            "cppc",
            1_000_000,
            2_000_000,
            (("CPU-therm", 51.5), ("thermal_zone2", 30.0)),
        )

    def test_reading_nothing(self, tmp_path):
        assert read_clock(tree(tmp_path, {})) == ClockFacts()


def row(isa: str, needs: str, supported: bool) -> dict[str, object]:
    return {"op": "gemm", "isa": isa, "needs": needs, "supported": supported, "chosen": False}


class TestCpu:
    cpu = CpuFacts("A CPU", "x86_64", ("fma", "avx2", "sse"))
    table = (
        row("avx512", "avx512f", False),
        row("avx2", "avx2, fma", True),
        row("scalar", "", True),
    )

    def test_the_best_of_the_build(self):
        table = (row("avx512", "avx512f", True), row("scalar", "nothing", True))
        finding = check_cpu(self.cpu, "avx512", table, {})
        stands(finding, PASS, "A CPU", "with fma avx2", "kernels avx512", "the best")
        assert finding.facts["supported"] == ["avx512", "scalar"]

    def test_a_better_cpu_would_give_more(self):
        finding = check_cpu(self.cpu, "avx2", self.table, {})
        stands(finding, PASS, "avx2 (8 multiply-adds", "avx512 (needs avx512f) would do more")

    def test_a_set_below_the_chosen_one_is_no_loss(self):
        table = (
            row("avx512", "avx512f", True),
            row("avx2", "avx2", False),
            row("scalar", "", True),
        )
        stands(check_cpu(self.cpu, "avx512", table, {}), PASS, "the best")

    def test_a_set_that_only_improves_a_few_operations(self):
        """It stands late in the table, behind the sets that have the first operation."""
        table = (row("avx512", "", True), row("scalar", "", True), row("avx512_bf16", "bf", False))
        stands(check_cpu(self.cpu, "avx512", table, {}), PASS, "avx512_bf16 (needs bf) would")

    def test_a_set_that_is_not_known_here(self):
        table = (row("sve2", "sve2", True), row("scalar", "", True))
        stands(check_cpu(self.cpu, "sve2", table, {}), PASS, "kernels sve2, the best")

    def test_scalar_kernels_are_slow(self):
        table = (row("avx512", "avx512f", False), row("scalar", "nothing", True))
        stands(check_cpu(self.cpu, "scalar", table, {}), WARN, "slower", "avx512f")
        only = (row("scalar", "nothing", True),)
        stands(check_cpu(self.cpu, "scalar", only, {}), WARN, "no faster kernels")

    def test_the_same_isa_twice_is_supported_when_one_row_is(self):
        table = (row("scalar", "fma", False), row("scalar", "nothing", True))
        assert check_cpu(self.cpu, "scalar", table, {}).facts["not_supported"] == {}

    def test_forced_kernels(self):
        environment = {"SMOLVLA_FORCE_ISA": "scalar", "SMOLVLA_FORCE_KERNEL": ""}
        finding = check_cpu(self.cpu, "scalar", self.table, environment)
        stands(finding, WARN, "SMOLVLA_FORCE_ISA=scalar", "unset SMOLVLA_FORCE_ISA")

    def test_reading_x86(self, tmp_path):
        text = "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fma avx2 sse\nprocessor\t: 1\n"
        found = read_cpu(tree(tmp_path, {"/proc/cpuinfo": text}))
        assert (found.model, found.features, found.board) == ("A CPU", ("fma", "avx2", "sse"), None)

    def test_reading_a_board(self, tmp_path):
        files = {
            "/proc/cpuinfo": "Features\t: asimd fphp\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n",
            "/proc/device-tree/model": "NVIDIA Jetson Orin Nano\0",
        }
        found = read_cpu(tree(tmp_path, files))
        assert (found.model, found.board) == ("Arm Cortex-A78AE", "NVIDIA Jetson Orin Nano")
        finding = check_cpu(found, "neon", (row("neon", "asimd", True),), {})
        stands(finding, PASS, "NVIDIA Jetson Orin Nano: Arm Cortex-A78AE", "neon (4")

    def test_reading_an_unknown_arm_core(self, tmp_path):
        text = "CPU implementer\t: 0x99\nCPU part\t: 0x001\n"
        assert "0x99, part 0x001" in read_cpu(tree(tmp_path, {"/proc/cpuinfo": text})).model

    def test_reading_nothing(self, tmp_path):
        assert read_cpu(tree(tmp_path, {})).model


class TestDisk:
    folder = Path("/home/robot/.cache/smolvla-edge")

    @pytest.mark.parametrize(
        ("facts", "status", "words"),
        [
            (DiskFacts(folder, 10 * GIB, True), PASS, ["10.0 GiB", "700 MiB"]),
            (DiskFacts(folder, 800 * MIB, True), WARN, ["800 MiB", "XDG_CACHE_HOME"]),
            (DiskFacts(folder, 10 * GIB, False), WARN, ["cannot be written"]),
            (DiskFacts(folder, None, True), PASS, ["not readable"]),
        ],
    )
    def test_disk(self, facts, status, words):
        stands(check_disk(facts, 700 * MIB), status, *words)

    def test_reading_a_folder_that_is_not_there_yet(self, tmp_path):
        facts = read_disk(tmp_path / "a" / "b")
        assert facts.folder == tmp_path / "a" / "b"
        assert facts.writable and facts.free is not None and facts.free > 0

    def test_the_cache_follows_the_environment(self, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert cache_folder() == tmp_path / "smolvla-edge" / "packed"
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the specification ignores those
        assert cache_folder() == Path.home() / ".cache" / "smolvla-edge" / "packed"
