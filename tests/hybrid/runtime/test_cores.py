"""Cores worth a thread: mixed processors, siblings, affinity and quotas, in trees of files as Linux shows them."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.runtime.cores import cpu_quota, parse_cpus, usable_cores

CPU = "sys/devices/system/cpu"
V2_MOUNT = "25 23 0:22 {top} {at} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "32 31 0:29 {top} {at} rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
OTHER_MOUNTS = "22 27 0:21 / /proc rw - proc proc rw\n33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


def write(root: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


def siblings(*groups: str) -> dict[str, object]:
    return {f"{CPU}/cpu{cpu}/topology/thread_siblings_list": group for group in groups for cpu in parse_cpus(group)}


def each(name: str, figures: list[int]) -> dict[str, object]:
    return {f"{CPU}/cpu{cpu}/{name}": figure for cpu, figure in enumerate(figures)}


@given(st.sets(st.integers(0, 200)), st.randoms())
def test_lists_of_cpus(cpus, random):
    parts, rest = [], sorted(cpus)
    while rest:
        first, length = rest[0], random.randint(1, 5)
        while rest[:length] != list(range(first, first + length)):
            length -= 1
        parts.append(f"{first}-{first + length - 1}" if length > 1 else str(first))
        rest = rest[length:]
    assert parse_cpus(",".join(parts)) == cpus


def test_this_machine():
    cores = usable_cores()
    assert 1 <= cores <= (len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count())


def test_a_tree_that_says_nothing(tmp_path):
    assert usable_cores(tmp_path, {0, 1, 5}) == 3
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("allowed", "cores"),
    [({0, 1, 2, 3, 4, 5, 6, 7}, 4), ({0, 4}, 1), ({0, 1}, 2), ({4}, 1), ({0, 4, 5, 6}, 3)],
)
def test_siblings_count_once(tmp_path, allowed, cores):
    write(tmp_path, siblings("0,4", "1,5", "2,6", "3,7"))
    assert usable_cores(tmp_path, allowed) == cores


@pytest.mark.parametrize(
    ("allowed", "cores"),
    [(range(12), 2), ({1, 2, 3, 8}, 2), ({4, 5, 6}, 3), ({3, 4, 5}, 1)],  # with slow cores alone, those
)
def test_intel_names_its_fast_cores(tmp_path, allowed, cores):
    write(tmp_path, siblings("0-1", "2-3", *(str(cpu) for cpu in range(4, 12))))
    write(tmp_path, {"sys/devices/cpu_core/cpus": "0-3", "sys/devices/cpu_atom/cpus": "4-11"})
    assert usable_cores(tmp_path, allowed) == cores


@pytest.mark.parametrize(
    ("capacities", "cores"),
    [
        ([250] * 4 + [870] * 3 + [1024], 4),  # small, middle and one large
        ([446] * 4 + [1024] * 2, 2),
        ([1024] * 6, 6),
        ([446] * 4, 4),
    ],
)
def test_capacity(tmp_path, capacities, cores):
    write(tmp_path, each("cpu_capacity", capacities))
    assert usable_cores(tmp_path, range(len(capacities))) == cores


@pytest.mark.parametrize(
    ("kilohertz", "cores"),
    [
        ([5_100_000] * 4 + [3_300_000] * 6, 4),
        ([5_400_000, 5_700_000, 5_400_000], 3),  # a favoured core
        ([3_000_000] * 2, 2),
    ],
)
def test_frequency_where_no_capacity_is_told(tmp_path, kilohertz, cores):
    write(tmp_path, each("cpufreq/cpuinfo_max_freq", kilohertz))
    assert usable_cores(tmp_path, range(len(kilohertz))) == cores


def test_figures_of_some_cpus_only_say_nothing(tmp_path):
    write(tmp_path, each("cpu_capacity", [300, 1024]))
    assert usable_cores(tmp_path, {0, 1, 2}) == 3


@pytest.mark.parametrize(
    ("limits", "quota", "cores"),
    [
        ({"": "max 100000", "a": "max 100000", "a/b": "max 100000"}, None, 8),
        ({"a/b": "250000 100000"}, 2.5, 3),
        ({"a": "150000 100000", "a/b": "400000 100000"}, 1.5, 2),  # the outer one is the smaller
        ({"a": "400000 100000", "a/b": "10000 100000"}, 0.1, 1),
        ({"": "50000 25000"}, 2.0, 2),  # a container sees its own limit there
        ({"a/b/c": "100000 100000", "d": "100000 100000"}, None, 8),  # of others
        ({"a/b": "1600000 100000"}, 16.0, 8),
    ],
)
def test_quota_of_version_2(tmp_path, limits, quota, cores):
    write(tmp_path, {"proc/self/cgroup": "0::/a/b"})
    write(tmp_path, {"proc/self/mountinfo": OTHER_MOUNTS + V2_MOUNT.format(top="/", at="/sys/fs/cgroup")})
    write(tmp_path, {f"sys/fs/cgroup/{group}/cpu.max": limit for group, limit in limits.items()})
    assert cpu_quota(tmp_path) == quota
    assert usable_cores(tmp_path, range(8)) == cores


@pytest.mark.parametrize(
    ("limits", "quota"),
    [({"": -1, "x/y": -1}, None), ({"x/y": 300_000}, 3.0), ({"x": 120_000, "x/y": 300_000}, 1.2)],
)
def test_quota_of_version_1(tmp_path, limits, quota):
    write(tmp_path, {"proc/self/cgroup": "5:memory:/elsewhere\n2:cpu,cpuacct:/x/y\n0::/"})
    at = "/sys/fs/cgroup/cpu,cpuacct"
    write(tmp_path, {"proc/self/mountinfo": OTHER_MOUNTS + V1_MOUNT.format(top="/", at=at)})
    for group, limit in limits.items():
        folder = f"{at[1:]}/{group}"
        write(tmp_path, {f"{folder}/cpu.cfs_quota_us": limit, f"{folder}/cpu.cfs_period_us": 100_000})
    write(tmp_path, {"sys/fs/cgroup/memory/x/y/cpu.cfs_quota_us": 1, "sys/fs/cgroup/memory/x/y/cpu.cfs_period_us": 1})
    assert cpu_quota(tmp_path) == quota


@pytest.mark.parametrize(
    ("path", "top"),
    [
        ("/docker/1a", "/docker/1a"),  # the group itself is mounted
        ("/docker/1a", "/docker/2b"),  # named from outside
        ("/../../1a", "/"),  # outside of the process's name space
    ],
)
def test_a_container_finds_its_limit_at_the_mount(tmp_path, path, top):
    write(tmp_path, {"proc/self/cgroup": f"0::{path}", "sys/fs/my cgroup/cpu.max": "200000 100000"})
    write(tmp_path, {"proc/self/mountinfo": V2_MOUNT.format(top=top, at="/sys/fs/my\\040cgroup")})
    assert cpu_quota(tmp_path) == 2
    assert usable_cores(tmp_path, range(8)) == 2


def test_a_group_below_a_mounted_one(tmp_path):
    write(tmp_path, {"proc/self/cgroup": "0::/docker/1a/worker", "sys/fs/cgroup/worker/cpu.max": "300000 100000"})
    write(tmp_path, {"proc/self/mountinfo": V2_MOUNT.format(top="/docker/1a", at="/sys/fs/cgroup")})
    assert cpu_quota(tmp_path) == 3
