"""The machine around the GPUs: thresholds, and where each fact comes from."""

import os
import resource
from pathlib import Path

import pytest

from golf.doctor import host as under_test
from golf.doctor.cgroup import Limits
from golf.doctor.host import (
    check_clock,
    check_cores,
    check_encoding,
    check_memory,
    check_open_files,
    check_shared_memory,
    check_threads,
    examine_host,
    parse_memory,
)

GIB = 2**30
MEMINFO = """MemTotal:       24684088 kB
MemFree:        17331420 kB
MemAvailable:   22486004 kB
Buffers:          412364 kB
HugePages_Total:       0
"""
NAMES = ["memory", "cpu cores", "cpu threads", "shared memory", "open files", "text encoding", "clock"]


def test_the_memory_of_the_machine_is_read_in_bytes() -> None:
    assert parse_memory(MEMINFO) == (24684088 * 1024, 22486004 * 1024)


@pytest.mark.parametrize(
    ("available", "gpus", "checkpoint_bytes", "verdict"),
    [
        (GIB, 0, 9 * GIB, "ok"),  # the demo's checkpoints are small
        (GIB - 1, 0, 0, "warn"),
        (6 * GIB, 1, GIB, "ok"),
        (6 * GIB - 1, 1, GIB, "warn"),
        (34 * GIB, 8, GIB, "ok"),
        (34 * GIB - 1, 8, GIB, "warn"),
    ],
)
def test_memory_is_needed_for_every_rank_and_two_checkpoints(
    available: int, gpus: int, checkpoint_bytes: int, verdict: str
) -> None:
    check = check_memory(available, 64 * GIB, gpus=gpus, checkpoint_bytes=checkpoint_bytes)
    assert check.verdict == verdict
    assert check.value == f"{available / GIB:.1f} GiB of 64.0 GiB available"


@pytest.mark.parametrize(
    ("allowed", "quota", "gpus", "verdict"),
    [
        (16, None, 8, "ok"),
        (15, None, 8, "warn"),
        (64, 15.5, 8, "warn"),
        (64, 16.0, 8, "ok"),
        (2, 64.0, 2, "warn"),
        (1, None, 0, "ok"),
    ],
)
def test_two_cores_a_gpu_are_needed_in_number_and_in_time(
    allowed: int, quota: float | None, gpus: int, verdict: str
) -> None:
    assert check_cores(allowed, quota, gpus=gpus).verdict == verdict


def test_a_limit_of_time_is_told_beside_the_cores() -> None:
    assert check_cores(64, 3.5, gpus=0).value == "3.5, 64 allowed and a time limit of 3.5"


@pytest.mark.parametrize(
    ("wanted", "share", "cores", "gpus", "verdict"),
    [
        ("16", 16, 128.0, 8, "ok"),
        ("17", 16, 128.0, 8, "warn"),
        ("1", 1, 4.0, 8, "ok"),  # one is the least
        ("2", 1, 4.0, 8, "warn"),
        ("2", 2, 2.0, 0, "ok"),
        ("3", 2, 2.0, 0, "warn"),
        ("8,4", 16, 128.0, 8, "ok"),
        ("many", 16, 128.0, 8, "warn"),
        ("", 16, 128.0, 8, "warn"),
        (None, 16, 128.0, 8, "ok"),
        (None, 16, 32.0, 8, "warn"),  # the container's time is less than its cores'
        (None, 128, 32.0, 1, "ok"),
    ],
)
def test_ranks_should_not_have_more_threads_than_cores(
    wanted: str | None, share: int, cores: float, gpus: int, verdict: str
) -> None:
    assert check_threads(wanted, share, cores, gpus=gpus).verdict == verdict


