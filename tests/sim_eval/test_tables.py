"""A table loses nothing on any screen, never splits a number, and stays plain text in a pipe and valid Markdown."""

from __future__ import annotations

import re

import pytest

from sim_eval.reporting.tables import Column, Table, terminal

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
    assert max(map(len, TABLE.text().splitlines())) == 120


def test_a_pipe_gets_one_plain_line_a_row_with_aligned_columns():
    lines = str(TABLE).splitlines()  # under pytest nobody watches
    assert len(lines) == 4
    assert all(line.isascii() and line == line.rstrip() for line in lines)
    starts = [lines[0].index(head) for head in TABLE.header]
    for row, line in zip(TABLE.rows, lines[2:], strict=True):
        assert all(line[start:].startswith(cell) for start, cell in zip(starts, row, strict=True))
    assert str(TABLE) == terminal(TABLE.header, TABLE.rows)


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
