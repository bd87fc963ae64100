"""Figures for other programs: ``--json`` prints one JSON object, ``--csv`` a line for each record."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from sim_eval.core.decoding import encode

Record = Mapping[str, Any]


class Format(Protocol):
    """The options of a program that prints figures."""

    @property
    def json(self) -> bool: ...
    @property
    def csv(self) -> bool: ...


def print_records(asked: Format, values: Callable[[], Record], records: Callable[[], Iterable[Record]]) -> bool:
    """Prints what the program found as JSON or CSV, if that was asked for.

    Args:
        values: all of it, for JSON.
        records: the figures in rows, for CSV.

    Returns:
        False if text is wanted.
    """
    if asked.json:
        print(json.dumps(encode(values())))
    elif asked.csv:
        rows = [dict(columns(encode(record))) for record in records()]
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return asked.json or asked.csv


def columns(record: Record, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Name and value of a record's columns: ``interval`` becomes ``interval.low`` and ``interval.high``."""
    for name, value in record.items():
        if isinstance(value, list) and name.startswith("interval"):
            value = dict(zip(("low", "high"), value, strict=True))
        if isinstance(value, Mapping):
            yield from columns(value, f"{prefix}{name}.")
        else:
            yield prefix + name, "; ".join(map(str, value)) if isinstance(value, list) else value
