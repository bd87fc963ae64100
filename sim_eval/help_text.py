"""What ``--help`` prints: options in sections, with clean types, and only defaults that say something.

A dataclass may sort its fields by ``SECTIONS``, title -> names of fields; others stand under "options". The fields of
nested dataclasses, such as ``--network.text.layers``, are shown by ``--help-all``.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

HELP, HELP_ALL = ("-h", "--help"), "--help-all"
CONFIG_HELP = "YAML or JSON file that sets the defaults; a file in which a program saved its options will do"
COLUMN = 26  # where explanations begin
OTHERS = "options"
KINDS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


@dataclasses.dataclass(frozen=True)
class Option:
    """An option as help shows it.

    Attributes:
        words: how it is typed, such as ``--episodes N``.
        about: what it means, and its default.
        section: the title above it.
        needed: it has no default.
        nested: it is a field of a nested dataclass.
    """

    words: str
    about: str
    section: str = "help"
    needed: bool = False
    nested: bool = False


def help_text(config: type, program: str, default: object, everything: bool, width: int = 100) -> str:
    """The whole text.

    Args:
        config: the dataclass of the program's options.
        program: how the user calls it.
        default: an instance; required fields are tyro.MISSING.
        everything: the fields of nested dataclasses too.
    """
    options = list(options_of(config, default))
    nested = next((option.words.partition(".")[0] for option in options if option.nested), None)
    options = [option for option in options if everything or not option.nested]
    options += [Option("--config FILE", CONFIG_HELP), Option("-h, --help", "show this text")]
    if nested and not everything:
        options.append(Option(HELP_ALL, f"show the options {nested}.FIELD as well"))
    usage = [program, *(option.words for option in options if option.needed), "[OPTIONS]"]
    usage += [option.words for option in options if not option.words.startswith("-") and not option.needed]
    lines = [f"usage: {' '.join(usage)}", "", *textwrap.wrap((config.__doc__ or "").partition("\n\n")[0], width)]
    used = [option.section for option in options]
    for title in dict.fromkeys([*filter(used.__contains__, getattr(config, "SECTIONS", ())), *used]):
        lines += ["", title]
        lines += [line for option in options if option.section == title for line in entry(option, width)]
    return "\n".join(lines)


def entry(option: Option, width: int) -> Iterator[str]:
    """The lines of an option."""
    about = textwrap.wrap(option.about, width - COLUMN, break_on_hyphens=False) or [""]
    first = f"  {option.words}"
    if len(first) > COLUMN - 2:
        yield first
        first = ""
    for line in about:
        yield f"{first:{COLUMN}}{line}".rstrip()
        first = ""


def options_of(config: type, default: object, prefix: str = "", flags: bool = True) -> Iterator[Option]:
    """The options of a dataclass and of those in it.

    Args:
        prefix: of their names.
        flags: a bool is a flag, and not an option with a value.
    """
    import tyro
    from docstring_parser import parse

    about = {each.arg_name: " ".join((each.description or "").split()) for each in parse(config.__doc__ or "").params}
    sections = {name: title for title, names in getattr(config, "SECTIONS", {}).items() for name in names}
    hints = get_type_hints(config, include_extras=True)
    for field in dataclasses.fields(config):
        kind, marks = bare(hints[field.name])
        value = getattr(default, field.name)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            off = tyro.conf.FlagConversionOff in marks
            yield from options_of(kind, value, f"{prefix}{field.name}.", flags and not off)
            continue
        told = {name: text for mark in marks for name in ("metavar", "help") if (text := getattr(mark, name, None))}
        metavar = told.get("metavar") or metavar_of(kind)
        name = f"--{prefix}{field.name}".replace("_", "-")
        if tyro.conf.Positional in marks:
            words = metavar
        elif kind is not bool or not flags:
            words = f"{name} {metavar}"
        else:
            words = name if tyro.conf.FlagCreatePairsOff in marks else f"{name}, --no-{name[2:]}"
        needed = value is tyro.MISSING
        note = " (required)" if needed else default_text(value, kind is bool and flags, name)
        text = told.get("help") or about.get(field.name, "")
        title = f"options {prefix}FIELD" if prefix else sections.get(field.name, OTHERS)
        yield Option(words, text.removesuffix(".") + note, title, needed, bool(prefix))


def default_text(value: object, flag: bool, name: str) -> str:
    """The default in parentheses; nothing where it is that nothing was asked for."""
    if value is None or value == "" or value == () or (flag and not value):
        return ""
    if isinstance(value, tuple):
        value = " ".join(map(str, value))
    return f" (default: {name if flag else f'{value:g}' if isinstance(value, float) else value})"


def bare(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without its annotations and without None, and the annotations."""
    marks: tuple[Any, ...] = ()
    while True:
        if get_origin(hint) is Annotated:
            hint, *found = get_args(hint)
            marks += tuple(found)
        elif (
            get_origin(hint) in (Union, UnionType)
            and len(some := [each for each in get_args(hint) if each is not type(None)]) == 1
        ):
            (hint,) = some
        else:
            return hint, marks


def metavar_of(kind: Any) -> str:
    """What stands for a value."""
    if get_origin(kind) is Literal:
        return f"{{{','.join(map(str, get_args(kind)))}}}"
    if get_origin(kind) is tuple:
        one = metavar_of(bare(get_args(kind)[0])[0])
        return f"{one} [{one} ...]"
    if get_origin(kind) in (Union, UnionType):
        return "|".join(metavar_of(bare(each)[0]).strip("{}").replace(",", "|") for each in get_args(kind))
    return "{True,False}" if kind is bool else KINDS.get(kind, "VALUE")
