"""The compact subset: its size, its packing, and how a thinned-out fixture says so."""

import shutil
from pathlib import Path

import pytest

from tests.parity.coverage import COVERED
from tests.parity.subset import DATA, MAX_BYTES, from_planes, to_planes, unpack_subset, without


def test_the_files_in_the_project_are_small() -> None:
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) <= MAX_BYTES


def test_every_covered_fixture_is_in_it() -> None:
    assert {path.name.removesuffix(".json.br") for path in (DATA / "fixtures").glob("*.json.br")} == set(COVERED)


@pytest.mark.parametrize("length", [0, 1, 4, 7, 423])
def test_planes_take_the_bytes_of_words_apart_and_put_them_together(length: int) -> None:
    data = bytes(i % 251 for i in range(length))
    planes = to_planes(data, 4)
    assert planes[: length // 4] == data[: length // 4 * 4 : 4]
    assert from_planes(planes, 4) == data


def test_a_changed_file_is_not_taken_for_the_recorded_one(tmp_path: Path) -> None:
    shutil.copytree(DATA, tmp_path / "data")
    packed = tmp_path / "data" / "fixtures"
    shutil.copy(packed / "eval.json.br", packed / "schedule.json.br")
    with pytest.raises(AssertionError, match=r"schedule\.json\.br"):
        unpack_subset(tmp_path / "data", tmp_path / "unpacked")


def test_a_thinned_out_fixture_names_what_it_lacks_and_lists_what_it_has() -> None:
    description = {
        "names": ["q", "k", "fc"],
        "aliases": {"k": "q"},
        "tensors": {"H::q": {}, "H::fc": {}},
        "stats": {"a": {}, "b": {}},
        "seed": 3,
    }
    assert without(description, []) == description
    assert without(description, ["H::q", "out::a.q"]) == {
        "names": ["fc"],
        "aliases": {},
        "tensors": {"H::fc": {}},
        "stats": {"b": {}},
        "seed": 3,
        "left_out": ["H::q", "out::a.q"],
    }
