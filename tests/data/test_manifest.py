import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from golf.data.prepare import prepare
from golf.data.shards import Dataset
from golf.errors import BadFileError
from tests.data.conftest import random_text


@pytest.fixture
def folder(tmp_path: Path, write_jsonl: Callable[..., Path], plain_tokenizer: Path) -> Path:
    texts = [random_text(seed, 20) for seed in range(12)]
    prepare([write_jsonl(texts)], tokenizer=plain_tokenizer, out=tmp_path / "out", val_docs=3, shard_tokens=500)
    return tmp_path / "out"


def test_a_listed_shard_that_is_missing_is_named(folder: Path) -> None:
    last = sorted(folder.glob("golf_train_*"))[-1]
    last.unlink()
    with pytest.raises(BadFileError, match=f"{last.name}: the manifest lists it, but it is missing"):
        Dataset.open(folder)


def test_a_shard_that_is_not_listed_is_named(folder: Path) -> None:
    number = len(list(folder.glob("golf_train_*")))
    (folder / f"golf_train_{number:06d}.bin").write_bytes((folder / "golf_train_000000.bin").read_bytes())
    with pytest.raises(BadFileError, match="the manifest does not list it"):
        Dataset.open(folder)


def test_a_shard_swapped_for_another_is_noticed_by_its_size(folder: Path) -> None:
    (folder / "golf_train_000000.bin").write_bytes((folder / "golf_val_000000.bin").read_bytes())
    with pytest.raises(BadFileError, match="instead of the manifest's"):
        Dataset.open(folder)


def test_a_manifest_of_a_later_format_is_refused(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"version": 2}))
    with pytest.raises(BadFileError, match="its format version is 2, not 1"):
        Dataset.open(folder)


@pytest.mark.parametrize("content", ["", "{", "\x00"])
def test_a_manifest_that_is_not_json_is_refused(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content)
    with pytest.raises(BadFileError, match=r"manifest\.json: not readable as JSON"):
        Dataset.open(folder)


@pytest.mark.parametrize("content", ["[]", "3", "null", '{"format": "other"}'])
def test_our_shards_with_a_foreign_manifest_are_unfinished(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content)
    with pytest.raises(BadFileError, match="it is unfinished"):
        Dataset.open(folder)


def test_a_manifest_without_any_one_entry_is_refused(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    broken: list[dict[str, Any]] = [manifest | {"files": None}, manifest | {"files": [{}]}, manifest | {"train": []}]
    broken += [
        manifest | {"tokenizer": manifest["tokenizer"] | {key: None}} for key in ("file", "vocab_size", "bos_id")
    ]
    broken += [
        {key: value for key, value in manifest.items() if key != gone} for gone in ("files", "train", "tokenizer")
    ]
    for content in broken:
        (folder / "manifest.json").write_text(json.dumps(content))
        with pytest.raises(BadFileError, match="entries are missing or of the wrong type"):
            Dataset.open(folder)


def test_the_digest_follows_the_listed_contents(folder: Path) -> None:
    before = Dataset.open(folder).digest()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][0]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert Dataset.open(folder).digest() != before
