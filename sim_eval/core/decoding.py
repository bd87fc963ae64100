"""Tables out of files and messages as frozen dataclasses, and back.

pydantic does the work, strictly: nothing is converted but what JSON cannot say (lists become tuples, text becomes a
path), and an unknown field is an error. The annotations of a dataclass are therefore all that is to be said of a field:
``Annotated[int, Ge(1)]`` is checked here, for a file and for a command line alike.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any, TypeVar, cast, get_args, get_type_hints

from sim_eval.core.errors import SimEvalError

T = TypeVar("T")
_ADAPTERS: dict[object, Any] = {}  # making one takes pydantic milliseconds


def decode(kind: type[T], data: object, where: str = "", named: Callable[[str], str] = repr) -> T:
    """The data as a dataclass, or another type that pydantic knows.

    Args:
        data: what :func:`encode` made, or JSON gave.
        where: what the data is, for the error: a file, a message.
        named: how the error names a field, given its dotted name.

    Raises:
        SimEvalError: a field is missing, unknown, or not what it may be; names it, in one line.
    """
    from pydantic import ValidationError

    try:
        value: T = _adapter(cast(Any, kind)).validate_json(json.dumps(data, default=_plain), strict=True)
        return value
    except ValidationError as error:
        raise SimEvalError(f"{where}: " * bool(where) + _message(error, kind, named)) from error
    except SimEvalError as error:  # of a __post_init__
        raise SimEvalError(f"{where}: " * bool(where) + " ".join(str(error).split())) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise SimEvalError(f"{where}: " * bool(where) + f"not a table of fields ({error})") from error


def encode(value: object) -> Any:
    """The value as JSON's own types: dataclasses as tables, tuples as lists, paths as text."""
    return json.loads(json.dumps(value, default=_plain))


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if hasattr(value, "items"):  # a read-only mapping
        return dict(value.items())
    if hasattr(value, "__fspath__"):
        return str(value)
    raise TypeError(f"no place for {type(value).__name__} in JSON")


def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    if kind not in _ADAPTERS:
        _forbid_unknown(kind)
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def _forbid_unknown(kind: object) -> None:
    """Unknown fields are errors in this dataclass and in those that it holds."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if "__pydantic_config__" in vars(kind):
            return
        kind.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
        for hint in get_type_hints(kind).values():
            _forbid_unknown(hint)
    for part in get_args(kind):
        _forbid_unknown(part)


def _message(error: Any, kind: object, named: Callable[[str], str]) -> str:
    """pydantic's first finding in one short line, and how many more there are."""
    first, *others = error.errors(include_url=False)
    name = " ".join(".".join(str(part) for part in first["loc"]).split())[:80]  # a forged name may be anything
    if first["type"] == "unexpected_keyword_argument":
        fields = ", ".join(field.name for field in dataclasses.fields(_holder(kind, first["loc"])))
        message = f"unknown field {named(name)}: the fields are {fields}"
    elif first["type"] == "missing":
        message = f"missing field {named(name)}"
    else:
        name = name.partition(".literal[")[0]  # which part of a union pydantic means
        place = f"{named(name)}: " if name else ""
        message = f"{place}{first['msg'][0].lower()}{first['msg'][1:]}, not {repr(first['input'])[:80]}"
    return message + f" (and {len(others)} more)" * bool(others)


def _holder(kind: Any, path: tuple[Any, ...]) -> Any:
    """The dataclass in which the path's last field was looked for."""
    for part in path[:-1]:
        hint = get_type_hints(kind).get(part)
        found = [each for each in (hint, *get_args(hint)) if dataclasses.is_dataclass(each)]
        if not found:
            return kind
        kind = found[0]
    return kind
