import errno
import json
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from golf.data import prepare as module
from golf.data.audit import stream_documents
from golf.data.caseops import encode
from golf.data.prepare import prepare
from golf.data.shards import Dataset, read_shard
from golf.data.tokenizer import load_tokenizer
from golf.data.writer import ShardWriter
from golf.errors import BadFileError, EnvironmentUnfitError, ResourceError, UsageError
from tests.children import drain, running
from tests.data.conftest import random_text, train_tokenizer

TEXTS = [random_text(seed, 5 + seed) for seed in range(40)]
WriteJsonl = Callable[..., Path]


@pytest.fixture
def finished(tmp_path: Path, write_jsonl: WriteJsonl, caseops_tokenizer: Path) -> Path:
    prepare([write_jsonl(TEXTS)], tokenizer=caseops_tokenizer, out=tmp_path / "out", val_docs=7, shard_tokens=600)
    return tmp_path / "out"


def test_shards_hold_the_documents_in_order(finished: Path, caseops_tokenizer: Path) -> None:
    dataset = Dataset.open(finished)
    expected = [load_tokenizer(caseops_tokenizer).encode(encode(text)).tolist() for text in TEXTS]
    assert [tokens.tolist() for tokens in stream_documents(dataset.val, 1)] == expected[:7]
    assert [tokens.tolist() for tokens in stream_documents(dataset.train, 1)] == expected[7:]


def test_no_document_crosses_a_shard(finished: Path) -> None:
    dataset = Dataset.open(finished)
    assert len(dataset.train) > 2
    assert [read_shard(path)[0] for path in (*dataset.train, *dataset.val)] == [1] * (
        len(dataset.train) + len(dataset.val)
    )


def test_the_sidecar_charges_each_document_its_utf8_length(finished: Path) -> None:
    dataset = Dataset.open(finished)
    val_bytes, tokens = dataset.val_bytes(), dataset.val_tokens()
    assert val_bytes is not None
    starts = np.flatnonzero(tokens == 1)
    assert np.add.reduceat(val_bytes, starts, dtype=np.int64).tolist() == [len(text.encode()) for text in TEXTS[:7]]
    assert not val_bytes[starts].any()


def test_the_manifest_counts_documents_bytes_tokens_and_skips(finished: Path) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    dataset = Dataset.open(finished)
    assert manifest["train"] == {
        "documents": 33,
        "utf8_bytes": sum(len(text.encode()) for text in TEXTS[7:]),
        "tokens": sum(read_shard(path).size for path in dataset.train),
        "max_token_id": max(int(read_shard(path).max()) for path in dataset.train),
        "skipped_documents": 0,
    }
    assert manifest["val"]["sidecar_bytes"] == manifest["val"]["utf8_bytes"] == sum(len(t.encode()) for t in TEXTS[:7])
    assert manifest["split"] == {"val_documents": 7, "val_fraction": None, "chosen_by": "val_docs"}
    assert manifest["audit"]["leaked_documents"] == 0


def test_a_finished_folder_opens_with_its_tokenizer(finished: Path, caseops_tokenizer: Path) -> None:
    dataset = Dataset.open(finished)
    assert dataset.tokenizer is not None
    assert dataset.tokenizer.read_bytes() == caseops_tokenizer.read_bytes()
    assert (dataset.bos_id, dataset.vocab_size) == (1, load_tokenizer(caseops_tokenizer).vocab_size)


def test_the_manifests_largest_id_guards_the_vocabulary(finished: Path) -> None:
    dataset = Dataset.open(finished)
    assert dataset.vocab_size is not None
    dataset.check_vocab(dataset.vocab_size)
    with pytest.raises(BadFileError, match=r"golf_train_000000\.bin: it holds token id"):
        dataset.check_vocab(100)


@pytest.mark.parametrize(
    ("transform", "tokenizer", "chosen"),
    [
        ("auto", "caseops_tokenizer", "caseops"),
        ("auto", "plain_tokenizer", "none"),
        ("none", "caseops_tokenizer", "none"),
    ],
)
def test_the_transform_follows_the_tokenizer(
    tmp_path: Path, write_jsonl: WriteJsonl, request: pytest.FixtureRequest, transform: Any, tokenizer: str, chosen: str
) -> None:
    path: Path = request.getfixturevalue(tokenizer)
    manifest = prepare([write_jsonl(TEXTS)], tokenizer=path, out=tmp_path / "out", transform=transform)
    assert manifest["transform"] == chosen
    assert manifest["val"]["sidecar_bytes"] == manifest["val"]["utf8_bytes"]


