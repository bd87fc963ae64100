"""What an examination found, and how a person reads it."""

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
    """One thing that was examined.

    Attributes:
        name: what was examined, a few words.
        level: a fault makes a score meaningless or impossible; a warning may change it.
        measured: what was measured, one line.
        remedy: what mends it, one line; empty when all is well.
    """

    name: str
    level: Level
    measured: str
    remedy: str = ""


def graded(name: str, level: Level, measured: str, remedy: str) -> Finding:
    """A finding that carries its remedy only where one is needed."""
    return Finding(name, level, measured, "" if level == "ok" else remedy)


def level_above(value: float, warning: float, fault: float) -> Level:
    """How bad a value is that should be small; what is not a number is a fault."""
    return "ok" if value <= warning else "warning" if value <= fault else "fault"


def examine(name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What a check finds; that it breaks off is a finding too, for a doctor does not fall ill with the patient."""
    found: list[Finding] = []
    try:
        found.extend(check())
    except SimEvalError as error:
        found.append(Finding(name, "fault", " ".join(str(error).split()), "do what the message says"))
    except Exception as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())
        found.append(Finding(name, "fault", f"broke off ({told})", "mend what the message names and examine again"))
    return found


def shown(title: str, findings: Sequence[Finding], colour: bool) -> str:
    """A titled group of findings: level, name and measurement in columns, each remedy on the line below."""
    width = max((len(each.name) for each in findings), default=0)
    lines = [title]
    for each in findings:
        level = each.level.ljust(7)
        level = f"{COLOURS[each.level]}{level}{PLAIN}" if colour else level
        lines.append(f"  {level}  {each.name.ljust(width)}  {each.measured}")
        if each.remedy:
            lines.append(f"  {' ' * (9 + width)}  remedy: {each.remedy}")
    return "\n".join(lines)


def summary(findings: Sequence[Finding]) -> str:
    """The last line: how many of each level."""
    count = Counter(each.level for each in findings)
    faults, warnings = (f"{count[level]} {level}{'' if count[level] == 1 else 's'}" for level in ("fault", "warning"))
    return f"doctor: {faults}, {warnings}, {count['ok']} ok"
