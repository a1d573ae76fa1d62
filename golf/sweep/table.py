"""Results as a table: one row an experiment, its difference from the control, one form for each kind of reader.

A row is a dict: name, val_bpb, bytes, seconds and whatever else was measured. What
was not measured is absent; a NaN is refused, because it would pass for that.
"""

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from golf.errors import NumericalFaultError, UsageError
from golf.files import write_text

COLUMNS = (  # first and in this order; further columns follow in the order in which rows bring them
    "name",
    "val_bpb",
    "delta_bpb",  # against the control
    "gap_bpb",  # against the same weights before quantization
    "model_bytes",
    "code_bytes",
    "total_bytes",
    "headroom_bytes",  # to the limit; negative when over it
    "fits",
    "seconds",
)


def make_table(rows: Sequence[Mapping[str, Any]], *, control: str | None = None) -> pd.DataFrame:
    """Make a table of rows, with delta_bpb = val_bpb - that of the row named `control`.

    Raises UsageError when names repeat or the control is not among them, NumericalFaultError for a NaN or an infinity.
    """
    plain = [{key: _plain(value) for key, value in row.items() if value is not None} for row in rows]
    names = [row["name"] for row in plain]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"two rows are called '{repeated[0]}'; give each its own name")
    for row in plain:
        for key, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise NumericalFaultError(f"row '{row['name']}': {key} is {value}, not a finite number")
    if control is not None:
        _compare(plain, names, control)
    found = list(dict.fromkeys(key for row in plain for key in row)) or ["name"]
    order = [key for key in COLUMNS if key in found] + [key for key in found if key not in COLUMNS]
    return pd.DataFrame({key: _column([row.get(key) for row in plain]) for key in order})


def table_records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Turn a table back into rows of plain Python values, without what is absent; what --json prints."""
    rows = table.astype(object).to_dict("records")
    return [{str(key): _plain(value) for key, value in row.items() if not pd.isna(value)} for row in rows]


def format_table(table: pd.DataFrame) -> str:
    """Lay a table out for the terminal: fixed width, numbers to the right, '-' for what is absent."""
    lines = [[str(key) for key in table], *_cells(table)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    signs = ["<" if side == "left" else ">" for side in _sides(table)]
    forms = [f"{{:{sign}{width}}}" for sign, width in zip(signs, widths, strict=True)]
    return "\n".join("  ".join(map(str.format, forms, line)).rstrip() for line in lines)


def check_form(path: Path) -> None:
    """Raise UsageError unless `write_table` knows what to write to `path`; worth asking before a long computation."""
    if path.suffix not in (".csv", ".json", ".md"):
        raise UsageError(f"{path}: no kind of table ends in '{path.suffix}'; use .csv, .json or .md")


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as .csv or .json (every digit) or as .md (rounded, as on the terminal), atomically."""
    check_form(path)
    if path.suffix == ".csv":
        write_text(path, table.to_csv(index=False, lineterminator="\n"))
    elif path.suffix == ".json":
        write_text(path, json.dumps(table_records(table), indent=2, allow_nan=False) + "\n")
    else:
        cells = [[html.escape(cell, quote=False).replace("|", "\\|") for cell in line] for line in _cells(table)]
        sides = _sides(table) if cells else None
        write_text(
            path, tabulate(cells, [str(key) for key in table], "pipe", disable_numparse=True, colalign=sides) + "\n"
        )


def _compare(rows: list[dict[str, Any]], names: list[str], control: str) -> None:
    if control not in names:
        raise UsageError(f"no row is called '{control}' to compare with; there are: {', '.join(names)}")
    base = rows[names.index(control)].get("val_bpb")
    for row in rows:
        if base is not None and "val_bpb" in row:
            row["delta_bpb"] = row["val_bpb"] - base


def _column(values: Sequence[Any]) -> "pd.Series[Any]":
    """Keep whole numbers whole and booleans boolean where some are absent."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pd.Series(values, dtype="boolean")
    if kinds == {int}:
        return pd.Series(values, dtype="Int64")
    if kinds <= {int, float}:
        return pd.Series(values, dtype="float64")
    return pd.Series(values, dtype=object)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _cells(table: pd.DataFrame) -> list[list[str]]:
    return [[_printable(_cell(str(key), row.get(str(key)))) for key in table] for row in table_records(table)]


def _sides(table: pd.DataFrame) -> list[str]:
    return ["left" if table[key].dtype == object else "right" for key in table]


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if key in ("delta_bpb", "gap_bpb"):
        return f"{value:+.6f}"
    if key.endswith("_bpb"):
        return f"{value:.6f}"
    if key.endswith("bytes"):
        return f"{value:,}"
    if key.endswith("seconds"):
        return f"{value:.1f}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _printable(text: str) -> str:
    """Show control characters instead of obeying them: names may come from files."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
