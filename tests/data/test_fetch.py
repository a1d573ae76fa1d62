import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest

from golf.data.fetch import fetch
from golf.data.prepare import prepare
from golf.data.published import VARIANTS, KnownTotals, Variant
from golf.data.shards import Dataset, read_shard, shard_header
from golf.errors import BadFileError, EnvironmentUnfitError, ResourceError, UsageError
from golf.files import sha256_file
from tests.data.conftest import random_text, train_tokenizer
from tests.data.fake_hub import REVISION, FakeHub, running
from tests.session_tools import golf

REPOSITORY, CASEOPS, PLAIN = "someone/golf-data", "tiny_caseops", "tiny_plain"
TRAIN_SHARDS = 4


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of ours in four training shards, two validation shards and their sidecars."""
    folder = tmp_path_factory.mktemp("prepared")
    source = folder / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": random_text(seed, 300)}) + "\n" for seed in range(18)))
    tokenizer = train_tokenizer(folder / "t.model")
    prepare([source], tokenizer=tokenizer, out=folder / "out", val_docs=6, shard_tokens=2300)
    return folder / "out"


@pytest.fixture
def files(prepared: Path, plain_tokenizer: Path) -> dict[str, bytes]:
    """The repository as it is published, once with a sidecar and once without."""
    listed = {
        "datasets": [
            {"name": CASEOPS, "tokenizer_name": "caseops", "stats": {"files_train": TRAIN_SHARDS}},
            {"name": PLAIN, "tokenizer_name": "plain"},
        ],
        "tokenizers": [
            {"name": "caseops", "model_path": "tokenizers/caseops.model"},
            {"name": "plain", "path": "tokenizers/plain.model"},
        ],
    }
    found = {
        "datasets/manifest.json": json.dumps(listed).encode(),
        "datasets/tokenizers/caseops.model": (prepared / "tokenizer.model").read_bytes(),
        "datasets/tokenizers/plain.model": plain_tokenizer.read_bytes(),
        "datasets/docs_selected.jsonl": b"{}",
    }
    for path in sorted(prepared.glob("*.bin")):
        name = path.name.replace("golf_", "fineweb_")
        found[f"datasets/datasets/{CASEOPS}/{name}"] = path.read_bytes()
        if "bytes" not in name:
            found[f"datasets/datasets/{PLAIN}/{name}"] = path.read_bytes()
    return found


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[FakeHub]:
    with running(FakeHub(REPOSITORY, files)) as hub:
        yield hub


@pytest.fixture
def variant(prepared: Path) -> Variant:
    dataset = Dataset.open(prepared)
    tokens, counts = dataset.val_tokens(), dataset.val_bytes()
    assert counts is not None
    scored = (tokens.size - 1) // 2048 * 2048
    assert scored > 0
    totals = KnownTotals(documents=6, scored_tokens=scored, scored_bytes=int(counts[1 : scored + 1].sum()))
    return Variant(repository=REPOSITORY, dataset=CASEOPS, is_caseops=True, totals=totals)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "data" / "mine"


def shard(name: str) -> str:
    return f"datasets/datasets/{CASEOPS}/fineweb_{name}.bin"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_data_set_arrives_as_it_was_published(
    hub: FakeHub, variant: Variant, out: Path, prepared: Path
) -> None:
    fetch(variant, out=out, endpoint=hub.endpoint)
    fetched, source = Dataset.open(out), Dataset.open(prepared)
    for ours, theirs in (
        (fetched.train, source.train),
        (fetched.val, source.val),
        (fetched.val_sidecars, source.val_sidecars),
    ):
        assert [path.read_bytes() for path in ours] == [path.read_bytes() for path in theirs]
    assert len(fetched.train) == TRAIN_SHARDS
    assert fetched.tokenizer is not None
    assert fetched.tokenizer.read_bytes() == (prepared / "tokenizer.model").read_bytes()


def test_nothing_else_is_left_in_the_folder(hub: FakeHub, variant: Variant, out: Path) -> None:
    fetch(variant, out=out, endpoint=hub.endpoint)
    shards = [name.rpartition("/")[2] for name in hub.files if CASEOPS in name]
    assert names(out) == sorted([*shards, "manifest.json", "tokenizer.model"])


def test_the_manifest_says_what_was_fetched_and_from_where(hub: FakeHub, variant: Variant, out: Path) -> None:
    manifest = fetch(variant, out=out, endpoint=hub.endpoint)
    assert manifest == json.loads((out / "manifest.json").read_text())
    assert manifest["source"] == {
        "dataset": CASEOPS,
        "repository": REPOSITORY,
        "endpoint": hub.endpoint,
        "revision": REVISION,
    }
    assert {entry["name"]: entry["sha256"] for entry in manifest["files"]} == {
        path.name: sha256_file(path) for path in out.glob("*.bin")
    }
    train = [read_shard(path) for path in Dataset.open(out).train]
    assert manifest["train"] == {
        "documents": 12,
        "tokens": sum(tokens.size for tokens in train),
        "max_token_id": max(int(tokens.max()) for tokens in train),
    }
    assert manifest["val"]["documents"] == 6
    assert manifest["val"]["scored_bytes"] == variant.totals.scored_bytes


def test_progress_is_told_before_each_file_and_at_the_end(hub: FakeHub, variant: Variant, out: Path) -> None:
    told: list[tuple[str, int, int]] = []
    fetch(variant, out=out, shards=1, endpoint=hub.endpoint, progress=lambda *what: told.append(what))
    total = sum(path.stat().st_size for path in out.iterdir() if path.name != "manifest.json")
    assert [name for name, *_ in told] == ["tokenizer.model", *hub.transferred[2:], "all files"]
    assert told[0][1:] == (0, total)
    assert told[-1] == ("all files", total, total)


def test_only_the_first_training_shards_may_be_asked_for(hub: FakeHub, variant: Variant, out: Path) -> None:
    fetch(variant, out=out, shards=1, endpoint=hub.endpoint)
    assert [path.name for path in Dataset.open(out).train] == ["fineweb_train_000000.bin"]
    assert not [name for name in hub.transferred if "train" in name][1:]


def test_more_shards_later_fetch_the_missing_ones_alone(hub: FakeHub, variant: Variant, out: Path) -> None:
    fetch(variant, out=out, shards=1, endpoint=hub.endpoint)
    del hub.sent[:]
    fetch(variant, out=out, shards=3, endpoint=hub.endpoint)
    assert hub.transferred == ["manifest.json", "fineweb_train_000001.bin", "fineweb_train_000002.bin"]
    assert len(Dataset.open(out).train) == 3


def test_fewer_shards_later_keep_what_is_there(hub: FakeHub, variant: Variant, out: Path) -> None:
    fetch(variant, out=out, shards=3, endpoint=hub.endpoint)
    fetch(variant, out=out, shards=1, endpoint=hub.endpoint)
    assert len(Dataset.open(out).train) == 3


def test_a_transfer_that_breaks_is_taken_up_behind_its_last_whole_block(
    hub: FakeHub, variant: Variant, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shard("train_000001")
    hub.cut.add(path)
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    fetch(variant, out=out, endpoint=hub.endpoint)
    got = len(hub.files[path]) // 2 // 1024 * 1024
    assert [wanted for sent, wanted in hub.sent if sent == path] == [None, f"bytes={got}-"]
    Dataset.open(out)


def fetch_until(name: str, variant: Variant, out: Path, hub: FakeHub) -> None:
    """Fetch, and be stopped before the file `name`."""

    def stop(current: str, _done: int, _total: int) -> None:
        if current == name:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(variant, out=out, endpoint=hub.endpoint, progress=stop)


def test_a_fetch_that_was_stopped_goes_on_with_what_it_has(hub: FakeHub, variant: Variant, out: Path) -> None:
    fetch_until("fineweb_train_000002.bin", variant, out, hub)
    del hub.sent[:]
    fetch(variant, out=out, endpoint=hub.endpoint)
    assert hub.transferred == ["fineweb_train_000002.bin", "fineweb_train_000003.bin"]
    Dataset.open(out)


def test_a_folder_that_is_unfinished_does_not_open(hub: FakeHub, variant: Variant, out: Path) -> None:
    fetch_until("fineweb_train_000002.bin", variant, out, hub)
    with pytest.raises(BadFileError, match="it holds no shards"):
        Dataset.open(out)


def test_a_data_set_stays_usable_while_it_grows(hub: FakeHub, variant: Variant, out: Path) -> None:
    fetch(variant, out=out, shards=1, endpoint=hub.endpoint)
    fetch_until("fineweb_train_000002.bin", variant, out, hub)
    assert len(Dataset.open(out).train) == 1


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "byte":
        data[-1] ^= 1
    path.write_bytes(data[:-2] if how == "short" else data)


@pytest.mark.parametrize("name", ["fineweb_train_000001.bin", "fineweb_val_bytes_000000.bin", "tokenizer.model"])
@pytest.mark.parametrize("how", ["byte", "short"])
def test_a_damaged_file_is_fetched_again(hub: FakeHub, variant: Variant, out: Path, name: str, how: str) -> None:
    before = fetch(variant, out=out, endpoint=hub.endpoint)
    damage(out / name, how)
    del hub.sent[:]
    assert fetch(variant, out=out, endpoint=hub.endpoint) == before
    assert [sent.replace("caseops.model", "tokenizer.model") for sent in hub.transferred] == ["manifest.json", name]


def test_a_file_without_a_digest_is_known_by_its_size(hub: FakeHub, variant: Variant, out: Path) -> None:
    hub.in_git.add("datasets/tokenizers/caseops.model")
    before = fetch(variant, out=out, endpoint=hub.endpoint)
    damage(out / "tokenizer.model", "short")
    assert fetch(variant, out=out, endpoint=hub.endpoint) == before


def test_a_staged_file_that_is_damaged_is_fetched_again(hub: FakeHub, variant: Variant, out: Path) -> None:
    fetch_until("fineweb_train_000002.bin", variant, out, hub)
    damage(out / ".fetch" / shard("val_000000"), "byte")
    fetch(variant, out=out, endpoint=hub.endpoint)
    assert hub.transferred.count("fineweb_val_000000.bin") == 2


def test_what_arrives_damaged_is_refused_and_not_kept(hub: FakeHub, variant: Variant, out: Path) -> None:
    path = shard("train_000000")
    hub.served[path] = hub.files[path][:-1] + b"\xff"
    with pytest.raises(BadFileError, match=r"train_000000\.bin: it arrived without the size, header or digest"):
        fetch(variant, out=out, endpoint=hub.endpoint)
    assert not (out / ".fetch" / path).exists()


def test_a_published_file_that_is_no_shard_is_refused(hub: FakeHub, variant: Variant, out: Path) -> None:
    hub.files[shard("train_000000")] = shard_header(5) + bytes(8)
    with pytest.raises(BadFileError, match="it arrived without the size, header or digest"):
        fetch(variant, out=out, endpoint=hub.endpoint)


def test_a_data_set_without_sidecar_is_counted_by_its_tokenizers_table(
    hub: FakeHub, variant: Variant, out: Path
) -> None:
    totals = KnownTotals(documents=6, scored_tokens=variant.totals.scored_tokens)
    manifest = fetch(replace(variant, dataset=PLAIN, is_caseops=False, totals=totals), out=out, endpoint=hub.endpoint)
    assert manifest["transform"] == "none"
    assert manifest["val"]["scored_bytes"] > 0
    assert Dataset.open(out).val_sidecars == ()


def test_a_sidecar_is_taken_wherever_there_is_one(hub: FakeHub, variant: Variant, out: Path) -> None:
    fetch(replace(variant, is_caseops=False), out=out, endpoint=hub.endpoint)
    assert Dataset.open(out).val_bytes() is not None


def test_a_data_set_that_is_not_there_is_refused_with_those_that_are(hub: FakeHub, variant: Variant, out: Path) -> None:
    with pytest.raises(UsageError, match="does not hold tiny_other, but tiny_caseops, tiny_plain; choose"):
        fetch(replace(variant, dataset="tiny_other"), out=out, endpoint=hub.endpoint)


@pytest.mark.parametrize(
    "listed", [b"[]", b'{"datasets": [], "tokenizers": 3}', b'{"datasets": [7], "tokenizers": []}']
)
def test_a_published_manifest_of_another_form_is_refused(
    hub: FakeHub, variant: Variant, out: Path, listed: bytes
) -> None:
    hub.files["datasets/manifest.json"] = listed
    with pytest.raises(BadFileError, match="it does not list data sets and tokenizers"):
        fetch(variant, out=out, endpoint=hub.endpoint)


def test_a_tokenizer_of_another_kind_is_refused(hub: FakeHub, variant: Variant, out: Path) -> None:
    data = hub.files["datasets/manifest.json"].replace(b"tokenizers/caseops.model", b"tokenizers/caseops.json")
    hub.files["datasets/manifest.json"] = data
    with pytest.raises(BadFileError, match=r"names no SentencePiece model for caseops \(tokenizers/caseops\.json\)"):
        fetch(variant, out=out, endpoint=hub.endpoint)


@pytest.mark.parametrize("gone", ["datasets/tokenizers/caseops.model", shard("train_000001"), shard("val_000000")])
def test_a_repository_with_a_hole_is_refused(hub: FakeHub, variant: Variant, out: Path, gone: str) -> None:
    del hub.files[gone]
    with pytest.raises(BadFileError):
        fetch(variant, out=out, endpoint=hub.endpoint)


def test_case_operators_need_the_sidecar(hub: FakeHub, variant: Variant, out: Path) -> None:
    for name in [name for name in hub.files if "bytes" in name]:
        del hub.files[name]
    with pytest.raises(BadFileError, match=r"its val_bytes shards are \[\]"):
        fetch(variant, out=out, endpoint=hub.endpoint)


def test_more_shards_than_there_are_is_refused(hub: FakeHub, variant: Variant, out: Path) -> None:
    with pytest.raises(UsageError, match="5 training shards asked for, but tiny_caseops has 4"):
        fetch(variant, out=out, shards=5, endpoint=hub.endpoint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"documents": 5}, "6 documents, but 5 are known"),
        ({"scored_tokens": 1}, "scored tokens, but 1 are known"),
        ({"scored_bytes": 1}, "scored bytes, but 1 are known"),
    ],
)
def test_a_validation_set_that_does_not_add_up_is_refused_with_both_numbers(
    hub: FakeHub, variant: Variant, out: Path, change: dict[str, int], message: str
) -> None:
    with pytest.raises(BadFileError, match=message):
        fetch(replace(variant, totals=replace(variant.totals, **change)), out=out, shards=1, endpoint=hub.endpoint)
    assert names(out) == [".fetch"]


def test_a_token_outside_of_the_vocabulary_is_refused(hub: FakeHub, variant: Variant, out: Path) -> None:
    path = shard("train_000000")
    hub.files[path] = hub.files[path][:-2] + np.array([9999], "<u2").tobytes()
    with pytest.raises(BadFileError, match="it holds token id 9999"):
        fetch(variant, out=out, endpoint=hub.endpoint)


def test_a_sidecar_of_another_length_is_refused(hub: FakeHub, variant: Variant, out: Path) -> None:
    hub.files[shard("val_bytes_000000")] = shard_header(3) + bytes(6)
    with pytest.raises(BadFileError, match="the byte sidecar has"):
        fetch(variant, out=out, endpoint=hub.endpoint)


@pytest.mark.parametrize("name", ["golf_train_000000.bin", "fineweb_train_000004.bin", "manifest.json"])
def test_a_folder_with_other_data_is_refused(hub: FakeHub, variant: Variant, out: Path, name: str) -> None:
    out.mkdir(parents=True)
    (out / name).write_text("{}")
    with pytest.raises(UsageError, match=f"holds .*{name}.* does not belong to tiny_caseops"):
        fetch(variant, out=out, endpoint=hub.endpoint)
    assert (out / name).read_text() == "{}"


def test_the_folder_of_another_variant_is_refused(hub: FakeHub, variant: Variant, out: Path) -> None:
    plain = replace(variant, dataset=PLAIN, is_caseops=False, totals=KnownTotals())
    fetch(plain, out=out, endpoint=hub.endpoint)
    with pytest.raises(UsageError, match=r"the manifest\.json of tiny_plain, which does not belong to tiny_caseops"):
        fetch(variant, out=out, endpoint=hub.endpoint)


def test_a_disk_that_is_too_full_is_told_before_anything_is_fetched(
    hub: FakeHub, variant: Variant, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3000))
    with pytest.raises(ResourceError, match="bytes are to be fetched, but 3,000 are free"):
        fetch(variant, out=out, endpoint=hub.endpoint)


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_without_a_connection_it_says_what_to_do(variant: Variant, out: Path) -> None:
    with pytest.raises(
        EnvironmentUnfitError, match=r"cannot be reached.*; connect this machine, .* by hand into"
    ) as told:
        fetch(variant, out=out, endpoint=closed_port())
    assert "golf data prepare" in str(told.value)
    assert "\n" not in str(told.value)


def test_the_hubs_client_is_imported_only_when_it_is_used() -> None:
    code = "import sys, golf.data.fetch, golf.tools.data; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_command_fetches_to_where_recipes_look(
    hub: FakeHub, variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(VARIANTS, "sp1024", variant)
    monkeypatch.chdir(tmp_path)
    result = golf(capsys, "data", "fetch", "sp1024", "--shards", "2", "--endpoint", hub.endpoint)
    assert len(Dataset.open(tmp_path / "data" / CASEOPS).train) == 2
    assert f"scored  {variant.totals.scored_tokens:,} tokens" in result.out
    assert "now fineweb_train_000001.bin" in result.err


def test_the_command_prints_the_manifest_as_json(
    hub: FakeHub, variant: Variant, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(VARIANTS, "sp1024", variant)
    words = ("data", "fetch", "sp1024", "--out", out, "--endpoint", hub.endpoint, "--json")
    assert golf(capsys, *words).json == json.loads((out / "manifest.json").read_text())


def test_a_variant_that_nobody_published_is_refused_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    result = golf(capsys, "data", "fetch", "sp512")
    assert result.code == 2
    assert "'sp512'; there are: sp1024, sp4096, sp8192, sp8192-caseops" in result.err


def test_the_command_offline_ends_with_code_4(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = golf(capsys, "data", "fetch", "sp8192", "--out", out, "--endpoint", closed_port())
    assert result.code == 4
    assert not out.exists()
