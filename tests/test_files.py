"""Atomic writes: the old content or the new, after kills, on full disks and in folders that may not be written."""

import itertools
import math
import os
import random
import resource
import stat
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from golf.errors import BadFileError, EnvironmentUnfitError, ResourceError
from golf.files import (
    atomic_path,
    canonical_json,
    read_json,
    remove_stale,
    sha256_bytes,
    sha256_file,
    write_bytes,
    write_json,
    write_text,
)
from tests.children import drain, exit_code_of, running

DEAD_PID = 2**22  # above the largest process id of Linux


def temporary_files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".golf-tmp-*")]


def test_writing_replaces_the_whole_content(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"the first and longer content")
    write_bytes(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"second"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "σ")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == b"\xcf\x83"


def test_the_mode_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a", b"")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def fail_half_way(path: Path) -> None:
    with atomic_path(path) as temp:
        temp.write_bytes(b"half of the new")
        raise KeyError


def test_a_failing_writer_leaves_the_old_content_and_no_other_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"old")
    with pytest.raises(KeyError):
        fail_half_way(tmp_path / "a")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_the_data_is_synced_before_the_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(handle: int) -> None:
        calls.append("sync folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "sync file")
        fsync(handle)

    def note_replace(self: Path, target: Path) -> Path:
        calls.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    write_bytes(tmp_path / "a", b"x")
    assert calls == ["sync file", "rename", "sync folder"]


def test_json_is_read_back(tmp_path: Path) -> None:
    value = {"name": "σ", "list": [1, 2.5, None, True], "nested": {"a": {}}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


def test_nan_is_refused_before_the_old_file_is_touched(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", math.nan)
    assert read_json(tmp_path / "a.json") == 1


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"a": 1}}'])
def test_what_is_not_json_is_a_bad_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(BadFileError, match=r"a\.json: not readable as JSON"):
        read_json(tmp_path / "a.json")


def test_a_missing_json_file_is_a_bad_file(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="no such file"):
        read_json(tmp_path / "a.json")


def test_canonical_json_does_not_depend_on_the_order_of_keys() -> None:
    texts = {canonical_json(dict(pairs)) for pairs in itertools.permutations([("b", 1), ("a", [2.0]), ("c", None)])}
    assert texts == {'{"a":[2.0],"b":1,"c":null}'}


def test_digests_are_those_of_the_standard(tmp_path: Path) -> None:
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    (tmp_path / "a").write_bytes(b"abc")
    assert (sha256_bytes(b"abc"), sha256_file(tmp_path / "a")) == (abc, abc)


def test_files_of_dead_writers_are_removed_and_all_others_kept(tmp_path: Path) -> None:
    names = [
        f".golf-tmp-{DEAD_PID}-ab-x.json",
        f"sub/.golf-tmp-{DEAD_PID}-ab-x.json",
        f".golf-tmp-{os.getppid()}-ab-x.json",
        "x.json",
        ".other",
    ]
    (tmp_path / "sub").mkdir()
    for name in names:
        (tmp_path / name).touch()
    assert sorted(remove_stale(tmp_path)) == [tmp_path / names[0], tmp_path / names[1]]
    assert all((tmp_path / name).exists() for name in names[2:])


def test_a_folder_that_is_not_there_has_no_stale_files(tmp_path: Path) -> None:
    assert remove_stale(tmp_path / "nowhere") == []


def test_a_parent_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentUnfitError, match="cannot be written"):
        write_bytes(tmp_path / "file" / "a", b"")


def write_without_rights(path: Path) -> None:
    path.parent.chmod(0o555)
    if os.getuid() == 0:
        os.setuid(65534)
    write_bytes(path, b"x")


def test_a_folder_that_may_not_be_written_exits_4(tmp_path: Path) -> None:
    assert exit_code_of(write_without_rights, tmp_path / "a") == 4


def write_on_a_small_disk(path: Path, size: int, limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    write_bytes(path, b"n" * size)


@pytest.mark.parametrize("limit", [0, 1, 4095, 4096, 100_000, 299_999])
def test_a_full_disk_exits_5_and_leaves_the_old_file_alone(tmp_path: Path, limit: int) -> None:
    write_bytes(tmp_path / "a", b"old")
    assert exit_code_of(write_on_a_small_disk, tmp_path / "a", 300_000, limit) == 5
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_a_disk_that_is_just_large_enough_will_do(tmp_path: Path) -> None:
    assert exit_code_of(write_on_a_small_disk, tmp_path / "a", 300_000, 300_000) == 0


def test_the_sentence_about_a_full_disk_names_the_path_and_the_free_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"/a: no space left to write it \([\d,]+ bytes free\)"):
        write_bytes(tmp_path / "a", b"x")


def content_of(number: int) -> bytes:
    return number.to_bytes(4, "little") * 50_000


def write_for_ever(path: Path, reports: Connection) -> None:
    for number in itertools.count():
        write_bytes(path, content_of(number))
        reports.send(number)


def test_a_kill_at_any_instant_leaves_the_last_finished_content_or_the_next(tmp_path: Path, kills: int) -> None:
    chance = random.Random(1)
    for kill in range(kills):
        path = tmp_path / f"{kill}.bin"
        with running(write_for_ever, path) as reports:
            end = time.monotonic() + chance.uniform(0.0, 0.05)
            while time.monotonic() < end:
                content = path.read_bytes()
                assert content == content_of(int.from_bytes(content[:4], "little"))  # no reader sees half of one
        last = drain(reports)[-1]
        assert path.read_bytes() in (content_of(last), content_of(last + 1))
        assert len(temporary_files(tmp_path)) <= 1
        remove_stale(tmp_path)
        assert temporary_files(tmp_path) == []
