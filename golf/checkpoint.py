"""Checkpoints at phase boundaries: one safetensors file with the tensors, one JSON manifest with everything else.

A run is a folder; every *.json file in it but final.json is the manifest of one boundary, `<boundary>.json`, beside its
tensors in `<boundary>.safetensors`. A checkpoint exists if and only if its manifest does: the tensors are written
first, and a name that a manifest gave to tensors never stands for others. Saving a boundary once more therefore writes
the new tensors under `<boundary>-<first digits of their digest>.safetensors`, then replaces the manifest, then removes
the old tensors: a kill at any instant leaves the old checkpoint or the new one, and a reader never gets a mixture.
Tensors that a kill left without a manifest go when their boundary is saved again.

Tensor names carry a prefix: model/, ema/, shadow/<width>/, optim/… Loading trusts nothing: digest, format
version and every name are checked before a tensor is read.
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from golf.checkpoint_manifest import DATA_FILE, RESTORE, SUMMARY, Manifest, manifest_paths, read_manifest
from golf.errors import BadFileError, UsageError
from golf.files import sha256_file, write_json
from golf.tensorfile import (
    parts_digest,
    read_tensors,
    tensor_names,
    tensor_parts,
    write_parts,
)

_BOUNDARY = re.compile(r"[A-Za-z0-9_]+")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint; its tensors are read when asked for."""

    manifest: Manifest
    path: Path  # of the manifest

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Read the tensors whose name begins with `prefix`, such as "ema/", on the CPU and named without it."""
        if not prefix.endswith("/"):
            raise ValueError(f"prefix {prefix!r} must end with a slash, or ema/ and ema2/ would be mixed")
        data = self.path.parent / self.manifest.data_file
        tensors = read_tensors(data, prefix)
        if not tensors:
            raise BadFileError(data, f"has no tensors under {prefix}", "use a boundary that stored them")
        return tensors

    def all_tensors(self) -> dict[str, Tensor]:
        """Read every tensor, on the CPU and under its full name."""
        return read_tensors(self.path.parent / self.manifest.data_file, "")


def save_checkpoint(
    folder: Path, manifest: Manifest, *, tensors: Mapping[str, Tensor], also: Sequence[str] = ()
) -> Manifest:
    """Write a boundary into the run `folder`, tensors first and manifest last; return the completed manifest.

    `also` names further boundaries that fall on the same step: each gets a manifest of its own, over the same tensors.
    A boundary that exists is replaced. Only one process writes to a run. Raises ResourceError when the disk is full;
    what was there before is then intact.
    """
    names = [manifest.boundary, *also]
    _check_names(names, tensors)
    parts = tensor_parts(tensors)
    digest = parts_digest(parts)
    file = f"{names[0]}.safetensors"
    if (folder / f"{names[0]}.json").exists() or file in _kept_data(folder):
        file = f"{names[0]}-{digest[:8]}.safetensors"
    try:
        write_parts(folder / file, parts)
        size = sum(part.nbytes for part in parts)
        full = replace(manifest, data_file=file, data_bytes=size, data_sha256=digest)
        for name in names:
            write_json(folder / f"{name}.json", asdict(replace(full, boundary=name)))
    finally:
        _remove_orphans(folder, names)
    return full


def load_checkpoint(path: Path, *, require: Iterable[str] = ()) -> Checkpoint:
    """Open the checkpoint of a manifest or of a tensor file after verifying all of it.

    `require` lists prefixes under which there must be tensors. Raises BadFileError for anything that is not right.
    """
    manifest_path = path if path.suffix == ".json" else _manifest_of(path)
    manifest = _read_consistent(manifest_path, lambda found: _verify(manifest_path, found, require))
    return Checkpoint(manifest, manifest_path)


def boundaries(run_folder: Path) -> list[Manifest]:
    """List the manifests of a run, by step and then as training passes them.

    Raises BadFileError for one that cannot be read and for one whose tensors are missing or cut short.
    """
    paths = manifest_paths(run_folder)
    manifests = [_read_consistent(path, lambda found: _check_size(run_folder, found)) for path in paths]
    return sorted(manifests, key=_passing_order)


def find_checkpoint(spec: str, *, root: Path) -> Path:
    """Find the file that "RUN", "RUN@BOUNDARY", or the path of a file or of a run folder stands for.

    Runs are the folders of `root`. A run alone stands for its latest boundary: the highest step, and at equal steps
    final_ema (or final_swa) before final_raw before any other. Raises UsageError, listing what there is, when there is
    no such one.
    """
    if _is_file(spec, root):
        return Path(spec)
    folder, boundary = find_run(spec, root=root), spec.partition("@")[2]
    if "@" in spec and not boundary:
        raise UsageError(f"{spec}: no boundary is named after the @; name one or leave the @ out")
    there = [path.stem for path in manifest_paths(folder)]
    if boundary and boundary not in there:
        raise UsageError(f"no boundary '{boundary}' in {folder}; {_listing('boundaries', there)}")
    if not boundary:
        found = boundaries(folder)
        if not found:
            raise UsageError(f"no checkpoint in {folder}: nothing was saved yet; start it again or name another run")
        boundary = found[-1].boundary
    return folder / f"{boundary}.json"


def find_run(spec: str, *, root: Path) -> Path:
    """Find the folder into which `find_checkpoint` looks; UsageError, listing the runs, if there is none."""
    if _is_file(spec, root):
        return Path(spec).parent
    name = spec.partition("@")[0]
    folder = next((folder for folder in (root / name, Path(name)) if name and folder.is_dir()), None)
    if folder is None:
        runs = sorted(path.name for path in root.glob("*") if manifest_paths(path))
        raise UsageError(f"no run '{name}' in {root}; {_listing('runs', runs)}")
    return folder


class CheckpointWriter:
    """Writes a run's checkpoints on one background thread while training goes on.

    At most one checkpoint is in flight: `submit` waits for the one before. An error of the thread surfaces at the next
    `submit` or at `close`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds_writing = 0.0
        self.bytes_written = 0
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[Manifest] | None = None

    def submit(self, manifest: Manifest, *, tensors: Mapping[str, Tensor], also: Sequence[str] = ()) -> None:
        """Write as `save_checkpoint` does, later. `tensors` are on the CPU and nobody changes them any more."""
        self.settle()
        self._pending = self._pool.submit(self._write, manifest, tensors, also)

    def settle(self) -> Manifest | None:
        """Wait for what was submitted; return its completed manifest once it is on disk, None if nothing was waiting.

        Raises what its writing raised.
        """
        pending, self._pending = self._pending, None
        return None if pending is None else pending.result()

    def close(self) -> None:
        """Settle and end the thread."""
        try:
            self.settle()
        finally:
            self._pool.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, manifest: Manifest, tensors: Mapping[str, Tensor], also: Sequence[str]) -> Manifest:
        start = time.perf_counter()
        written = save_checkpoint(self.folder, manifest, tensors=tensors, also=also)
        self.bytes_written += written.data_bytes
        self.seconds_writing += time.perf_counter() - start
        return written


