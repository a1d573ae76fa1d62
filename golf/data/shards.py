"""Shards: the .bin container of token ids, and a data set, which is a folder of them.

A shard is 256 little-endian int32 header words (magic, version, token count, zeros) and then the uint16 tokens. The
byte sidecar of a validation shard uses the same container: one count per token.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from golf.data.manifest import MANIFEST_NAME, check_files, read_manifest
from golf.data.tokenizer import load_tokenizer
from golf.errors import BadFileError, UsageError
from golf.files import canonical_json, sha256_bytes, write_bytes

Tokens = npt.NDArray[np.uint16]

OWN_PREFIX = "golf"  # shards that `golf data prepare` writes; these always come with a manifest

_MAGIC, _VERSION, _HEADER_BYTES = 20240520, 1, 1024
_SHARD_NAME = re.compile(r"(?P<prefix>[^.].*?)_(?P<kind>train|val|val_bytes)_\d{6}\.bin")
_REMEDY = "fetch or prepare it again"
_SCAN_TOKENS = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """The shards of one folder, in their frozen order, with the tokenizer and manifest found beside them."""

    folder: Path
    train: tuple[Path, ...]
    val: tuple[Path, ...]
    val_sidecars: tuple[Path, ...]
    tokenizer: Path | None
    vocab_size: int | None  # None when the folder has neither manifest nor tokenizer
    bos_id: int
    manifest: dict[str, Any] | None

    @classmethod
    def open(cls, folder: Path) -> "Dataset":
        """Find the shards of `folder`, check every header and, if there is one, the manifest.

        Names count only in full (`*_train_000000.bin`, `*_val_000000.bin`, `*_val_bytes_000000.bin`), so a sidecar is
        never read as tokens. Raises BadFileError for anything missing, damaged, unfinished or ambiguous.
        """
        shards = _find_shards(folder)
        paths = [path for kind in shards.values() for path in kind]
        for path in paths:
            read_shard(path)
        manifest = read_manifest(folder)
        if manifest:
            check_files(folder, manifest, paths)
        _check_sidecars(shards["val"], shards["val_bytes"])
        tokenizer, vocab_size, bos_id = _tokenizer_facts(folder, manifest)
        return cls(folder, shards["train"], shards["val"], shards["val_bytes"], tokenizer, vocab_size, bos_id, manifest)

    def val_tokens(self) -> Tokens:
        """Return the whole validation stream, in memory."""
        if not self.val:
            raise BadFileError(self.folder, "it holds no validation shard (*_val_000000.bin)", "fetch or prepare one")
        return np.concatenate([read_shard(path) for path in self.val])

    def val_bytes(self) -> Tokens | None:
        """Return the bytes charged to each validation token, or None if the folder has no sidecar."""
        return np.concatenate([read_shard(path) for path in self.val_sidecars]) if self.val_sidecars else None

    def digest(self) -> str:
        """Return a fingerprint of the names, sizes and, where a manifest has them, contents of all shards."""
        known = {entry["name"]: entry["sha256"] for entry in self.manifest["files"]} if self.manifest else {}
        paths = [*self.train, *self.val, *self.val_sidecars]
        return sha256_bytes(
            canonical_json([[path.name, path.stat().st_size, known.get(path.name)] for path in paths]).encode()
        )

    def check_vocab(self, vocab_size: int) -> None:
        """Raise BadFileError, naming the shard, when a token id does not fit a vocabulary of `vocab_size`.

        The largest id comes from the manifest; without one, the first 2^20 tokens of each shard are looked at.
        """
        for kind, paths in (("train", self.train), ("val", self.val)):
            for path in paths:
                if self.manifest:
                    largest = int(self.manifest[kind]["max_token_id"])
                else:
                    largest = int(read_shard(path)[:_SCAN_TOKENS].max(initial=0))
                if largest >= vocab_size:
                    reason = f"it holds token id {largest}, but the vocabulary has {vocab_size} ids"
                    size = max(self.vocab_size or 0, largest + 1)
                    remedy = f"use the recipe and the data of one tokenizer, or --set model.vocab_size={size}"
                    raise BadFileError(path, reason, remedy)


def shard_header(count: int) -> bytes:
    """Return the 1024 header bytes of a shard of `count` tokens."""
    words = np.zeros(_HEADER_BYTES // 4, dtype="<i4")
    words[:3] = _MAGIC, _VERSION, count
    return words.tobytes()


def write_shard(path: Path, tokens: npt.NDArray[np.integer[Any]]) -> None:
    """Write `tokens` (each 0 to 65,535) as one shard, atomically."""
    if tokens.size and not (tokens.min() >= 0 and tokens.max() <= 0xFFFF):
        raise ValueError(f"{path}: values from {tokens.min()} to {tokens.max()} given; a shard holds 0 to 65535")
    write_bytes(path, shard_header(tokens.size) + tokens.astype("<u2").tobytes())


def read_shard(path: Path) -> np.memmap[Any, np.dtype[np.uint16]]:
    """Map a shard's tokens read-only; BadFileError unless magic, version and size are right."""
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
        size = path.stat().st_size
    except OSError as error:
        raise BadFileError(path, f"it cannot be read ({error.strerror})", _REMEDY) from None
    if len(header) < _HEADER_BYTES:
        raise BadFileError(path, f"it has {len(header)} bytes, less than a shard's header", _REMEDY)
    magic, version, count = np.frombuffer(header, dtype="<i4", count=3).tolist()
    if (magic, version) != (_MAGIC, _VERSION):
        reason = f"it is not a token shard (header {magic}, {version} instead of {_MAGIC}, {_VERSION})"
        raise BadFileError(path, reason, _REMEDY)
    if size != _HEADER_BYTES + 2 * count:
        reason = f"its header promises {count} tokens, but {size} bytes hold {(size - _HEADER_BYTES) / 2:g}"
        raise BadFileError(path, reason, _REMEDY)
    return np.memmap(path, dtype="<u2", mode="r", offset=_HEADER_BYTES, shape=(count,))


