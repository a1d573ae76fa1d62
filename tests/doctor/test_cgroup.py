"""Limits of containers: recorded trees of both versions."""

from pathlib import Path

import pytest

from golf.doctor.cgroup import Limits, read_limits


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


def test_a_container_of_version_2_sees_its_limits_at_the_top(tmp_path: Path) -> None:
    root = tree(tmp_path, {"memory.max": "137438953472", "cpu.max": "350000 100000"})
    assert read_limits("0::/\n", root) == Limits(2**37, 3.5)


def test_the_strictest_group_above_counts(tmp_path: Path) -> None:
    files = {
        "a/memory.max": "max",
        "a/b/memory.max": "1000",
        "a/b/c/memory.max": "3000",
        "a/cpu.max": "200000 100000",
        "a/b/cpu.max": "max 100000",
        "a/b/c/cpu.max": "300000 100000",
    }
    assert read_limits("0::/a/b/c\n", tree(tmp_path, files)) == Limits(1000, 2.0)


def test_a_group_beside_does_not_count(tmp_path: Path) -> None:
    assert read_limits("0::/a\n", tree(tmp_path, {"b/memory.max": "1", "a/memory.max": "2"})) == Limits(2, None)


def test_limits_of_version_1_are_read_from_each_controller(tmp_path: Path) -> None:
    files = {
        "memory/docker/x/memory.limit_in_bytes": "68719476736",
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "cpu/docker/x/cpu.cfs_quota_us": "1600000",
        "cpu/docker/x/cpu.cfs_period_us": "100000",
        "cpu/cpu.cfs_quota_us": "-1",
        "cpu/cpu.cfs_period_us": "100000",
    }
    membership = "9:name=systemd:/\n4:memory:/docker/x\n2:cpu,cpuacct:/docker/x\n0::/\n"
    assert read_limits(membership, tree(tmp_path, files)) == Limits(2**36, 16.0)


def test_a_path_that_leads_out_of_the_container_is_read_within(tmp_path: Path) -> None:
    root = tree(tmp_path / "cgroup", {"memory.max": "5"})
    tree(tmp_path, {"memory.max": "1"})
    assert read_limits("0::/../..\n", root) == Limits(5, None)


@pytest.mark.parametrize("membership", ["", "0::/\n", "3:memory:/\n"])
def test_where_nothing_is_told_there_is_no_limit(tmp_path: Path, membership: str) -> None:
    assert read_limits(membership, tmp_path) == Limits(None, None)
