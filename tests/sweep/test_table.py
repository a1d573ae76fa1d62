"""Result tables: order, difference from the control, and what each file form holds."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from golf.errors import NumericalFaultError, UsageError
from golf.sweep.table import COLUMNS, format_table, make_table, table_records, write_table

CONTROL: dict[str, Any] = {
    "seconds": 21.04,
    "fits": True,
    "total_bytes": 15_978_718,
    "val_bpb": 1.10518,
    "name": "control",
}
OVER: dict[str, Any] = {
    "name": "k-0.5",
    "val_bpb": 1.10438,
    "total_bytes": 16_208_797,
    "headroom_bytes": -208_797,
    "fits": False,
}
FAILED: dict[str, Any] = {"name": "failed", "reason": "no levels"}


def test_columns_come_in_their_order_and_new_ones_after_them() -> None:
    names = list(make_table([CONTROL, OVER, FAILED], control="control"))
    known = [name for name in COLUMNS if name in names]
    assert names == [*known, "reason"]
    assert known == ["name", "val_bpb", "delta_bpb", "total_bytes", "headroom_bytes", "fits", "seconds"]


def test_the_difference_is_against_the_control() -> None:
    delta = make_table([OVER, CONTROL, FAILED], control="control")["delta_bpb"]
    assert delta.iloc[0] == pytest.approx(-0.0008, abs=1e-12)
    assert delta.iloc[1] == 0.0
    assert math.isnan(delta.iloc[2])


def test_without_a_control_there_is_no_difference() -> None:
    assert "delta_bpb" not in make_table([CONTROL, OVER])


def test_whole_numbers_stay_whole_where_some_are_absent() -> None:
    table = make_table([CONTROL, OVER, FAILED])
    assert table["headroom_bytes"].dtype == "Int64"
    assert table["total_bytes"].tolist()[:2] == [15_978_718, 16_208_797]


def test_values_of_numpy_are_plain_values() -> None:
    row = {"name": "a", "val_bpb": np.float32(1.5), "total_bytes": np.int64(7), "fits": np.bool_(True)}
    assert table_records(make_table([row])) == [{"name": "a", "val_bpb": 1.5, "total_bytes": 7, "fits": True}]


def test_records_are_the_rows_without_what_is_absent() -> None:
    assert table_records(make_table([CONTROL, OVER, FAILED])) == [CONTROL, OVER, FAILED]


def test_a_row_with_nan_is_refused_by_name() -> None:
    with pytest.raises(NumericalFaultError, match="row 'a': val_bpb is nan"):
        make_table([{"name": "a", "val_bpb": math.nan}])


def test_a_control_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(UsageError, match=r"no row is called 'base' to compare with; there are: control, k-0.5"):
        make_table([CONTROL, OVER], control="base")


def test_two_rows_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="two rows are called 'control'"):
        make_table([CONTROL, CONTROL])


def test_the_terminal_form_is_of_fixed_width() -> None:
    table = make_table([CONTROL, OVER, FAILED], control="control")[
        ["name", "val_bpb", "delta_bpb", "total_bytes", "fits"]
    ]
    assert format_table(table).splitlines() == [
        "name      val_bpb  delta_bpb  total_bytes  fits",
        "-------  --------  ---------  -----------  ----",
        "control  1.105180  +0.000000   15,978,718   yes",
        "k-0.5    1.104380  -0.000800   16,208,797    NO",
        "failed          -          -            -     -",
    ]


def test_control_characters_of_a_name_are_shown_and_not_obeyed() -> None:
    text = format_table(make_table([{"name": "a\x1b[31m\nb"}]))
    assert text.splitlines()[2] == "a\\x1b[31m\\nb"


def test_a_table_without_rows_is_its_heading() -> None:
    assert format_table(make_table([])) == "name\n----"


def test_csv_keeps_every_digit(tmp_path: Path) -> None:
    rows = [CONTROL | {"val_bpb": 1.1051789806396541}, OVER, FAILED]
    write_table(make_table(rows), tmp_path / "t.csv")
    read = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert [row["val_bpb"] for row in read] == ["1.1051789806396541", "1.10438", ""]
    assert [row["total_bytes"] for row in read] == ["15978718", "16208797", ""]


def test_json_is_the_records(tmp_path: Path) -> None:
    table = make_table([CONTROL, OVER, FAILED], control="control")
    write_table(table, tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_text()) == table_records(table)


def test_markdown_escapes_what_would_be_markup(tmp_path: Path) -> None:
    write_table(make_table([{"name": "<b>|", "val_bpb": 1.5}]), tmp_path / "t.md")
    assert (tmp_path / "t.md").read_text().splitlines()[2] == "| &lt;b&gt;\\| |  1.500000 |"


@pytest.mark.parametrize("suffix", [".csv", ".json", ".md"])
def test_a_table_without_rows_can_be_written(tmp_path: Path, suffix: str) -> None:
    write_table(make_table([]), tmp_path / f"t{suffix}")
    assert (tmp_path / f"t{suffix}").exists()


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ends in '\.xlsx'; use \.csv, \.json or \.md"):
        write_table(make_table([CONTROL]), tmp_path / "t.xlsx")