def _check_names(names: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
    if wrong := [name for name in names if not _BOUNDARY.fullmatch(name) or name == SUMMARY]:
        raise ValueError(
            f"boundary {wrong[0]!r} may hold letters, digits and _ only, and not be 'final': it names files"
        )
    if not tensors:
        raise ValueError("a checkpoint needs tensors")


def _kept_data(folder: Path) -> set[str]:
    """Name the tensor files that must stay: those of the manifests, or all when a manifest cannot be read."""
    try:
        return {read_manifest(path).data_file for path in manifest_paths(folder)}
    except BadFileError:
        return {path.name for path in folder.glob("*.safetensors")}


def _remove_orphans(folder: Path, names: Sequence[str]) -> None:
    """Remove tensor files of these boundaries, and of the run's others, that no manifest names any more."""
    own = {*names, *(path.stem for path in manifest_paths(folder))}
    kept = _kept_data(folder)
    for path in folder.glob("*.safetensors"):
        if path.name not in kept and DATA_FILE.fullmatch(path.name) and path.stem.partition("-")[0] in own:
            path.unlink(missing_ok=True)


def _is_file(spec: str, root: Path) -> bool:
    return Path(spec).is_file() and not (root / spec).is_dir()


def _passing_order(manifest: Manifest) -> tuple[int, int, str]:
    """Sort by step; of one step the ends of the run come last, and of these the averages after the raw weights."""
    is_final = manifest.boundary.startswith("final_")
    return manifest.step, is_final + (is_final and manifest.boundary != "final_raw"), manifest.boundary


def _listing(kind: str, names: Sequence[str]) -> str:
    return f"{kind} there: {', '.join(names)}" if names else f"there are no {kind}"


def _manifest_of(data: Path) -> Path:
    if data.suffix != ".safetensors":
        raise BadFileError(data, "is neither a manifest (.json) nor its tensors (.safetensors)", "name one of these")
    manifest = data.with_name(f"{data.stem.partition('-')[0]}.json")
    if not manifest.is_file() or read_manifest(manifest).data_file != data.name:
        raise BadFileError(data, "belongs to no manifest, so it was never finished or is replaced", "use a boundary")
    return manifest


def _read_consistent(path: Path, check: Callable[[Manifest], None]) -> Manifest:
    """Read a manifest and check what it names, again if a writer replaced the checkpoint in between."""
    manifest = read_manifest(path)
    try:
        check(manifest)
    except BadFileError:
        if read_manifest(path) == manifest:
            raise
        return _read_consistent(path, check)
    return manifest


def _check_size(folder: Path, manifest: Manifest) -> None:
    path = folder / manifest.data_file
    try:
        size = path.stat().st_size
    except OSError:
        raise BadFileError(
            path, f"is missing, though the manifest of '{manifest.boundary}' names it", RESTORE
        ) from None
    if size != manifest.data_bytes:
        raise BadFileError(path, f"has {size:,} bytes instead of {manifest.data_bytes:,}", RESTORE)


def _verify(manifest_path: Path, manifest: Manifest, require: Iterable[str]) -> None:
    _check_size(manifest_path.parent, manifest)
    path = manifest_path.parent / manifest.data_file
    try:
        digest = sha256_file(path)
    except OSError as error:
        raise BadFileError(path, f"cannot be read ({error.strerror})", RESTORE) from None
    if digest != manifest.data_sha256:
        raise BadFileError(path, "does not have the digest in its manifest", RESTORE)
    names = tensor_names(path)
    if missing := [prefix for prefix in require if not any(name.startswith(prefix) for name in names)]:
        raise BadFileError(path, f"has no tensors under {missing[0]}", "use a boundary that stored them")
