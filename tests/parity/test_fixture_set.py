"""What counts as reading a recorded key, and what does not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity.fixture_set import Entries, Tensors, fixture_set, read_fixture, recorded_path, under


def entries(text: str) -> Entries:
    loaded: Entries = json.loads(text, object_hook=Entries)
    return loaded


def unread(values: Entries) -> list[str]:
    return ["/".join(leaf.path) for leaf in values.leaves() if not leaf.is_read]


def keywords(**given: Any) -> dict[str, Any]:
    return given


def test_looking_a_key_up_reads_it_and_going_over_the_keys_does_not() -> None:
    values = entries('{"a": 1, "b": 2, "c": 3}')
    assert "b" in values
    assert [*values, *values.keys(), len(values)] == ["a", "b", "c", "a", "b", "c", 3]
    assert [values["a"], values.get("c"), values.get("d", 4)] == [1, 3, 4]
    assert unread(values) == ["b"]


@pytest.mark.parametrize(
    "use",
    [
        lambda part: dict(part.items()),
        lambda part: list(part.values()),
        lambda part: keywords(**part),
        lambda part: {**part},
        lambda part: part == {"x": 1, "y": 2},
    ],
)
def test_what_takes_a_whole_object_reads_all_of_its_keys(use: Any) -> None:
    values = entries('{"a": {"x": 1, "y": 2}, "b": 3}')
    use(values["a"])
    assert unread(values) == ["b"]


def test_an_object_is_read_by_its_own_keys_and_not_by_its_name() -> None:
    values = entries('{"a": {"x": 1, "y": {"z": 2}}}')
    assert values["a"]["x"] == 1
    assert unread(values) == ["a/y/z"]


def test_rows_share_their_keys_but_a_row_of_which_nothing_was_read_is_named() -> None:
    values = entries('{"rows": [{"x": 1, "y": 2}, {"x": 3, "y": 4}, {"x": 5, "y": 6}]}')
    assert set(unread(values)) == {"rows/[]/x", "rows/[]/y"}
    assert [row["x"] for row in values["rows"][:2]] == [1, 3]
    assert {path for path in unread(values) if path.endswith("]")} == {"rows/[2]"}
    assert "rows/[]/y" in unread(values)


def test_tensors_are_read_one_by_one_and_as_copies() -> None:
    tensors = Tensors({"w::a": torch.zeros(3), "w::b": torch.zeros(2), "c": torch.zeros(1)})
    tensors["w::a"].add_(1)
    assert torch.equal(tensors["w::a"], torch.zeros(3))
    assert "c" in tensors
    assert list(tensors) == ["w::a", "w::b", "c"]
    assert tensors.read == {"w::a"}
    assert under(tensors, "w::").keys() == {"a", "b"}
    assert tensors.read == {"w::a", "w::b"}


def test_all_tensors_at_once_are_refused() -> None:
    tensors = Tensors({"a": torch.zeros(3)})
    for everything in (tensors.items, tensors.values):
        with pytest.raises(TypeError, match="read by key"):
            everything()


def test_a_folder_has_one_account_for_all_who_read_from_it(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"x": 1, "y": 2}')
    assert read_fixture(tmp_path, "a")[0]["x"] == 1
    assert recorded_path(tmp_path, "b.bin") == tmp_path / "b.bin"
    description, tensors = fixture_set(tmp_path).fixture("a")
    assert unread(description) == ["y"]
    assert tensors == {}
    assert fixture_set(tmp_path).paths_read == {"b.bin"}
