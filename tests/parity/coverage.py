"""What the parity tests must read: every key of every recorded file, but for the lists below."""

import fnmatch

from tests.parity.fixture_set import FixtureSet, Leaf

COVERED = (
    "artifact",
    "artifact_1855",
    "bpb_lut",
    "caseops",
    "eval",
    "gptq",
    "hessian",
    "loaders",
    "model_1787",
    "model_1801",
    "model_1855",
    "model_pr401",
    "muon",
    "pr401_extras",
    "schedule",
)
COVERED_FILES = ("loader_*.bin", "val_*.bin")

NOT_YET_COVERED = {
    "ttt": "test-time training is not built yet",
    "pergroup": "the per-group streams of PR #1855 are not built yet",
}

WRONG_SIDECAR = "PR #1787 counts bytes wrongly (the fixture's notes say how); golf does not offer it"
SLIDING = "sliding-window evaluation is not built yet"

# Beginnings of "file: key" of covered files that no test reads, and why.
UNREAD = {
    "caseops.json: english_paragraph": "its text is not in the file",
    "caseops.json: strings/[]/sidecar_1787": WRONG_SIDECAR,
    "caseops.json: totals_where_both_exist/sidecar_1787": WRONG_SIDECAR,
    "pr401_extras.json: hyperparameters/stream_head_targets": SLIDING,
    "pr401_extras.json: hyperparameters/windows_per_batch": SLIDING,
    "pr401_extras.json: sliding": SLIDING,
    "pr401_extras.json: tolerances/sliding_loss": SLIDING,
    "pr401_extras.safetensors: sliding::": SLIDING,
    "schedule.json: lr/[]/name": "names a table whose values are read",
}

# Keys that speak to a reader of the file, wherever they stand in the JSON: no number to compare is in them.
TEXTS = {
    "batch",
    "counting",
    "description",
    "document_layout",
    "file_format",
    "fp64_gap",  # the measurement behind the tolerances
    "fraction",
    "grad_accum_steps",
    "hessians_from",
    "inputs_from",
    "keys",
    "left_out",
    "notes",
    "rng",
    "rule",
    "rules",
    "source",
    "stream_from",
    "tensors",  # names, shapes and types of the tensors, which are read themselves
    "val_batch_tokens",
    "weights_from",
}


def keys_of(recorded: FixtureSet, name: str) -> dict[str, bool]:
    """Return every key of a fixture as "file: key" and whether it was read; texts are left out.

    The rows of a list share their keys: what is read in one row is read.
    """
    entries, tensors = recorded.fixture(name)
    found: dict[str, bool] = {}
    for leaf in entries.leaves():
        if not is_text(leaf):
            key = f"{name}.json: {'/'.join(leaf.path)}"
            found[key] = found.get(key, False) or leaf.is_read
    return found | {f"{name}.safetensors: {key}": key in tensors.read for key in tensors}


def all_keys(recorded: FixtureSet) -> dict[str, bool]:
    """Return every key of the covered files and whether it was read; a file without keys is a key itself."""
    found = {key: is_read for name in COVERED for key, is_read in keys_of(recorded, name).items()}
    return found | {path: path in recorded.paths_read for path in plain_files(recorded)}


def unread_keys(recorded: FixtureSet) -> list[str]:
    """Return the keys of covered files that no test read and no list excuses."""
    return [key for key, is_read in all_keys(recorded).items() if not is_read and not key.startswith(tuple(UNREAD))]


def stale_excuses(recorded: FixtureSet) -> list[str]:
    """Return the excuses for something that a test does read."""
    read = [key for key, is_read in all_keys(recorded).items() if is_read]
    stale = [excuse for excuse in UNREAD if any(key.startswith(excuse) for key in read)]
    return stale + [name for name in NOT_YET_COVERED if name in recorded.opened]


def unlisted_files(recorded: FixtureSet) -> list[str]:
    """Return the files of the folder that no list names."""
    known = {f"{name}{suffix}" for name in (*COVERED, *NOT_YET_COVERED) for suffix in (".json", ".safetensors")}
    known |= {"README.md", *plain_files(recorded)}
    return sorted(path.name for path in recorded.folder.iterdir() if path.name not in known)


def plain_files(recorded: FixtureSet) -> list[str]:
    names = sorted(path.name for path in recorded.folder.iterdir())
    return [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in COVERED_FILES)]


def is_text(leaf: Leaf) -> bool:
    """Whether a value is words: under a key of TEXTS, or a tolerance that is not a number ("exact")."""
    return bool(TEXTS & set(leaf.path)) or (leaf.path[0] == "tolerances" and isinstance(leaf.value, str))
