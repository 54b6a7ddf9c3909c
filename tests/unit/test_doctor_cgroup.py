"""Limits of control groups, from made-up trees of both versions."""

from __future__ import annotations

import pytest
from doctor_helpers import tree

from smolvla_edge.doctor.cgroup import Limits, read_limits

GIB = 1 << 30
V2_MOUNT = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"


def v1_mount(controller: str, root: str = "/") -> str:
    return f"31 24 0:2 {root} /sys/fs/cgroup/{controller} rw - cgroup cgroup rw,{controller}\n"


def test_nothing_readable_is_no_limit(tmp_path):
    assert read_limits(tree(tmp_path, {})) == Limits()


def test_a_container_of_version_2_sees_its_own_limits_at_the_mount(tmp_path):
    limits = read_limits(
        tree(
            tmp_path,
            {
                "/proc/self/cgroup": "0::/\n",
                "/proc/self/mountinfo": V2_MOUNT,
                "/sys/fs/cgroup/cpu.max": "150000 100000\n",
                "/sys/fs/cgroup/memory.max": f"{2 * GIB}\n",
                "/sys/fs/cgroup/memory.current": f"{GIB}\n",
                "/sys/fs/cgroup/memory.stat": f"anon 5\ninactive_file {GIB // 2}\nfile 9\n",
            },
        )
    )
    assert limits == Limits(cpus=1.5, memory=2 * GIB, memory_used=GIB // 2)


def test_max_is_no_limit(tmp_path):
    files = {
        "/proc/self/cgroup": "0::/\n",
        "/proc/self/mountinfo": V2_MOUNT,
        "/sys/fs/cgroup/cpu.max": "max 100000\n",
        "/sys/fs/cgroup/memory.max": "max\n",
    }
    assert read_limits(tree(tmp_path, files)) == Limits()


def test_the_strictest_level_holds(tmp_path):
    """A service in a slice: the slice has the CPU quota, the service the memory limit."""
    limits = read_limits(
        tree(
            tmp_path,
            {
                "/proc/self/cgroup": "0::/robot.slice/policy.service\n",
                "/proc/self/mountinfo": V2_MOUNT,
                "/sys/fs/cgroup/robot.slice/cpu.max": "200000 100000",
                "/sys/fs/cgroup/robot.slice/policy.service/cpu.max": "max 100000",
                "/sys/fs/cgroup/robot.slice/memory.max": str(8 * GIB),
                "/sys/fs/cgroup/robot.slice/memory.current": str(7 * GIB),
                "/sys/fs/cgroup/robot.slice/policy.service/memory.max": str(4 * GIB),
                "/sys/fs/cgroup/robot.slice/policy.service/memory.current": str(GIB),
            },
        )
    )
    # 1 GiB is left of the slice, 3 GiB of the service.
    assert limits == Limits(cpus=2.0, memory=8 * GIB, memory_used=7 * GIB)


def test_version_1(tmp_path):
    limits = read_limits(
        tree(
            tmp_path,
            {
                "/proc/self/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n",
                "/proc/self/mountinfo": v1_mount("memory", "/docker/abc") + v1_mount("cpu,cpuacct"),
                # The memory controller's mount is our own group; the cpu controller's is the root.
                "/sys/fs/cgroup/memory/memory.limit_in_bytes": str(GIB),
                "/sys/fs/cgroup/memory/memory.usage_in_bytes": str(GIB // 4),
                "/sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "50000",
                "/sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000",
                "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
        )
    )
    assert limits == Limits(cpus=0.5, memory=GIB, memory_used=GIB // 4)


def test_the_huge_number_of_version_1_is_no_limit(tmp_path):
    files = {
        "/proc/self/cgroup": "5:memory:/\n",
        "/proc/self/mountinfo": v1_mount("memory"),
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
    }
    assert read_limits(tree(tmp_path, files)) == Limits()


def test_without_mountinfo_the_usual_place_is_read(tmp_path):
    files = {"/sys/fs/cgroup/cpu.max": "100000 100000"}
    assert read_limits(tree(tmp_path, files)).cpus == 1.0


def test_a_group_outside_of_the_namespace_reads_the_mount_only(tmp_path):
    files = {
        "/proc/self/cgroup": "0::/../../other\n",
        "/proc/self/mountinfo": V2_MOUNT,
        "/sys/fs/cgroup/cpu.max": "300000 100000",
    }
    assert read_limits(tree(tmp_path, files)).cpus == 3.0


def test_a_mount_point_with_a_blank(tmp_path):
    files = {
        "/proc/self/cgroup": "0::/\n",
        "/proc/self/mountinfo": "30 24 0:26 / /my\\040groups rw - cgroup2 cgroup2 rw\n",
        "/my groups/cpu.max": "100000 100000",
    }
    assert read_limits(tree(tmp_path, files)).cpus == 1.0


@pytest.mark.parametrize("text", ["", "x", "100000", "0 0", "-5 100000", "1 2 3", "\0\0"])
def test_an_odd_quota_is_no_quota(tmp_path, text):
    files = {"/sys/fs/cgroup/cpu.max": text, "/proc/self/mountinfo": "odd\n - \n1 2 - cgroup2\n"}
    assert read_limits(tree(tmp_path, files)) == Limits()
