"""Text to shards: tokenize documents once, and write down everything needed to trust the result.

The first documents are for validation, as in the challenge, and all others for training. Each begins with the
tokenizer's document start. The folder gets `golf_train_*.bin`, `golf_val_*.bin`, the exact byte sidecar
`golf_val_bytes_*.bin`, `tokenizer.model` and, last, `manifest.json`: a folder without it is unfinished.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from golf.data.audit import audit
from golf.data.encoder import Encoder, Transform
from golf.data.manifest import MANIFEST_FORMAT, MANIFEST_NAME, MANIFEST_VERSION, read_manifest
from golf.data.readback import Totals, read_back_files, read_back_sidecar, read_back_split
from golf.data.shards import OWN_PREFIX, Dataset, shard_kind
from golf.data.texts import Document, find_inputs, read_documents
from golf.data.tokenizer import TOKENIZER_NAME, load_tokenizer
from golf.data.writer import ShardWriter
from golf.errors import BadFileError, UsageError
from golf.files import remove_stale, write_errors_told, write_json

Progress = Callable[[int, int], None]

SHARD_TOKENS = 10**8
DEFAULT_VAL_FRACTION = 0.05
MAX_DEFAULT_VAL_DOCS = 50_000  # the challenge's own validation set

_STAGING_NAME = ".prepare"

_TOLD_BYTES = 1 << 20  # of text between two calls of `progress`


def prepare(
    inputs: Sequence[Path],
    *,
    tokenizer: Path,
    out: Path,
    val_docs: int | None = None,
    val_fraction: float | None = None,
    transform: Transform = "auto",
    shard_tokens: int = SHARD_TOKENS,
    limit: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Tokenize the documents of `inputs` into a data set in the folder `out` and return its manifest.

    The first `val_docs` documents are for validation, or the first `val_fraction` of them all, which takes a pass to
    count them; by default a twentieth, at most 50,000. `limit` reads only so many documents. "auto" means CaseOps when
    the tokenizer has the four operators. `progress(documents, utf8_bytes)` is called about once a megabyte. Documents
    that are empty, or of which the tokenizer leaves nothing, are counted and skipped. Memory does not grow with the
    text. All is written into a folder within `out` and moved out of it at the end: a call that fails or is stopped
    leaves `out` as it was, also with `force`.

    Raises BadFileError for inputs that cannot be used, UsageError for a finished folder without `force`, for a folder
    with other shards, and for a split that leaves nothing to train on, EnvironmentUnfitError for a folder that cannot
    be made or written.
    """
    encoder = Encoder.choose(load_tokenizer(tokenizer), transform)
    if shard_tokens < 1:
        raise UsageError(f"shard_tokens is {shard_tokens}; it must be at least 1")
    files = find_inputs(inputs)
    split = _choose_split(files, val_docs, val_fraction, limit)
    staging = out / _STAGING_NAME
    with _cleared_up(out):
        with write_errors_told(out):
            _make_way(out, force=force)
            staging.mkdir()
        documents = _reported(islice(read_documents(files), limit), progress)
        manifest = _write_all(documents, encoder, staging, shard_tokens, split["val_documents"], files)
        manifest |= {
            "inputs": [{"name": file.name, "bytes": file.stat().st_size} for file in files],
            "split": split,
        }
        write_json(staging / MANIFEST_NAME, manifest)
        _replace(out, staging)
    return manifest


def _choose_split(
    files: list[Path], val_docs: int | None, val_fraction: float | None, limit: int | None
) -> dict[str, Any]:
    """Decide how many of the first documents are for validation, and say in the manifest how that came about."""
    if val_docs is not None and val_fraction is not None:
        raise UsageError("val_docs and val_fraction were both given; give one of them")
    if val_docs is not None:
        if val_docs < 1:
            raise UsageError(f"val_docs is {val_docs}; at least one document is needed to validate on")
        return {"val_documents": val_docs, "val_fraction": None, "chosen_by": "val_docs"}
    if val_fraction is not None and not 0 < val_fraction < 1:
        raise UsageError(f"val_fraction is {val_fraction}; it must be between 0 and 1")
    fraction, most = val_fraction or DEFAULT_VAL_FRACTION, None if val_fraction else MAX_DEFAULT_VAL_DOCS
    documents = (document for document in islice(read_documents(files), limit) if document.text.strip())
    total = sum(1 for _ in islice(documents, most and round(most / fraction)))  # no need to count further
    chosen = max(1, round(total * fraction))
    return {
        "val_documents": chosen,
        "val_fraction": fraction,
        "chosen_by": "val_fraction" if val_fraction else "default",
    }


@contextlib.contextmanager
def _cleared_up(out: Path) -> Iterator[None]:
    """Remove what the block staged, and if it fails the folders that were not there before."""
    absent = [path for path in (out, *out.parents) if not os.path.lexists(path)]
    try:
        yield
    except BaseException:
        shutil.rmtree(out / _STAGING_NAME, ignore_errors=True)
        for path in absent:
            with contextlib.suppress(OSError):  # not made yet, or somebody else's files are in it by now
                path.rmdir()
        raise
    shutil.rmtree(out / _STAGING_NAME)


