"""The data sets that are there: whether they open, and whether they are what their manifests say."""

from functools import partial
from pathlib import Path

from golf.data.shards import Dataset, shard_kind
from golf.doctor.check import Check, guarded
from golf.errors import BadFileError
from golf.files import sha256_file

_HASHED_BYTES = 2**30  # a second or two; the largest data set is sixteen times that


def examine_data(folder: Path | None, *, beside: Path = Path("data")) -> list[Check]:
    """Check the data set in `folder`, or else each one in a folder of `beside`."""
    folders = _folders(beside) if folder is None else [folder]
    if not folders:
        remedy = "fetch one with golf data fetch sp8192-caseops, or name its folder with --data"
        return [Check("data", "warn", f"no data set in {beside}", remedy)]
    return [check for found in folders for check in guarded(f"data {found}", partial(check_dataset, found))]


def check_dataset(folder: Path, *, hashed_bytes: int = _HASHED_BYTES) -> Check:
    """Open a data set as training does, then compare files with their digests, the smallest first, up to so many bytes.

    Raises BadFileError for what is missing, damaged or not what the manifest says.
    """
    dataset = Dataset.open(folder)
    name, value = f"data {folder}", f"{len(dataset.train)} training and {len(dataset.val)} validation shards"
    value += f", digest {dataset.digest()[:16]}, {_verify(dataset, hashed_bytes)}"
    if not dataset.train or not dataset.val:
        return Check(name, "warn", value, "fetch or prepare what is missing, training needs both")
    return Check(name, "ok", value)


def _verify(dataset: Dataset, budget: int) -> str:
    """Say how many files were compared with the manifest."""
    if dataset.manifest is None:
        return "no manifest to compare with"
    files, verified = sorted(dataset.manifest["files"], key=lambda entry: entry["bytes"]), 0
    for entry in files:
        budget -= entry["bytes"]
        if budget < 0:
            break
        path = dataset.folder / entry["name"]
        if sha256_file(path) != entry["sha256"]:
            raise BadFileError(path, "its SHA-256 is not the manifest's", "fetch or prepare it again")
        verified += 1
    return f"{verified} of {len(files)} files compared with the manifest"


def _folders(beside: Path) -> list[Path]:
    """Name the folders in which a shard lies."""
    children = sorted(beside.iterdir()) if beside.is_dir() else []
    return [child for child in children if child.is_dir() and any(map(shard_kind, child.iterdir()))]
