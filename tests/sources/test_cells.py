"""What a cell says: a number, nothing, or nonsense."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from ct_rate_tables import label_rows, load, metadata

from ctgpu.errors import TableError
from ctgpu.sources.cells import ANY, in_words, is_blank, is_usable, number_in


@pytest.mark.parametrize(
    "cell",
    [
        *("inf", "-inf", "Infinity", "7e30", "1e999", "2", "-1", "1.0001", "1_0", "0_1", "0x1"),
        *("１", '"1,0"', "true", "yes", "1 0", "--1", "nano", "½", "1e"),
    ],
)
def test_a_label_that_is_not_from_0_to_1_fails_its_sample_by_file_and_line(
    tmp_path: Path, cell: str
) -> None:
    tables = load(tmp_path, labels=label_rows("1", cell, "0"))
    found = re.escape(repr(cell.strip('"')))
    with pytest.raises(
        TableError,
        match=rf"valid_predicted_labels\.csv has Arterial wall calcification {found} in line 3 "
        r"for v1; wanted a number from 0 to 1, or nothing",
    ):
        tables.row("v1")
    assert tables.row("v0").labels[1] == 1
    assert tables.row("v2").labels[1] == 0


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        *(("0", 0), ("1", 1), ("1.0", 1), ("0.25", 0.25), (" 1 ", 1), ("\u00a01", 1), ("1.", 1)),
        *((".5", 0.5), ("1e-1", 0.1), ("1E0", 1), ("+1", 1), ("-0", 0), ("01", 1)),
    ],
)
def test_labels_are_decimal_numbers(tmp_path: Path, cell: str, value: float) -> None:
    assert load(tmp_path, labels=label_rows(cell)).row("v0").labels[1] == np.float32(value)


@pytest.mark.parametrize(
    "cell", ["", " ", "nan", "NaN", "NAN", "-nan", "+NaN", "nan.", "Not given."]
)
def test_an_empty_label_is_nan(tmp_path: Path, cell: str) -> None:
    row = load(tmp_path, labels=label_rows(cell)).row("v0")
    assert math.isnan(row.labels[1])
    assert row.labels[0] == 0


@pytest.mark.parametrize("number", ["1_0", "１", "inf", "-inf", "0x1", "1e999", "1 0"])
@pytest.mark.parametrize(
    ("column", "row"),
    [
        ("XYSpacing", '1,0,"[{}, 1]",1'),
        ("XYSpacing", '1,0,"[1, {}]",1'),
        ("ZSpacing", '1,0,"[1, 1]",{}'),
        ("RescaleSlope", '{},0,"[1, 1]",1'),
        ("RescaleIntercept", '1,{},"[1, 1]",1'),
    ],
)
def test_what_only_python_takes_for_a_number_fails_the_sample(
    tmp_path: Path, column: str, row: str, number: str
) -> None:
    other = 'u.npz,A,F,1,1,0,"[1, 1]",1,1,1,1'
    tables = load(tmp_path, metadata=metadata(f"{other}\nv.npz,A,F,1,{row.format(number)},1,1,1"))
    with pytest.raises(TableError, match=rf"metadata\.csv has {column} .* in line 3 for v; wanted"):
        tables.row("v", spacing_from_header=True)
    assert tables.row("u").spacing_mm == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    "text", ["", "  ", "nan", "NaN", "-nan", "Not given.", "not given", "NAN."]
)
def test_a_blank_cell_is_nan_within_any_bounds(text: str) -> None:
    assert math.isnan(number_in(text))
    assert math.isnan(number_in(text, (0, 1)))


@pytest.mark.parametrize("text", ["None", "n/a", "-", "nano", "Not given. More"])
def test_a_word_is_neither_blank_nor_a_number(text: str) -> None:
    assert not is_blank(text)
    assert not is_usable(text, ANY)
    with pytest.raises(ValueError, match=f"^{re.escape(repr(text))} is no number$"):
        number_in(text)


def test_bounds_belong_to_what_they_bound_and_are_named() -> None:
    assert (number_in("0", (0, 1)), number_in("1", (0, 1))) == (0, 1)
    assert is_usable("0.5", (0, 1))
    assert not is_usable("1.5", (0, 1))
    with pytest.raises(ValueError, match=r"^'1\.5' is no number from 0 to 1, or nothing$"):
        number_in("1.5", (0, 1))
    assert (in_words(ANY), in_words((-1, 2.5))) == ("", " from -1 to 2.5, or nothing")


def test_what_overflows_to_infinity_is_refused_without_bounds_too() -> None:
    assert number_in("1e308") == 1e308
    with pytest.raises(ValueError, match="is no number"):
        number_in("1e309")
