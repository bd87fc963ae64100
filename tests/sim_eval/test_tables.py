"""A table loses nothing on any screen, never splits a number, and stays plain text in a pipe and valid Markdown."""

from __future__ import annotations

import re

import pytest

from sim_eval.reporting.tables import Column, Table

TABLE = Table(
    ("policy", "success / planned", "at the end", "steps to success", "run"),
    (
        ("deep_llama@0e2e04ab, 1 Euler steps (privileged)", "197 / 200", "98.5 % [95.7, 99.7]", "39", "run_of_monday"),
        ("late_gemma", "5 / 200", "2.5 % [0.8, 5.7]", "-", "second"),
    ),
)
NUMBERS = ("197 / 200", "98.5 % [95.7, 99.7]", "5 / 200", "2.5 % [0.8, 5.7]")


@pytest.mark.parametrize("width", [40, 80, 100, 120, 200])
def test_numbers_stay_whole_and_no_letter_is_lost_on_any_screen(width: int):
    text = TABLE.text(width)
    assert all(number in text for number in NUMBERS)
    letters = sorted(re.sub(r"[\s-]", "", "".join((*TABLE.header, *(cell for row in TABLE.rows for cell in row)))))
    assert sorted(re.sub(r"[\s-]", "", text)) == letters


@pytest.mark.parametrize("width", [75, 80, 100, 119])
def test_headers_and_words_wrap_so_that_the_table_fits_the_screen(width: int):
    assert max(map(len, TABLE.text(width).splitlines())) <= width
    assert max(map(len, TABLE.text(200).splitlines())) == 120
    assert max(map(len, str(TABLE).splitlines())) <= 100  # under pytest nobody watches


def test_where_there_is_room_a_row_is_one_plain_line_with_aligned_columns():
    lines = TABLE.text(120).splitlines()
    assert len(lines) == 4
    assert all(line.isascii() and line == line.rstrip() for line in lines)
    starts = [lines[0].index(head) for head in TABLE.header]
    for row, line in zip(TABLE.rows, lines[2:], strict=True):
        assert all(line[start:].startswith(cell) for start, cell in zip(starts, row, strict=True))


def test_cells_are_text_and_no_markup():
    names = Table(("a", "b"), (("[bold]policy[/bold]", ":smile: [/]"), ("one|two", "line\nbreak")))
    assert "[bold]policy[/bold]" in str(names)
    assert ":smile: [/]" in str(names)
    lines = names.markdown().splitlines()
    assert lines[3] == "| one\\|two | line break |"


def test_columns_make_cells_of_rows_behind_their_labels():
    length = Column[str]("length", lambda word: str(len(word)))
    pairs = [(("x",), ("two", 2)), (("y",), ("three", 3))]
    table = Table.of(("label",), [length.of(lambda pair: pair[0]), Column("n", lambda pair: str(pair[1]))], pairs)
    assert table == Table(("label", "length", "n"), (("x", "3", "2"), ("y", "5", "3")))


def test_a_column_that_no_row_needs_is_left_out():
    columns = (Column[int]("n", str), Column[int]("half", lambda n: str(n // 2), lambda n: n % 2 == 0))
    assert Table.of((), columns, [((), 1), ((), 3)]).header == ("n",)
    assert Table.of((), columns, [((), 1), ((), 4)]).rows == (("1", "0"), ("4", "2"))
    assert Table.of((), columns, []).header == ("n", "half")