def test_caseops_needs_the_operators(tmp_path: Path, write_jsonl: WriteJsonl, plain_tokenizer: Path) -> None:
    with pytest.raises(BadFileError, match="lacks the case operators"):
        prepare([write_jsonl(TEXTS)], tokenizer=plain_tokenizer, out=tmp_path / "out", transform="caseops")


def test_the_default_split_is_a_twentieth_and_says_so(
    tmp_path: Path, write_jsonl: WriteJsonl, plain_tokenizer: Path
) -> None:
    manifest = prepare([write_jsonl(TEXTS)], tokenizer=plain_tokenizer, out=tmp_path / "out")
    assert manifest["split"] == {"val_documents": 2, "val_fraction": 0.05, "chosen_by": "default"}


def test_a_fraction_is_of_the_documents_with_text(
    tmp_path: Path, write_jsonl: WriteJsonl, plain_tokenizer: Path
) -> None:
    texts = ["", *TEXTS[:10], "", "", *TEXTS[10:20]]
    manifest = prepare([write_jsonl(texts)], tokenizer=plain_tokenizer, out=tmp_path / "out", val_fraction=0.25)
    assert (manifest["val"]["documents"], manifest["train"]["documents"]) == (5, 15)


def test_the_default_validation_set_is_never_over_the_challenges(
    tmp_path: Path, write_jsonl: WriteJsonl, plain_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_DEFAULT_VAL_DOCS", 1)
    manifest = prepare([write_jsonl(TEXTS)], tokenizer=plain_tokenizer, out=tmp_path / "out")
    assert manifest["val"]["documents"] == 1


def test_empty_and_blank_documents_are_counted_and_skipped(
    tmp_path: Path, write_jsonl: WriteJsonl, caseops_tokenizer: Path
) -> None:
    texts = ["", TEXTS[0], " \n", TEXTS[1], "", "\t", TEXTS[2]]
    manifest = prepare([write_jsonl(texts)], tokenizer=caseops_tokenizer, out=tmp_path / "out", val_docs=1)
    counted = [(manifest[split]["documents"], manifest[split]["skipped_documents"]) for split in ("val", "train")]
    assert counted == [(1, 1), (2, 3)]


def test_a_limit_reads_only_so_many(tmp_path: Path, write_jsonl: WriteJsonl, plain_tokenizer: Path) -> None:
    manifest = prepare([write_jsonl(TEXTS)], tokenizer=plain_tokenizer, out=tmp_path / "out", val_docs=2, limit=9)
    assert (manifest["val"]["documents"], manifest["train"]["documents"]) == (2, 7)


def test_a_leak_between_the_splits_is_in_the_manifest(
    tmp_path: Path, write_jsonl: WriteJsonl, plain_tokenizer: Path
) -> None:
    texts = [*TEXTS[:4], *TEXTS[2:10]]
    manifest = prepare([write_jsonl(texts)], tokenizer=plain_tokenizer, out=tmp_path / "out", val_docs=4)
    assert manifest["audit"]["first_leaked"] == [2, 3]


def test_the_same_text_gives_the_same_digests(tmp_path: Path, write_jsonl: WriteJsonl, plain_tokenizer: Path) -> None:
    source = write_jsonl(TEXTS)
    manifests = [prepare([source], tokenizer=plain_tokenizer, out=tmp_path / name, val_docs=3) for name in ("a", "b")]
    assert manifests[0] == manifests[1]
    assert Dataset.open(tmp_path / "a").digest() == Dataset.open(tmp_path / "b").digest()


def test_progress_ends_with_all_documents_and_bytes(
    tmp_path: Path, write_jsonl: WriteJsonl, plain_tokenizer: Path
) -> None:
    told: list[tuple[int, int]] = []
    prepare(
        [write_jsonl(TEXTS)],
        tokenizer=plain_tokenizer,
        out=tmp_path / "out",
        val_docs=3,
        progress=lambda documents, utf8_bytes: told.append((documents, utf8_bytes)),
    )
    assert told[-1] == (40, sum(len(text.encode()) for text in TEXTS))


def test_a_finished_folder_is_refused(finished: Path, write_jsonl: WriteJsonl, caseops_tokenizer: Path) -> None:
    before = (finished / "manifest.json").read_bytes()
    with pytest.raises(UsageError, match="already holds a data set"):
        prepare([write_jsonl(TEXTS)], tokenizer=caseops_tokenizer, out=finished)
    assert (finished / "manifest.json").read_bytes() == before


def test_force_replaces_all_of_a_finished_folder(
    finished: Path, write_jsonl: WriteJsonl, plain_tokenizer: Path
) -> None:
    prepare([write_jsonl(TEXTS[:9])], tokenizer=plain_tokenizer, out=finished, val_docs=2, force=True)
    dataset = Dataset.open(finished)
    assert len(dataset.train) == 1
    assert dataset.manifest is not None
    assert dataset.manifest["tokenizer"]["source"] == "plain.model"


def test_an_interrupted_call_leaves_nothing_and_is_simply_redone(
    tmp_path: Path, write_jsonl: WriteJsonl, plain_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write_jsonl(TEXTS), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(module, "audit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare([source], tokenizer=plain_tokenizer, out=out, val_docs=3)
    assert not out.exists()
    prepare([source], tokenizer=plain_tokenizer, out=out, val_docs=3)
    assert Dataset.open(out).manifest is not None


@pytest.mark.parametrize(("val_docs", "failure"), [(3, KeyboardInterrupt), (len(TEXTS), UsageError)])
def test_a_replacement_that_does_not_come_about_leaves_the_old_data_set(
    finished: Path,
    write_jsonl: WriteJsonl,
    plain_tokenizer: Path,
    monkeypatch: pytest.MonkeyPatch,
    val_docs: int,
    failure: type[BaseException],
) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    monkeypatch.setattr(module, "audit", interrupt)
    with pytest.raises(failure):
        prepare([write_jsonl(TEXTS)], tokenizer=plain_tokenizer, out=finished, val_docs=val_docs, force=True)
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before
    assert Dataset.open(finished).manifest is not None


def test_a_replacement_that_stops_between_old_and_new_is_unfinished(
    finished: Path, write_jsonl: WriteJsonl, plain_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def stop_at_the_manifest(path: Path, target: Path) -> Path:
        if path.name == "manifest.json" and path.parent.name == ".prepare":
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", stop_at_the_manifest)
    with pytest.raises(KeyboardInterrupt):
        prepare([write_jsonl(TEXTS)], tokenizer=plain_tokenizer, out=finished, val_docs=3, force=True)
    with pytest.raises(BadFileError, match="it is unfinished"):
        Dataset.open(finished)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def prepare_until_killed(source: Path, tokenizer: Path, out: Path, reports: Connection) -> None:
    def wait(*_: int) -> None:  # all documents are read, no shard is finished
        reports.send(sorted(path.name for path in (out / ".prepare").iterdir()))
        time.sleep(60)

    prepare([source], tokenizer=tokenizer, out=out, val_docs=3, progress=wait)


def test_a_killed_folder_holds_no_data_set_and_is_simply_redone(
    tmp_path: Path, write_jsonl: WriteJsonl, plain_tokenizer: Path
) -> None:
    source, out = write_jsonl(TEXTS), tmp_path / "out"
    with running(prepare_until_killed, source, plain_tokenizer, out) as reports:
        pass
    assert len(drain(reports)[0]) == len(list(out.glob(".prepare/.golf-tmp-*.bin"))) == 3
    with pytest.raises(BadFileError, match="it holds no shards"):
        Dataset.open(out)
    prepare([source], tokenizer=plain_tokenizer, out=out, val_docs=3)
    assert Dataset.open(out).manifest is not None
    assert list(out.glob(".*")) == []


@pytest.mark.parametrize("name", ["fineweb_train_000000.bin", "manifest.json"])
def test_a_folder_with_other_data_is_refused_even_with_force(
    tmp_path: Path, write_jsonl: WriteJsonl, plain_tokenizer: Path, name: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("{}")
    with pytest.raises(UsageError, match="did not make"):
        prepare([write_jsonl(TEXTS)], tokenizer=plain_tokenizer, out=out, force=True)
    assert (out / name).read_text() == "{}"


@pytest.mark.parametrize("texts", [[], [""], ["", " \n"]])
def test_an_empty_corpus_is_refused(
    tmp_path: Path, write_jsonl: WriteJsonl, caseops_tokenizer: Path, texts: list[str]
) -> None:
    with pytest.raises(BadFileError, match=r"texts\.jsonl: there is no text in it"):
        prepare([write_jsonl(texts)], tokenizer=caseops_tokenizer, out=tmp_path / "out")


@pytest.mark.parametrize("val_docs", [40, 41])
def test_a_split_that_leaves_nothing_to_train_on_is_refused(
    tmp_path: Path, write_jsonl: WriteJsonl, plain_tokenizer: Path, val_docs: int
) -> None:
    with pytest.raises(UsageError, match="all 40 documents went to validation"):
        prepare([write_jsonl(TEXTS)], tokenizer=plain_tokenizer, out=tmp_path / "out", val_docs=val_docs)


def test_a_failure_leaves_no_folder_that_was_not_there(
    tmp_path: Path, write_jsonl: WriteJsonl, plain_tokenizer: Path
) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match="all 1 documents went to validation"):
        prepare([write_jsonl(TEXTS[:1])], tokenizer=plain_tokenizer, out=tmp_path / "mine" / "new" / "out")
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_late_failure_takes_back_shards_and_tokenizer_and_nothing_else(
    tmp_path: Path, write_jsonl: WriteJsonl, plain_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ResourceError("no space left")

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.bin").write_bytes(b"")
    monkeypatch.setattr(module, "write_json", fail)
    with pytest.raises(ResourceError):
        prepare([write_jsonl(TEXTS)], tokenizer=plain_tokenizer, out=tmp_path / "out", val_docs=3)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.bin"]


def test_a_failure_keeps_the_tokenizer_that_lies_in_the_folder(
    tmp_path: Path, write_jsonl: WriteJsonl, plain_tokenizer: Path
) -> None:
    tokenizer = tmp_path / "out" / "tokenizer.model"
    tokenizer.parent.mkdir()
    tokenizer.write_bytes(plain_tokenizer.read_bytes())
    with pytest.raises(UsageError):
        prepare([write_jsonl(TEXTS)], tokenizer=tokenizer, out=tmp_path / "out", val_docs=40)
    assert tokenizer.read_bytes() == plain_tokenizer.read_bytes()


@pytest.mark.parametrize("name", ["texts.jsonl/out", "x" * 300])
def test_a_folder_that_cannot_be_made_is_one_sentence(
    tmp_path: Path, write_jsonl: WriteJsonl, plain_tokenizer: Path, name: str
) -> None:
    with pytest.raises(EnvironmentUnfitError, match=f"{name}: cannot be written .*; choose another folder"):
        prepare([write_jsonl(TEXTS)], tokenizer=plain_tokenizer, out=tmp_path / name)


@pytest.mark.parametrize(
    "options", [{"val_docs": 0}, {"val_fraction": 1.0}, {"val_docs": 1, "val_fraction": 0.1}, {"shard_tokens": 0}]
)
def test_impossible_options_are_refused_before_anything_is_written(
    tmp_path: Path, write_jsonl: WriteJsonl, plain_tokenizer: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(UsageError):
        prepare([write_jsonl(TEXTS)], tokenizer=plain_tokenizer, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_without_document_start_is_refused(tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    tokenizer = train_tokenizer(tmp_path / "t.model", bos_id=-1)
    with pytest.raises(BadFileError, match="no document start"):
        prepare([write_jsonl(TEXTS)], tokenizer=tokenizer, out=tmp_path / "out")


def test_a_token_of_too_many_bytes_is_refused_with_its_line(
    tmp_path: Path, write_jsonl: WriteJsonl, caseops_tokenizer: Path
) -> None:
    texts = [TEXTS[0], "a" + " " * 70_000 + "b", TEXTS[1]]
    with pytest.raises(BadFileError, match=r"line 2: one token stands for 70,00\d bytes"):
        prepare([write_jsonl(texts)], tokenizer=caseops_tokenizer, out=tmp_path / "out", val_docs=2)


def test_a_full_disk_is_told_and_leaves_nothing(
    tmp_path: Path, write_jsonl: WriteJsonl, plain_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ShardWriter, "_write", fail)
    with pytest.raises(ResourceError, match="no space left"):
        prepare([write_jsonl(TEXTS)], tokenizer=plain_tokenizer, out=tmp_path / "out", val_docs=3)
    assert not (tmp_path / "out").exists()
