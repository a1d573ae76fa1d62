"""The compact subset of the recorded data that is kept in the project.

`python -m tests.parity.subset FULL_DIR` writes it anew; `unpack_subset` lays it out like the whole set. It has every
file of work that is covered and every kind of case, of which the large ones are thinned out; the JSON names the tensors
that are missing under `left_out`. Files are packed with brotli, those of tensors as four planes (all first bytes of the
words, all second ones, ...), since the exponents of floats compress and their mantissas do not.
"""

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import brotli  # type: ignore[import-untyped]  # ships no types
import numpy as np
from safetensors.torch import load_file, save_file

from golf.files import sha256_file
from tests.parity.coverage import COVERED, COVERED_FILES

DATA = Path(__file__).parent / "data"
MAX_BYTES = 5_000_000
PLANES = 4

# What is left out: tables of logits but for two (their mean loss stays), gradients of large matrices, and cases that
# are like a kept one. Hessians are kept for the weights whose GPTQ or low-rank correction is recorded by itself.
LEFT_OUT = {
    "artifact": r"deq::.*\.(c_q|c_v|proj|fc)\.weight|deq::tok_emb\.weight",
    "gptq": r"out::(?!.*\.clip{clip}\.).*|variant::(?!.*\.block{block}\.).*|.*::(fc|proj)\..*|sdclip::random.*",
    "hessian": r"H_triu::(?!({hessians})$).*",
    "model_1787": r"grad::(.*_bank|tok_emb.*)|out::logits_(?!packed_loop_on).*",
    "model_1801": r"grad::(.*_bank|tok_emb.*)|out::logits.*",
    "model_1855": r"grad::(.*_bank|tok_emb.*)|out::logits_(un)?packed_loop_on",
    "model_pr401": r"grad::.*\.(weight|shared)|out::logits",
    "muon": r"muon::(?!{bank}\.).*|ns::(batched.*|.*\.steps3\..*)|muon_world2::even.*",
    "pr401_extras": r"lite::normal.*|sliding::.*",
}


def write_subset(source: Path, target: Path) -> None:
    """Write the packed subset of the recorded data at `source`, and the digests of its unpacked files."""
    target.mkdir(parents=True, exist_ok=True)
    digests: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        choose_subset(source, Path(scratch))
        for path in sorted(path for path in Path(scratch).rglob("*") if path.is_file()):
            name = path.relative_to(scratch).as_posix()
            digests[name] = sha256_file(path)
            packed = target / f"{name}.br"
            packed.parent.mkdir(exist_ok=True)
            packed.write_bytes(brotli.compress(to_planes(path.read_bytes(), planes_of(name)), quality=11, lgwin=24))
    (target / "digests.json").write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")
    assert sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) <= MAX_BYTES


def unpack_subset(packed: Path, target: Path) -> Path:
    """Unpack the subset into `target` and return the folder that stands for the whole set."""
    for name, digest in json.loads((packed / "digests.json").read_text(encoding="utf-8")).items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(from_planes(brotli.decompress((packed / f"{name}.br").read_bytes()), planes_of(name)))
        assert sha256_file(path) == digest, f"{packed / name}.br: not what digests.json says; write the subset anew"
    return target / "fixtures"


def choose_subset(source: Path, target: Path) -> None:
    """Lay out the chosen files and tensors of `source` under `target`/fixtures, the tokenizer beside them."""
    fixtures, tokenizers = target / "fixtures", target / "tokenizers"
    fixtures.mkdir()
    tokenizers.mkdir()
    numbers = chosen_numbers(source)
    for name in COVERED:
        description = json.loads((source / f"{name}.json").read_text(encoding="utf-8"))
        if (source / f"{name}.safetensors").exists():
            tensors = load_file(source / f"{name}.safetensors")
            pattern = LEFT_OUT.get(name, "(?!)").format(**numbers)
            left_out = sorted(key for key in tensors if re.fullmatch(pattern, key))
            save_file({key: tensors[key] for key in tensors if key not in left_out}, fixtures / f"{name}.safetensors")
            description = without(description, left_out)
        (fixtures / f"{name}.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
    for path in [path for pattern in COVERED_FILES for path in source.glob(pattern)]:
        (fixtures / path.name).write_bytes(path.read_bytes())
    tokenizer = json.loads((fixtures / "caseops.json").read_text(encoding="utf-8"))["tokenizer"]
    (tokenizers / tokenizer).write_bytes((source.parent / "tokenizers" / tokenizer).read_bytes())


def chosen_numbers(source: Path) -> dict[str, str]:
    """Return what stands in the patterns of LEFT_OUT for names and numbers that are another recorded set's own."""
    names = ("gptq", "hessian", "muon", "artifact_1855")
    gptq, hessian, muon, low_rank = (json.loads((source / f"{name}.json").read_text("utf-8")) for name in names)
    weights = [*gptq["weights"].values(), *(name for name, _ in low_rank["largest_error_norms"])]
    hessians = {hessian["aliases"].get(name, name) for name in weights}
    return {
        "clip": re.escape(str(gptq["sdclip"]["clip_sigmas"])),
        "block": str(gptq["constants"]["block_size"]),
        "bank": re.split(r"::|\.", muon["one_step_variants"]["param"])[1],
        "hessians": "|".join(re.escape(name) for name in sorted(hessians)),
    }


def without(description: dict[str, Any], left_out: list[str]) -> dict[str, Any]:
    """Return the JSON of a fixture that lacks some tensors: they are named, and lists of what is there are shorter."""
    if not left_out:
        return description
    lacking = {key.partition("::")[2] for key in left_out}
    changed = {**description, "left_out": left_out}
    changed["tensors"] = {key: value for key, value in description["tensors"].items() if key not in left_out}
    if "aliases" in description:
        aliases = description["aliases"]
        changed["names"] = [name for name in description["names"] if aliases.get(name, name) not in lacking]
        changed["aliases"] = {name: other for name, other in aliases.items() if other not in lacking}
    if "stats" in description:
        changed["stats"] = {key: row for key, row in description["stats"].items() if f"out::{key}.q" not in left_out}
    return changed


def planes_of(name: str) -> int:
    return PLANES if name.endswith(".safetensors") else 1


def to_planes(data: bytes, planes: int) -> bytes:
    whole = len(data) // planes * planes
    return np.frombuffer(data[:whole], np.uint8).reshape(-1, planes).T.tobytes() + data[whole:]


def from_planes(data: bytes, planes: int) -> bytes:
    whole = len(data) // planes * planes
    return np.frombuffer(data[:whole], np.uint8).reshape(planes, -1).T.tobytes() + data[whole:]


if __name__ == "__main__":
    write_subset(Path(sys.argv[1]), DATA)
