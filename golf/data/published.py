"""The data sets that are published for parameter golf: where each lies, and what it is known to add up to.

A repository holds `datasets/manifest.json`, which lists data sets and tokenizers; the tokenizers' files at paths
relative to `datasets/`; and the shards in `datasets/datasets/<name>/`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from golf.data.shards import shard_kind
from golf.errors import BadFileError, UsageError

MANIFEST_PATH = "datasets/manifest.json"

_PREFIX = "datasets/"
_REMEDY = "the repository is damaged, fetch from another endpoint"


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownTotals:
    """What the whole validation set is known to hold; None where nobody has said."""

    documents: int | None = None
    scored_tokens: int | None = None  # targets, cut down to whole sequences of 2,048
    scored_bytes: int | None = None  # of text behind them, derived from published ratios of loss to bits per byte


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One published data set."""

    repository: str
    dataset: str  # its name in the repository's manifest
    is_caseops: bool = False  # then a byte sidecar must lie beside the validation shards
    totals: KnownTotals = KnownTotals()


VARIANTS = {
    "sp1024": Variant(
        repository="willdepueoai/parameter-golf",
        dataset="fineweb10B_sp1024",
        totals=KnownTotals(documents=50_000, scored_tokens=62_021_632),
    ),
    "sp4096": Variant(
        repository="kevclark/parameter-golf",
        dataset="fineweb10B_sp4096",
        totals=KnownTotals(documents=50_000),
    ),
    "sp8192": Variant(
        repository="kevclark/parameter-golf",
        dataset="fineweb10B_sp8192",
        totals=KnownTotals(documents=50_000, scored_tokens=40_540_160, scored_bytes=151_078_222),
    ),
    "sp8192-caseops": Variant(
        repository="romeerp/parameter-golf-caseops-v1",
        dataset="fineweb10B_sp8192_lossless_caps_caseops_v1_reserved",
        is_caseops=True,
        totals=KnownTotals(documents=50_000, scored_tokens=47_851_520, scored_bytes=151_074_499),
    ),
}


def tokenizer_path(manifest: Any, variant: Variant) -> str:
    """Return the path, within the repository, of the variant's tokenizer.

    Raises UsageError, listing what is there, if the published `manifest` has no such data set.
    """
    try:
        datasets = {entry["name"]: entry.get("tokenizer_name") for entry in manifest["datasets"]}
        tokenizers = {entry["name"]: entry for entry in manifest["tokenizers"]}
    except (KeyError, TypeError, AttributeError):
        raise BadFileError(MANIFEST_PATH, "it does not list data sets and tokenizers", _REMEDY) from None
    if variant.dataset not in datasets:
        there = ", ".join(sorted(datasets)) or "nothing"
        raise UsageError(f"{variant.repository} does not hold {variant.dataset}, but {there}; choose one of these")
    name = datasets[variant.dataset]
    entry = tokenizers.get(name, {})
    path = next((entry[key] for key in ("model_path", "path", "vocab_path") if entry.get(key)), None)
    if not isinstance(path, str) or not path.endswith(".model"):
        raise BadFileError(MANIFEST_PATH, f"it names no SentencePiece model for {name} ({path})", _REMEDY)
    return _PREFIX + path


def shard_paths(files: Iterable[str], variant: Variant) -> dict[str, list[str]]:
    """Return the variant's shards among the repository's `files` in frozen order: train, val and val_bytes.

    Raises BadFileError if one of the kinds is missing or its numbers have a gap.
    """
    folder = f"{_PREFIX}datasets/{variant.dataset}/"
    found: dict[str, list[str]] = {"train": [], "val": [], "val_bytes": []}
    for path in sorted(files):
        kind = shard_kind(Path(path))
        if kind and path == folder + Path(path).name:
            found[kind[1]].append(path)
    for kind_name, paths in found.items():
        numbers = [int(path[-10:-4]) for path in paths]
        if numbers != list(range(len(paths))) or (not paths and (kind_name != "val_bytes" or variant.is_caseops)):
            raise BadFileError(folder, f"its {kind_name} shards are {numbers}, not 0, 1, …", _REMEDY)
    return found
