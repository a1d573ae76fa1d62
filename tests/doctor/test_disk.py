"""The disk: room and speed against a run's need, and what the probe leaves behind."""

import os
import shutil
import time
from collections import namedtuple
from pathlib import Path

import pytest

from golf.doctor import disk as under_test
from golf.doctor.disk import check_kind, check_space, check_speed, examine_disk, write_speed
from golf.doctor.footprint import Footprint
from golf.doctor.mounts import Mount

NEEDED = Footprint("record", 600.0, 2**30, 2**28, 2**27, full_count=5, shadow_count=4)
TOTAL = 5 * 2**30 + 4 * 2**28 + 2**27
Usage = namedtuple("Usage", "total used free")


def test_the_need_of_a_run_is_the_sum_of_its_files() -> None:
    assert NEEDED.total_bytes == TOTAL


@pytest.mark.parametrize(
    ("free", "verdict"), [(2 * TOTAL, "ok"), (2 * TOTAL - 1, "warn"), (TOTAL, "warn"), (TOTAL - 1, "fail")]
)
def test_a_run_must_fit_and_a_second_one_should(free: int, verdict: str) -> None:
    assert check_space(free, NEEDED).verdict == verdict


def test_room_is_told_with_what_a_run_writes() -> None:
    assert check_space(2**34, NEEDED).value == "16.0 GiB free, a record run writes 6.1 GiB in 10 checkpoints"


@pytest.mark.parametrize(("seconds", "verdict"), [(59.0, "ok"), (61.0, "warn")])
def test_writing_may_take_a_tenth_of_the_training(seconds: float, verdict: str) -> None:
    check = check_speed(TOTAL / seconds, NEEDED)
    assert check.verdict == verdict
    assert f"checkpoints in {seconds:.0f} s" in check.value


@pytest.mark.parametrize(("form", "verdict"), [("ext4", "ok"), ("nfs4", "warn"), ("fuse", "warn"), ("tmpfs", "warn")])
def test_checkpoints_belong_on_a_disk_of_this_machine(form: str, verdict: str) -> None:
    check = check_kind(Path("/a"), Mount(Path("/"), form, "x"))
    assert check.verdict == verdict
    assert check.value.startswith(f"/a on {form}")


def test_a_disk_of_unknown_kind_is_taken_as_it_is() -> None:
    assert check_kind(Path("/a"), None).verdict == "ok"


def test_the_probe_leaves_nothing_behind_and_makes_no_folder(tmp_path: Path) -> None:
    before = list(tmp_path.iterdir())
    checks = examine_disk(tmp_path / "no" / "such", [], NEEDED)
    assert list(tmp_path.iterdir()) == before
    assert [check.name for check in checks] == ["disk kind", "disk space", "disk speed"]


def test_the_probe_writes_all_of_its_bytes_to_the_disk_unless_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []

    def fsync(handle: int) -> None:
        synced.append(os.fstat(handle).st_size)

    monkeypatch.setattr(under_test, "_BLOCK_BYTES", 1000)
    monkeypatch.setattr(os, "fsync", fsync)
    assert write_speed(tmp_path, size=2300) > 0
    assert synced == [1000, 2000, 2300]
    assert write_speed(tmp_path, size=10**9, seconds=0.05) > 0
    assert synced[-1] < 10**9


def test_the_speed_is_bytes_over_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(0, 100, 2))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(under_test, "_BLOCK_BYTES", 1000)
    assert (
        write_speed(tmp_path, size=3000, seconds=99.0) == 3000 / 8.0
    )  # a look at the clock each block, one at the end
    assert write_speed(tmp_path, size=9000, seconds=5.0) == 2000 / 8.0


def test_a_folder_that_cannot_be_written_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    check = examine_disk(tmp_path, [], NEEDED)[2]
    assert (check.verdict, check.value) == ("fail", f"{tmp_path} cannot be written")


def test_a_disk_that_is_nearly_full_is_not_filled_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 2**40 - 2**28, 2**28))
    monkeypatch.setattr(under_test, "write_speed", lambda folder: pytest.fail("written to"))
    assert [check.verdict for check in examine_disk(tmp_path, [], NEEDED)] == ["ok", "fail", "warn"]


def test_a_probe_that_breaks_leaves_the_other_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path) -> float:
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(under_test, "write_speed", full)
    checks = examine_disk(tmp_path, [], NEEDED)
    assert [check.name for check in checks] == ["disk kind", "disk space", "disk speed"]
    assert (checks[2].verdict, checks[2].value) == ("fail", "OSError: [Errno 122] Disk quota exceeded")


@pytest.mark.parametrize("below", ["", "run/a"])
def test_a_root_that_is_a_file_or_below_one_fails_and_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    monkeypatch.setattr(under_test, "write_speed", lambda folder: pytest.fail("written to"))
    (tmp_path / "file").write_text("")
    (check,) = examine_disk(tmp_path / "file" / below, [], NEEDED)
    assert (check.name, check.verdict, check.value) == ("disk", "fail", f"{tmp_path / 'file'} is no folder")
    assert "--root" in check.remedy