def _make_way(out: Path, *, force: bool) -> None:
    """Make `out` a folder that may be written to; whatever is not ours is refused, and nothing of ours is lost yet."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; name a folder")
    out.mkdir(parents=True, exist_ok=True)
    manifest = out / MANIFEST_NAME
    if manifest.exists() and not force:
        raise UsageError(f"{out} already holds a data set; name another folder, or prepare it again with --force")
    remove_stale(out)
    shutil.rmtree(out / _STAGING_NAME, ignore_errors=True)  # of a call that was killed
    kinds = [kind for path in out.iterdir() if (kind := shard_kind(path))]
    if {prefix for prefix, _ in kinds} - {OWN_PREFIX} or (manifest.exists() and read_manifest(out) is None):
        raise UsageError(f"{out} holds a data set that `golf data prepare` did not make; name another folder")


def _replace(out: Path, staging: Path) -> None:
    """Put the staged files in the place of what was there, the manifest last; in between, the folder is unfinished."""
    (out / MANIFEST_NAME).unlink(missing_ok=True)
    for path in [path for path in out.iterdir() if shard_kind(path)]:
        path.unlink()
    for path in sorted(staging.iterdir(), key=lambda path: path.name == MANIFEST_NAME):
        path.replace(out / path.name)


def _write_all(
    documents: Iterator[Document],
    encoder: Encoder,
    folder: Path,
    shard_tokens: int,
    val_documents: int,
    files: list[Path],
) -> dict[str, Any]:
    """Write shards, sidecar and tokenizer into `folder`; return the manifest of what was read back."""
    val, sidecar, train = (
        ShardWriter(folder, f"{OWN_PREFIX}_{kind}", shard_tokens=shard_tokens) for kind in ("val", "val_bytes", "train")
    )
    with val, sidecar, train:
        val_totals = _write_val(documents, encoder, val, sidecar, val_documents)
        train_totals = _write_train(documents, encoder, train)
    if not train_totals.documents:
        raise _nothing_to_train_on(files, val_totals.documents)
    shutil.copyfile(encoder.tokenizer.path, folder / TOKENIZER_NAME)
    dataset = Dataset(
        folder=folder,
        train=tuple(train.paths),
        val=tuple(val.paths),
        val_sidecars=tuple(sidecar.paths),
        tokenizer=folder / TOKENIZER_NAME,
        vocab_size=encoder.tokenizer.vocab_size,
        bos_id=encoder.tokenizer.bos_id,
        manifest=None,
    )
    return _describe(dataset, encoder, train_totals, val_totals)


def _reported(documents: Iterable[Document], progress: Progress | None) -> Iterator[Document]:
    count = size = told = 0
    for document in documents:
        yield document
        count, size = count + 1, size + document.utf8_bytes
        if progress and size - told >= _TOLD_BYTES:
            progress(count, size)
            told = size
    if progress:
        progress(count, size)


def _write_val(
    documents: Iterator[Document], encoder: Encoder, val: ShardWriter, sidecar: ShardWriter, val_docs: int
) -> Totals:
    totals = Totals()
    while totals.documents < val_docs and (document := next(documents, None)):
        tokens, charged = encoder.encode_counted(document)
        totals = totals.plus(document.utf8_bytes, tokens.size)
        if tokens.size:
            val.append(tokens)
            sidecar.append(charged)
    return totals


def _write_train(documents: Iterator[Document], encoder: Encoder, train: ShardWriter) -> Totals:
    totals = Totals()
    for document in documents:
        tokens = encoder.encode(document)
        totals = totals.plus(document.utf8_bytes, tokens.size)
        if tokens.size:
            train.append(tokens)
    return totals


def _nothing_to_train_on(files: list[Path], val_documents: int) -> Exception:
    if val_documents:
        return UsageError(
            f"all {val_documents} documents went to validation; give more text or a smaller validation set"
        )
    return BadFileError(files[0], "there is no text in it, nor in any other input", "check the inputs")


def _describe(dataset: Dataset, encoder: Encoder, train: Totals, val: Totals) -> dict[str, Any]:
    """Return the manifest of what was written, after checking it."""
    tokenizer = encoder.tokenizer
    return {
        "format": MANIFEST_FORMAT,
        "version": MANIFEST_VERSION,
        "transform": "caseops" if encoder.is_caseops else "none",
        "tokenizer": tokenizer.describe() | {"source": tokenizer.path.name},
        "train": read_back_split(dataset.train, train, tokenizer),
        "val": read_back_split(dataset.val, val, tokenizer)
        | {"sidecar_bytes": read_back_sidecar(dataset.val_sidecars, val)},
        "audit": audit(dataset),
        **read_back_files(dataset),
    }
