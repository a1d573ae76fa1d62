"""The manifest of a data set: what `golf data prepare` wrote, and the sign that it finished."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from golf.errors import BadFileError
from golf.files import read_json

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT, MANIFEST_VERSION = "golf-data", 1


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of `folder`, or None if it has none of ours; BadFileError if it is damaged or too new."""
    path = folder / MANIFEST_NAME
    if not path.exists():
        return None
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST_FORMAT:
        return None
    if manifest.get("version") != MANIFEST_VERSION:
        reason = f"its format version is {manifest.get('version')}, not {MANIFEST_VERSION}"
        raise BadFileError(path, reason, "prepare the data again with this version of golf")
    if not _is_complete(manifest):
        raise BadFileError(path, "entries are missing or of the wrong type", "prepare the data again")
    return manifest


def check_files(folder: Path, manifest: dict[str, Any], shards: Iterable[Path]) -> None:
    """Raise BadFileError unless exactly the listed shards are there, each with its listed size."""
    sizes = {entry["name"]: entry["bytes"] for entry in manifest["files"]}
    present = {shard.name: shard.stat().st_size for shard in shards}
    for name in sorted(sizes.keys() | present.keys()):
        if name not in present:
            raise BadFileError(folder / name, "the manifest lists it, but it is missing", "prepare the data again")
        if name not in sizes:
            raise BadFileError(folder / name, "the manifest does not list it", "move it out of the folder")
        if sizes[name] != present[name]:
            reason = f"it has {present[name]} bytes instead of the manifest's {sizes[name]}"
            raise BadFileError(folder / name, reason, "prepare the data again")


def _is_complete(manifest: dict[str, Any]) -> bool:
    try:
        files, tokenizer = manifest["files"], manifest["tokenizer"]
        texts = [tokenizer["file"], *(entry[key] for entry in files for key in ("name", "sha256"))]
        numbers = [tokenizer["vocab_size"], tokenizer["bos_id"], *(entry["bytes"] for entry in files)]
        numbers += [manifest[split]["max_token_id"] for split in ("train", "val")]
    except (KeyError, TypeError):
        return False
    return all(type(text) is str for text in texts) and all(type(number) is int for number in numbers)
