"""The account itself: what it reports of a small recorded set."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.parity import coverage
from tests.parity.coverage import stale_excuses, unlisted_files, unread_keys
from tests.parity.fixture_set import FixtureSet


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FixtureSet:
    """A set of one covered fixture, one to come and one plain file."""
    (tmp_path / "a.json").write_text(
        '{"notes": ["of words"], "size": 3, "tolerances": {"codes": "exact", "loss": 0.5},'
        ' "rows": [{"x": 1}, {"x": 2}], "later": {"x": 1}}'
    )
    save_file({"w::p": torch.zeros(2), "w::q": torch.zeros(2)}, tmp_path / "a.safetensors")
    (tmp_path / "b.json").write_text('{"size": 4}')
    (tmp_path / "shard_7.bin").write_bytes(b"1")
    monkeypatch.setattr(coverage, "COVERED", ("a",))
    monkeypatch.setattr(coverage, "COVERED_FILES", ("shard_*.bin",))
    monkeypatch.setattr(coverage, "NOT_YET_COVERED", {"b": "no reason"})
    monkeypatch.setattr(coverage, "UNREAD", {"a.json: later": "no reason"})
    return FixtureSet(tmp_path)


def test_every_number_tensor_and_file_that_was_not_read_is_named(recorded: FixtureSet) -> None:
    assert unread_keys(recorded) == [
        "a.json: size",
        "a.json: tolerances/loss",
        "a.json: rows/[]/x",
        "a.safetensors: w::p",
        "a.safetensors: w::q",
        "shard_7.bin",
    ]


def test_what_was_read_is_not_named(recorded: FixtureSet) -> None:
    description, tensors = recorded.fixture("a")
    assert [description["size"], description["tolerances"]["loss"], len(tensors["w::p"])] == [3, 0.5, 2]
    assert description["rows"][0]["x"] == 1
    recorded.path("shard_7.bin")
    assert unread_keys(recorded) == ["a.json: rows/[1]", "a.safetensors: w::q"]


def test_an_excuse_for_what_is_read_is_stale(recorded: FixtureSet) -> None:
    assert stale_excuses(recorded) == []
    assert recorded.fixture("a")[0]["later"]["x"] == 1
    assert recorded.fixture("b")[0]["size"] == 4
    assert stale_excuses(recorded) == ["a.json: later", "b"]


def test_a_file_that_no_list_names_is_reported(recorded: FixtureSet) -> None:
    assert unlisted_files(recorded) == []
    (recorded.folder / "c.json").write_text("{}")
    (recorded.folder / "other_7.bin").write_bytes(b"1")
    assert unlisted_files(recorded) == ["c.json", "other_7.bin"]
