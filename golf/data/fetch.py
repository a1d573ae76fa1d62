"""Fetching a published data set: the tokenizer, all of validation and the first training shards, checked file by file.

Files come into `.fetch` within the folder and move out of it together when all are there and add up; then the manifest
is written. So a folder is whole or, to every reader, as it was before, and a fetch that was stopped goes on with what
it has. Nothing is kept twice.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from golf.data.fetched import describe_fetched
from golf.data.hub import Hub, HubFile
from golf.data.manifest import MANIFEST_NAME, read_manifest
from golf.data.published import MANIFEST_PATH, Variant, shard_paths, tokenizer_path
from golf.data.shards import Dataset, read_shard, shard_kind
from golf.data.tokenizer import TOKENIZER_NAME, load_tokenizer
from golf.errors import BadFileError, ResourceError, UsageError
from golf.files import atomic_path, read_json, sha256_file, write_json

Progress = Callable[[str, int, int], None]

DEFAULT_SHARDS = 80

_STAGING_NAME = ".fetch"


class Wanted(NamedTuple):
    """A file to have: its kind (tokenizer, train, val, val_bytes), its place in the folder, and what the hub says."""

    kind: str
    target: Path
    source: HubFile


class Obtained(NamedTuple):
    """A file that is here: where it is to be, where it is now, and its digest."""

    kind: str
    target: Path
    path: Path
    sha256: str


def fetch(
    variant: Variant,
    *,
    out: Path,
    shards: int | None = None,
    endpoint: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fetch a published data set into the folder `out` and return the manifest written there.

    `shards` is the number of training shards, by default 80 or all; more that are there already are kept and checked.
    A file is taken as finished if its size, header and, where the hub gives one, SHA-256 are right; any other is
    fetched. `progress(name, bytes done, bytes in all)` is called before each file.

    Raises UsageError for a data set or shards that the repository does not hold and for a folder with other data,
    EnvironmentUnfitError without a connection, ResourceError without space, and BadFileError for files that arrive
    damaged or do not add up to what is known of the data set.
    """
    if shards is not None and shards < 1:
        raise UsageError(f"{shards} training shards asked for; at least one is needed")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; name a folder")
    staging = out / _STAGING_NAME
    hub = Hub.open(variant.repository, endpoint=endpoint, remedy=_remedy(out))
    wanted = _plan(hub, variant, out, shards)
    obtained = _obtain_all(hub, wanted, staging, progress)
    manifest = _describe(hub, variant, obtained)
    for file in obtained:
        if file.path != file.target:
            with atomic_path(file.target) as temp:
                file.path.replace(temp)
    write_json(out / MANIFEST_NAME, manifest)
    shutil.rmtree(staging)
    return manifest


def _remedy(out: Path) -> str:
    return (
        "connect this machine, name a mirror with --endpoint, copy tokenizer and shards by hand into "
        f"{out}, or make data of your own with `golf data prepare`"
    )


def _plan(hub: Hub, variant: Variant, out: Path, shards: int | None) -> list[Wanted]:
    """Choose the files, tokenizer first; the published manifest says whether they are there at all."""
    tokenizer = tokenizer_path(read_json(hub.download(MANIFEST_PATH, out / _STAGING_NAME)), variant)
    paths = shard_paths(hub.files, variant)
    _check_folder(out, variant, {Path(path).name for kind in paths.values() for path in kind})
    available = len(paths["train"])
    if shards is not None and shards > available:
        raise UsageError(f"{shards} training shards asked for, but {variant.dataset} has {available}; ask for fewer")
    present = max((n for n, path in enumerate(paths["train"], start=1) if (out / Path(path).name).exists()), default=0)
    paths["train"] = paths["train"][: max(shards or DEFAULT_SHARDS, present)]
    if tokenizer not in hub.files:
        raise BadFileError(tokenizer, f"{variant.repository} does not hold it", "fetch from another endpoint")
    return [
        Wanted("tokenizer", out / TOKENIZER_NAME, hub.files[tokenizer]),
        *(
            Wanted(kind, out / Path(path).name, hub.files[path])
            for kind in ("val", "val_bytes", "train")
            for path in paths[kind]
        ),
    ]


