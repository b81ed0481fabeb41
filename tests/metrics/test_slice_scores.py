"""Slice scores that another program or a spreadsheet wrote."""

from __future__ import annotations

import pytest
from boltzformer.errors import InputError
from boltzformer.metrics.summary.slice_scores import read_slice_scores

HEAD = "dataset,case,area_percent,dice"


def test_a_spreadsheets_byte_order_mark_is_no_part_of_a_name(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_bytes(f"{HEAD}\r\nset,c,0.1,0.5\r\n".encode("utf-8-sig"))
    (row,) = read_slice_scores(path)
    assert (row["dataset"], row["area_percent"], row["dice"]) == ("set", 0.1, 0.5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("set,c,0.1", "line 3: the line ends before its column dice"),
        ("set,c,0.1,0.5,0.6", "line 3: the line has more cells than the header"),
        ("set,c,nan,0.5", "line 3: 'nan' is no area in %"),
        ("set,c,,0.5", "line 3: '' is no area in %"),
        ("set,c,0.1,nan", "line 3: 'nan' is no Dice"),
        ("set,c,0.1,50", "line 3: a Dice of 50; expected 0 to 1"),
    ],
)
def test_a_damaged_line_is_named(line, message, tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text(f"{HEAD}\nset,b,0.1,0.5\n{line}\n")
    with pytest.raises(InputError, match=message):
        read_slice_scores(path)


def test_a_column_that_is_named_has_to_be_there(tmp_path):
    """Without it every slice would be one patient's, and no interval be given, without a word."""
    path = tmp_path / "scores.csv"
    path.write_text(f"{HEAD}\nset,b,0.1,0.5\n")
    assert read_slice_scores(path)[0]["patient"] == "unknown"
    with pytest.raises(InputError, match="has no column 'subject'"):
        read_slice_scores(path, columns={"patient": "subject"})
