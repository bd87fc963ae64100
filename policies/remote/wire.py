"""openpi's messages as bytes: msgpack with openpi's extension for NumPy, read strictly; nothing is unpickled.

An array is ``{b"__ndarray__": True, b"data", b"dtype", b"shape"}`` with its bytes in C order, a NumPy scalar
``{b"__npgeneric__": True, b"data", b"dtype"}`` (openpi-client's msgpack_numpy).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import msgpack
import numpy as np
from numpy.typing import NDArray

from sim_eval.core.errors import SimEvalError

Message: TypeAlias = dict[str, object]

MAX_MESSAGE = 64 * 2**20  # bytes, in both directions; two RGB-D pictures of 336x336 pixels are 1.6 MB
MAX_ENTRIES = 4096  # per table or list
MAX_CONTAINERS = 10_000  # tables and lists per message: an empty one takes 1 byte on the wire but 64 in memory
MAX_DIMENSIONS = 8
DTYPES = frozenset(
    ("|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8"),
)
ARRAY = {b"__ndarray__", b"data", b"dtype", b"shape"}
SCALAR = {b"__npgeneric__", b"data", b"dtype"}


def pack(message: Mapping[str, object]) -> bytes:
    """The message as bytes.

    Raises:
        SimEvalError: it holds a type that the protocol lacks, or is larger than :data:`MAX_MESSAGE`.
    """
    try:
        data: bytes = msgpack.packb(message, default=_encode)
    except (TypeError, ValueError, OverflowError) as error:
        raise SimEvalError(f"the message cannot be sent ({error})") from error
    if len(data) > MAX_MESSAGE:
        raise SimEvalError(f"the message has {len(data)} bytes, at most {MAX_MESSAGE} are sent: use smaller pictures")
    return data


def unpack(data: bytes) -> Message:
    """The message in the bytes; its arrays are writable copies.

    Raises:
        SimEvalError: the bytes are damaged, too many or not a table of named entries, or an array has a forbidden dtype
            or a wrong number of bytes.
    """
    if len(data) > MAX_MESSAGE:
        raise SimEvalError(f"the message has {len(data)} bytes, at most {MAX_MESSAGE} are read")
    decoder = _Decoder()
    try:
        message = msgpack.unpackb(
            data,
            object_hook=decoder.table,
            list_hook=decoder.row,
            ext_hook=_no_extension,
            max_array_len=MAX_ENTRIES,
            max_map_len=MAX_ENTRIES,
        )
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise SimEvalError(f"the message is no msgpack ({error or type(error).__name__})") from error
    if not isinstance(message, dict):
        raise SimEvalError(f"the message is a {type(message).__name__}, not a table")
    return message


def _encode(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray) or value.dtype.str not in DTYPES:
        raise TypeError(f"no place for {value.dtype if isinstance(value, np.ndarray) else type(value).__name__}")
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}


class _Decoder:
    """msgpack's hooks for one message; they count its containers."""

    def __init__(self) -> None:
        self._left = MAX_CONTAINERS

    def table(self, entries: dict[Any, Any]) -> object:
        self._spend()
        if b"__ndarray__" in entries:
            return _array(entries)
        if b"__npgeneric__" in entries:
            return _scalar(entries)
        if not all(isinstance(name, str) for name in entries):
            raise SimEvalError("the message has a table whose names are no text")
        return entries

    def row(self, items: list[Any]) -> list[Any]:
        self._spend()
        return items

    def _spend(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise SimEvalError(f"the message has more than {MAX_CONTAINERS} tables and lists")


def _array(entries: dict[Any, Any]) -> NDArray[Any]:
    if set(entries) != ARRAY:
        raise SimEvalError("the message has an array with other entries than data, dtype and shape")
    data, shape, dtype = entries[b"data"], entries[b"shape"], _dtype(entries[b"dtype"])
    if not (
        isinstance(shape, list)
        and len(shape) <= MAX_DIMENSIONS
        and all(type(length) is int and length >= 0 for length in shape)
    ):
        raise SimEvalError(f"the message has an array of the shape {str(shape)[:80]}")
    if not isinstance(data, bytes) or math.prod(shape) * dtype.itemsize != len(data):
        raise SimEvalError(f"the message has an array whose bytes are not those of {dtype.str} {shape}")
    return np.ndarray(shape, dtype, data).copy()


def _scalar(entries: dict[Any, Any]) -> object:
    if set(entries) != SCALAR or not isinstance(entries[b"data"], bool | int | float):
        raise SimEvalError("the message has a NumPy scalar that is no number")
    return _dtype(entries[b"dtype"]).type(entries[b"data"])


def _dtype(name: object) -> np.dtype[Any]:
    if not isinstance(name, str) or name not in DTYPES:
        raise SimEvalError(
            f"the message has numbers of dtype {str(name)[:80]}: one of {', '.join(sorted(DTYPES))} is read"
        )
    return np.dtype(name)


def _no_extension(code: int, data: bytes) -> object:
    raise SimEvalError(f"the message has a msgpack extension of type {code}: none is read")
