"""The manifest of a checkpoint: all that is known of it besides its tensors, and how it is read back.

A run is a folder; every *.json file in it but final.json is the manifest of one boundary, `<boundary>.json`. Reading
trusts nothing: format version, fields and their kinds are checked.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from golf.errors import BadFileError
from golf.tensorfile import HEADER_CAP, parse_header

FORMAT_VERSION = 1
DATA_FILE = re.compile(r"[A-Za-z0-9_]+(-[0-9a-f]{8})?\.safetensors")
RESTORE = "restore it from a copy or use another boundary"

SUMMARY = "final"  # final.json lies beside the manifests and is none


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """All that is known of a checkpoint besides its tensors. `save_checkpoint` fills in the data_ fields."""

    boundary: str  # letters, digits and _; the manifest's file name
    step: int  # optimizer steps taken
    elapsed_seconds: float  # on the training clock
    progress: float  # in [0, 1]
    lr_multiplier: float
    looping: bool  # whether these weights were last trained with depth recurrence on
    recipe: dict[str, Any]  # resolved
    recipe_digest: str
    loader: dict[str, Any]  # position of what was consumed
    seed: int
    world_size: int
    averages: dict[str, Any]  # profile descriptor of each average: kind, decay or gamma, origin, count
    optimizer: dict[str, Any]  # step counters and the like
    metrics: dict[str, float]
    parents: list[str]  # digests of the checkpoints this one was made from
    versions: dict[str, str]
    dataset_digest: str = ""  # of the shards it was trained on; "" if an earlier golf wrote it
    format_version: int = FORMAT_VERSION
    data_file: str = ""
    data_bytes: int = 0
    data_sha256: str = ""


def read_manifest(path: Path) -> Manifest:
    """Read a manifest, of whose tensors nothing is verified; BadFileError for anything that is not one."""
    try:
        with path.open("rb") as file:
            data = file.read(HEADER_CAP + 1)
    except OSError as error:
        raise BadFileError(path, f"cannot be read ({error.strerror})", "check the path") from None
    values = parse_header(data, path)
    version = values.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        reason = f"is of format version {version}, this golf reads up to {FORMAT_VERSION}"
        raise BadFileError(path, reason, "upgrade golf-hotstart")
    values = {"dataset_digest": "", **values}
    kinds = get_type_hints(Manifest)
    if wrong := sorted(kinds.keys() ^ values.keys()):
        raise BadFileError(path, f"lacks or should not have the field '{wrong[0]}'", RESTORE)
    if wrong := [key for key, kind in kinds.items() if not _fits(values[key], kind)]:
        raise BadFileError(path, f"field '{wrong[0]}' is of the wrong kind", RESTORE)
    manifest = Manifest(**values)
    if manifest.boundary != path.stem:
        raise BadFileError(path, f"is the manifest of '{manifest.boundary}' by another name", "rename it back")
    if not DATA_FILE.fullmatch(manifest.data_file):
        raise BadFileError(path, f"names {manifest.data_file!r}, which is no tensor file of its run", RESTORE)
    return manifest


def manifest_paths(folder: Path) -> list[Path]:
    """Name the manifests in a folder: every *.json file but final.json, which sums up the run."""
    paths = folder.glob("[!.]*.json")  # a name with a dot in front is a file still being written
    return sorted(path for path in paths if path.stem != SUMMARY)


def _fits(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_fits(entry, get_args(kind)[1]) for entry in value.values())
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(entry, get_args(kind)[0]) for entry in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