def _check_folder(out: Path, variant: Variant, names: set[str]) -> None:
    """Refuse a folder with other data: fetching would mix with it or replace it."""
    if not out.is_dir():
        return
    others = [path.name for path in sorted(out.iterdir()) if shard_kind(path) and path.name not in names]
    manifest = read_manifest(out)
    source = manifest.get("source", {}).get("dataset") if manifest else None
    if others or (source != variant.dataset and (out / MANIFEST_NAME).exists()):
        what = others[0] if others else f"the {MANIFEST_NAME} of {source or 'something else'}"
        raise UsageError(f"{out} holds {what}, which does not belong to {variant.dataset}; name another folder")


def _obtain_all(hub: Hub, wanted: list[Wanted], staging: Path, progress: Progress | None) -> list[Obtained]:
    total, done = sum(file.source.bytes for file in wanted), 0
    _check_space(wanted, staging)
    obtained = []
    for file in wanted:
        if progress:
            progress(file.target.name, done, total)
        obtained.append(_obtain(hub, file, staging))
        done += file.source.bytes
    if progress:
        progress("all files", done, total)
    return obtained


def _check_space(wanted: list[Wanted], staging: Path) -> None:
    missing = sum(
        file.source.bytes
        for file in wanted
        if not any(path.exists() for path in (file.target, staging / file.source.path))
    )
    free = shutil.disk_usage(staging).free
    if missing > free:
        raise ResourceError(
            f"{staging.parent}: {missing:,} bytes are to be fetched, but {free:,} are free; "
            "free some space or ask for fewer --shards"
        )


def _obtain(hub: Hub, file: Wanted, staging: Path) -> Obtained:
    staged = staging / file.source.path
    for path in (file.target, staged):
        if digest := _verified(path, file.source):
            return Obtained(file.kind, file.target, path, digest)
    staged.unlink(missing_ok=True)  # damaged: what is there is not asked for again
    digest = _verified(hub.download(file.source.path, staging), file.source)
    if digest is None:
        staged.unlink(missing_ok=True)
        raise BadFileError(
            f"{hub.repository}: {file.source.path}",
            "it arrived without the size, header or digest that it should have",
            "run the same command again; what is finished is kept",
        )
    return Obtained(file.kind, file.target, staged, digest)


def _verified(path: Path, source: HubFile) -> str | None:
    """Return the SHA-256 of a file that is what the hub published, None for any other or none."""
    if not path.is_file() or path.stat().st_size != source.bytes:
        return None
    digest = sha256_file(path)
    if source.sha256 not in (None, digest):
        return None
    if path.suffix == ".bin":
        try:
            read_shard(path)
        except BadFileError:
            return None
    return digest


def _describe(hub: Hub, variant: Variant, obtained: list[Obtained]) -> dict[str, Any]:
    """Return the manifest, after checking what is here, most of it still outside of the folder itself."""
    paths = {kind: tuple(file.path for file in obtained if file.kind == kind) for kind in ("train", "val", "val_bytes")}
    tokenizer = load_tokenizer(obtained[0].path)
    dataset = Dataset(
        folder=obtained[0].target.parent,
        train=paths["train"],
        val=paths["val"],
        val_sidecars=paths["val_bytes"],
        tokenizer=tokenizer.path,
        vocab_size=tokenizer.vocab_size,
        bos_id=tokenizer.bos_id,
        manifest=None,
    )
    source = {
        "dataset": variant.dataset,
        "repository": variant.repository,
        "endpoint": hub.endpoint,
        "revision": hub.revision,
    }
    described = describe_fetched(dataset, tokenizer, variant, {file.path: file.sha256 for file in obtained})
    return described | {"source": source}
