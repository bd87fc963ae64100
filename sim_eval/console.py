"""What all command lines share: parsing, one-line errors, exit codes."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from sim_eval.core.decoding import decode
from sim_eval.core.errors import SimEvalError

Arguments = TypeVar("Arguments")

BAD_INPUT, INTERRUPTED = 2, 130


def parse(arguments: type[Arguments], program: str, words: Sequence[str] | None = None) -> Arguments:
    """The command line as the dataclass ``arguments``; ``--help`` prints and exits.

    Args:
        words: the options; None: of this process.

    Raises:
        SimEvalError: the command line does not fit it.
    """
    import tyro

    # tyro draws a box of several lines around an error; what stands in it above the rule is the message.
    drawn = io.StringIO()
    try:
        with contextlib.redirect_stderr(drawn):
            return decode(arguments, tyro.cli(arguments, prog=program, args=words))
    except SystemExit as stop:
        if not stop.code:
            raise
        lines = [line.strip("│ ") for line in drawn.getvalue().splitlines() if not line.startswith(("╭", "╰"))]
        rule = next((number for number, line in enumerate(lines) if line.startswith("──")), len(lines))
        message = " ".join(line for line in lines[:rule] if line) or "the command line cannot be read"
        raise SimEvalError(f"{message.rstrip('.')}; see {program} --help") from None


def run(main: Callable[[Arguments], int], arguments: type[Arguments], program: str) -> NoReturn:
    """Parses, runs ``main``, exits with its code.

    A :class:`SimEvalError` is printed as one line (exit code 2), and so is Ctrl-C (exit code 130), with the message
    of the KeyboardInterrupt when it has one.
    """
    try:
        code = main(parse(arguments, program))
        sys.stdout.flush()
    except SimEvalError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        code = BAD_INPUT
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "interrupted", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:  # the reader, `head` for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def named_tasks(names: str) -> list[str]:
    """The tasks that an option names: tasks and suites, separated by commas.

    Raises:
        SimEvalError: there is no such task or suite.
    """
    from sim_eval.envs.tasks import expand

    return expand(name.strip() for name in names.split(",") if name.strip())


def at_least(name: str, value: float, least: float) -> None:
    """Refuses an option below its least value.

    Raises:
        SimEvalError: it is.
    """
    if not value >= least:
        raise SimEvalError(f"--{name} must be {least} or more, not {value}")


def make_folder(out: Path) -> None:
    """Makes the folder that ``--out`` names, with its parents.

    Raises:
        SimEvalError: it cannot be made or written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise SimEvalError(f"--out {out} cannot be written ({error.strerror}): choose another folder") from error
