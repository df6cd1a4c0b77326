"""Tables in terminals of any width."""

import pytest
from rich.table import Table

from accelnet.terminal import rendered

HEADS = ("run", "steps", "loss", "accuracy", "what was changed")
ROWS = [("first", "1,000", "0.1234", "0.9876", "nothing at all"), ("a longer name", "2", "1", "0.5", "the rate")]


def drawn(**settings):
    table = Table(*HEADS, box=None, pad_edge=False)
    for row in ROWS:
        table.add_row(*row)
    return rendered(table, **settings).splitlines()


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_a_table_fits_by_columns_it_leaves_out_and_no_row_is_folded(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = drawn(drop=("what was changed", "steps"))
    assert max(map(len, lines)) <= columns
    assert [line.split()[0] for line in lines[:3]] == ["run", "first", "a"]
    out = ["left out at 40 columns: what was changed"] if columns == 40 else []
    assert lines[3:] == out and "loss" in lines[0] and "0.1234" in lines[1]


def test_a_narrow_column_that_was_to_go_stays_where_a_wide_one_went(monkeypatch):
    monkeypatch.setenv("COLUMNS", "42")
    lines = drawn(drop=("steps", "what was changed"))
    assert lines[-1] == "left out at 42 columns: what was changed" and "1,000" in lines[1]


def test_a_first_column_that_is_too_wide_alone_is_cut_and_prose_is_folded(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    table = Table("name", "value", box=None, pad_edge=False)
    table.add_row("x" * 60, "word " * 20)
    assert rendered(table).splitlines() == ["name", "x" * 39 + "…", "left out at 40 columns: value"]
    assert "left out" not in rendered(table, folds=True) and rendered(table, folds=True).count("word") == 20


def test_in_a_file_the_width_is_the_callers(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert len(drawn(width=200)) == 3
    assert drawn(width=50)[-1] == "left out at 50 columns: what was changed"
