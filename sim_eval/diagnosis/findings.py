"""Findings of an examination, and their text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from sim_eval.core.errors import SimEvalError

Level: TypeAlias = Literal["ok", "warning", "fault"]

COLOURS = {"ok": "\033[32m", "warning": "\033[33m", "fault": "\033[31m"}
PLAIN = "\033[0m"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: of the check, a few words.
        level: a fault makes a score meaningless or impossible; a warning may change it.
        measured: the measurement, one line.
        remedy: one line; empty when no remedy is needed.
    """

    name: str
    level: Level
    measured: str
    remedy: str = ""


def graded(name: str, level: Level, measured: str, remedy: str) -> Finding:
    """A finding with a remedy unless its level is ok."""
    return Finding(name, level, measured, "" if level == "ok" else remedy)


def level_above(value: float, warning: float, fault: float) -> Level:
    """The level of a value that should be small; NaN is a fault."""
    return "ok" if value <= warning else "warning" if value <= fault else "fault"


def examine(name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The findings of a check; an exception of it is a finding too."""
    findings: list[Finding] = []
    try:
        findings.extend(check())
    except SimEvalError as error:
        findings.append(Finding(name, "fault", " ".join(str(error).split()), "do what the message says"))
    except Exception as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())
        findings.append(
            Finding(name, "fault", f"broke off ({message})", "correct what the message names and try again")
        )
    return findings


def group_text(title: str, findings: Sequence[Finding], colour: bool) -> str:
    """A titled group of findings: columns of level, name and measurement, with remedies on lines of their own."""
    from sim_eval.reporting.tables import wrapped

    width = max((len(each.name) for each in findings), default=0)
    lines = [title]
    for each in findings:
        level = each.level.ljust(7)
        level = f"{COLOURS[each.level]}{level}{PLAIN}" if colour else level
        indent = 13 + width
        lines.append(f"  {level}  {each.name.ljust(width)}  {wrapped(each.measured, indent)}")
        if each.remedy:
            lines.append(f"{' ' * indent}{wrapped(f'remedy: {each.remedy}', indent)}")
    return "\n".join(lines)


def summary(findings: Sequence[Finding]) -> str:
    """The last line: the number of findings of each level."""
    count = Counter(each.level for each in findings)
    faults, warnings = (f"{count[level]} {level}{'' if count[level] == 1 else 's'}" for level in ("fault", "warning"))
    return f"doctor: {faults}, {warnings}, {count['ok']} ok"