def test_threads_are_told_as_they_were_found() -> None:
    values = [check_threads(wanted, 16, 128.0, gpus=gpus).value for wanted, gpus in (("4", 8), (None, 8), (None, 1))]
    unset = "OMP_NUM_THREADS is not set"
    assert values == ["OMP_NUM_THREADS is 4", f"{unset}, golf's launcher gives 16 to a rank", unset]
    check = check_threads("64", 16, 128.0, gpus=8)
    assert (check.value, check.remedy) == (
        "OMP_NUM_THREADS is 64, more than the cores a rank has",
        "set OMP_NUM_THREADS to 16",
    )


@pytest.mark.parametrize(("wanted", "verdict"), [("1", "ok"), ("2", "warn"), (None, "warn")])
def test_threads_and_cores_are_those_of_this_process(
    monkeypatch: pytest.MonkeyPatch, wanted: str | None, verdict: str
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if wanted is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    monkeypatch.setattr(under_test, "_limits", lambda: Limits(None, 2.0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    check = examine_host(gpus=2, checkpoint_bytes=0)[2]
    assert (check.name, check.verdict) == ("cpu threads", verdict)


@pytest.mark.parametrize(
    ("size", "gpus", "verdict"),
    [(2**26, 8, "warn"), (2**26, 1, "ok"), (GIB, 8, "ok"), (None, 2, "warn"), (None, 1, "ok")],
)
def test_several_gpus_need_shared_memory(size: int | None, gpus: int, verdict: str) -> None:
    assert check_shared_memory(size, gpus=gpus).verdict == verdict


@pytest.mark.parametrize(
    ("limit", "verdict", "value"),
    [(1024, "ok", "1024"), (256, "warn", "256"), (resource.RLIM_INFINITY, "ok", "unlimited")],
)
def test_files_may_be_open_in_number(limit: int, verdict: str, value: str) -> None:
    check = check_open_files(limit)
    assert (check.verdict, check.value) == (verdict, value)


@pytest.mark.parametrize(
    ("files", "terminal", "verdict"),
    [
        ("UTF-8", "utf-8", "ok"),
        ("utf8", None, "ok"),
        ("ANSI_X3.4-1968", "utf-8", "warn"),
        ("UTF-8", "ascii", "warn"),
        ("UTF-8", "latin_1", "warn"),
    ],
)
def test_files_and_terminal_are_in_utf_8(files: str, terminal: str | None, verdict: str) -> None:
    assert check_encoding(files, terminal).verdict == verdict


@pytest.mark.parametrize(("resolution", "verdict"), [(1e-9, "ok"), (9e-7, "ok"), (1e-6, "warn"), (0.015, "warn")])
def test_the_clock_ticks_below_a_microsecond(resolution: float, verdict: str) -> None:
    assert check_clock(resolution).verdict == verdict


def test_this_machine_is_examined_in_full() -> None:
    assert [check.name for check in examine_host(gpus=0, checkpoint_bytes=0)] == NAMES


def test_a_container_s_limits_count_where_they_are_stricter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "_limits", lambda: Limits(GIB // 2, 0.5))
    memory, cores = examine_host(gpus=0, checkpoint_bytes=0)[:2]
    assert (memory.verdict, memory.value) == ("warn", "0.5 GiB of 0.5 GiB available")
    assert cores.value.startswith("0.5, ")


def test_a_limit_beyond_the_machine_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "_memory", lambda: (8 * GIB, 4 * GIB))
    monkeypatch.setattr(under_test, "_limits", lambda: Limits(2**63 - 4096, None))
    assert examine_host(gpus=0, checkpoint_bytes=0)[0].value == "4.0 GiB of 8.0 GiB available"


def test_cores_are_those_that_this_process_may_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "_limits", lambda: Limits(None, None))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 5, 7}, raising=False)
    assert examine_host(gpus=2, checkpoint_bytes=0)[1].value == "3"


def test_limits_that_cannot_be_read_are_a_check_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("nonsense\n")
    monkeypatch.setattr(under_test, "MEMBERSHIP", membership)
    checks = examine_host(gpus=0, checkpoint_bytes=0)
    assert [check.name for check in checks] == ["container limits", *NAMES]
    assert checks[0].verdict == "fail"
