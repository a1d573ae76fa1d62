"""Data sets: found, opened and compared with their manifests."""

import json
from pathlib import Path

import pytest

from golf.data.shards import Dataset
from golf.doctor.data import check_dataset, examine_data
from golf.errors import BadFileError
from golf.files import sha256_file
from tests.pico import pico_dataset


def with_manifest(folder: Path) -> Path:
    """A data set of three shards and a sidecar, and a manifest that tells of them."""
    pico_dataset(folder)
    shards = sorted(folder.glob("*.bin"))
    manifest = {
        "format": "golf-data",
        "version": 1,
        "tokenizer": {"file": "none.model", "vocab_size": 61, "bos_id": 1},
        "train": {"max_token_id": 60},
        "val": {"max_token_id": 60},
        "files": [{"name": p.name, "bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in shards],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def spoil(path: Path) -> None:
    """Change the last token, which no header or size shows."""
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))


def test_a_data_set_is_told_with_its_shards_its_digest_and_what_was_compared(tmp_path: Path) -> None:
    folder = with_manifest(tmp_path / "a")
    check = check_dataset(folder)
    digest = Dataset.open(folder).digest()[:16]
    assert (check.name, check.verdict) == (f"data {folder}", "ok")
    assert check.value == (
        f"2 training and 1 validation shards, digest {digest}, 4 of 4 files compared with the manifest"
    )


def test_a_data_set_without_a_manifest_is_told_so(tmp_path: Path) -> None:
    pico_dataset(tmp_path / "a")
    check = check_dataset(tmp_path / "a")
    assert (check.verdict, check.value.endswith("no manifest to compare with")) == ("ok", True)


def test_a_shard_with_another_content_is_named(tmp_path: Path) -> None:
    folder = with_manifest(tmp_path / "a")
    spoil(folder / "pico_train_000001.bin")
    with pytest.raises(BadFileError, match=r"pico_train_000001\.bin: its SHA-256 is not the manifest's"):
        check_dataset(folder)


def test_the_smallest_files_are_compared_first_as_far_as_the_bytes_go(tmp_path: Path) -> None:
    folder = with_manifest(tmp_path / "a")
    spoil(folder / "pico_train_000000.bin")  # the largest
    sizes = sorted(path.stat().st_size for path in folder.glob("*.bin"))
    assert "3 of 4 files" in check_dataset(folder, hashed_bytes=sum(sizes[:3])).value
    assert "2 of 4 files" in check_dataset(folder, hashed_bytes=sum(sizes[:3]) - 1).value
    with pytest.raises(BadFileError, match="pico_train_000000"):
        check_dataset(folder, hashed_bytes=sum(sizes))


@pytest.mark.parametrize("missing", ["train", "val"])
def test_a_data_set_with_half_of_it_is_a_warning(tmp_path: Path, missing: str) -> None:
    pico_dataset(tmp_path / "a")
    for path in (tmp_path / "a").glob(f"pico_{missing}_*.bin"):
        path.unlink()
    assert check_dataset(tmp_path / "a").verdict == "warn"


def test_the_named_folder_alone_is_looked_at(tmp_path: Path) -> None:
    pico_dataset(tmp_path / "data" / "a")
    pico_dataset(tmp_path / "b")
    checks = examine_data(tmp_path / "b", beside=tmp_path / "data")
    assert [check.name for check in checks] == [f"data {tmp_path / 'b'}"]


def test_a_named_folder_that_is_not_there_fails(tmp_path: Path) -> None:
    (check,) = examine_data(tmp_path / "b")
    assert (check.verdict, check.value) == ("fail", f"{tmp_path / 'b'}: no such folder")


def test_all_data_sets_beside_each_other_are_found_and_one_that_is_broken_fails_alone(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        pico_dataset(tmp_path / name)
    (tmp_path / "b" / "pico_train_000001.bin").write_bytes(b"short")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("")
    (tmp_path / "file_train_000000.bin").write_text("")
    checks = examine_data(None, beside=tmp_path)
    assert [check.name for check in checks] == [f"data {tmp_path / name}" for name in "abc"]
    assert [check.verdict for check in checks] == ["ok", "fail", "ok"]


@pytest.mark.parametrize("is_there", [True, False])
def test_no_data_set_is_a_warning_with_the_way_to_one(tmp_path: Path, is_there: bool) -> None:
    beside = tmp_path if is_there else tmp_path / "none"
    (check,) = examine_data(None, beside=beside)
    assert (check.name, check.verdict) == ("data", "warn")
    assert "golf data fetch" in check.remedy
