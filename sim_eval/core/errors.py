"""Errors that a user can mend, and the guards that raise them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class SimEvalError(Exception):
    """Something a user can mend. The message names the file or field and the remedy; programs print it as one line."""


@contextmanager
def extra(name: str, install: str = "") -> Iterator[None]:
    """Around the imports of what the extra ``sim_eval[name]`` installs.

    Args:
        install: what pip is given instead of the extra.

    Raises:
        SimEvalError: it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        words = install or f"'sim_eval[{name}]'"
        raise SimEvalError(f"this needs {missing}, which is missing: pip install {words}") from error
