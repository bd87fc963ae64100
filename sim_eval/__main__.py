"""All programs by one name: ``sim-eval rollout --policy deep_llama``, or ``python -m sim_eval rollout ...``."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from importlib import import_module
from typing import get_type_hints

from sim_eval import __version__
from sim_eval.core.programs import PROGRAMS, command


def main() -> None:
    """Runs the program that the first word names, with the other words as its options."""
    word, *options = sys.argv[1:] or ["--help"]
    names = [program.name for program in PROGRAMS]
    if word in ("-h", "--help"):
        print(overview())
    elif word == "--version":
        print(f"sim_eval {__version__}")
    elif word in names:
        from sim_eval.console import run

        program = import_module(f"sim_eval.{word}").main
        sys.argv[1:] = options
        run(program, next(iter(get_type_hints(program).values())), command(word))
    else:
        near = get_close_matches(word, names, 1, 0)
        print(f"error: no program '{word}' (similar: {near[0]}); see {command('')} --help", file=sys.stderr)
        sys.exit(2)


def overview() -> str:
    """The programs by group, a line each."""
    lines = [
        f"usage: {command('')} PROGRAM [OPTIONS]",
        "",
        "Evaluate vision-language-action policies in RGB-D simulation.",
    ]
    for group in dict.fromkeys(program.group for program in PROGRAMS):
        lines += ["", group]
        lines += [f"  {each.name:<13}{each.summary}" for each in PROGRAMS if each.group == group]
    return "\n".join(
        [*lines, "", f"Options of a program: {command('rollout')} --help. Version: {command('')} --version."]
    )


if __name__ == "__main__":
    main()