def map_training_shards(paths: Sequence[Path]) -> tuple[tuple[Tokens, ...], str]:
    """Map the shards of a training stream read-only; return their tokens and a digest of their names and sizes."""
    if not paths:
        raise UsageError("no training shards were given; point to a folder with *_train_000000.bin")
    names = [[path.name, path.stat().st_size] for path in paths]
    return tuple(np.asarray(read_shard(path)) for path in paths), sha256_bytes(canonical_json(names).encode())


def shard_kind(path: Path) -> tuple[str, str] | None:
    """Return the (prefix, kind) of a shard's file name, kind being train, val or val_bytes; None for other files.

    No name with a leading dot is one: a killed writer leaves such files behind.
    """
    match = _SHARD_NAME.fullmatch(path.name)
    return (match["prefix"], match["kind"]) if match else None


def _find_shards(folder: Path) -> dict[str, tuple[Path, ...]]:
    if not folder.is_dir():
        raise BadFileError(folder, "no such folder", "check the path, or make one with `golf data prepare`")
    found: dict[str, list[Path]] = {"train": [], "val": [], "val_bytes": []}
    prefixes = set()
    for path in sorted(folder.iterdir()):
        if named := shard_kind(path):
            prefixes.add(named[0])
            found[named[1]].append(path)
    if not prefixes:
        raise BadFileError(
            folder, "it holds no shards (*_train_000000.bin)", "check the path or run `golf data prepare`"
        )
    if len(prefixes) > 1:
        raise BadFileError(
            folder, f"it mixes the data sets {', '.join(sorted(prefixes))}", "keep one data set in a folder"
        )
    if prefixes == {OWN_PREFIX} and read_manifest(folder) is None:
        raise BadFileError(
            folder, f"it is unfinished (no {MANIFEST_NAME} of `golf data prepare`)", "run `golf data prepare` again"
        )
    for paths in found.values():
        _check_numbering(paths)
    return {kind: tuple(paths) for kind, paths in found.items()}


def _check_numbering(paths: Iterable[Path]) -> None:
    """A gap would shift every later step of the stream without a sign."""
    for number, path in enumerate(paths):
        expected = f"{path.name[:-10]}{number:06d}.bin"
        if path.name != expected:
            raise BadFileError(path.with_name(expected), "it is missing from the numbered shards", _REMEDY)


def _check_sidecars(val: tuple[Path, ...], sidecars: tuple[Path, ...]) -> None:
    if not sidecars:
        return
    tokens, counts = (sum(read_shard(path).size for path in paths) for paths in (val, sidecars))
    if tokens != counts:
        reason = f"the byte sidecar has {counts} entries for {tokens} validation tokens"
        raise BadFileError(sidecars[0], reason, "fetch or prepare tokens and sidecar together")


def _tokenizer_facts(folder: Path, manifest: dict[str, Any] | None) -> tuple[Path | None, int | None, int]:
    if manifest:
        facts = manifest["tokenizer"]
        return folder / Path(facts["file"]).name, int(facts["vocab_size"]), int(facts["bos_id"])
    models = sorted(folder.glob("*.model"))
    if not models:
        return None, None, 1  # 1 is the first-token id of every published data set
    if len(models) > 1:
        raise BadFileError(models[1], f"a second tokenizer beside {models[0].name}", "keep one in the folder")
    tokenizer = load_tokenizer(models[0])
    return models[0], tokenizer.vocab_size, tokenizer.bos_id
