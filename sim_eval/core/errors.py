"""Errors that a user can mend, and the guards that raise them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class SimEvalError(Exception):
    """Something a user can mend. The message names the file or field and the remedy; programs print it as one line."""


@contextmanager
def reading() -> Iterator[None]:
    """Around code that takes a table of fields, read from a file or a message, apart.

    Raises:
        SimEvalError: a field is missing, or is not what it should be.
    """
    try:
        yield
    except KeyError as error:
        raise SimEvalError(f"missing {error.args[0]}") from error
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise SimEvalError(f"a field is damaged ({error})") from error


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Around the imports of what the extra ``sim_eval[name]`` installs.

    Raises:
        SimEvalError: it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        raise SimEvalError(f"this needs {missing}, which is missing: pip install 'sim_eval[{name}]'") from error
