"""Files that are either whole or absent: atomic writes, JSON, and sealed HDF5.

In a sealed file, HDF5's user block, which other readers skip, holds a mark and a SHA-256 of the rest. So damage is
detected before HDF5 parses the file, which could take for ever.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim_eval.core.errors import SimEvalError

if TYPE_CHECKING:
    import h5py
    from typing_extensions import Buffer

PARTIAL, TEMPORARY_SUFFIX = ".partial-", ".tmp"
USER_BLOCK = 512  # bytes before HDF5's own, in a sealed file
REMEDY = "choose another --out or free some space"


@contextmanager
def atomic(path: Path, name: str = "", remedy: str = REMEDY) -> Iterator[Path]:
    """A file beside ``path`` to write to. It is flushed to the disk and renamed to ``path`` when the block ends well,
    and deleted otherwise. So ``path`` either holds all of it or is untouched, whenever the process dies.

    Args:
        name: of the file to write to; by default that of ``path`` after ``PARTIAL``.
        remedy: words of the error.

    Raises:
        SimEvalError: the disk refuses.
    """
    partial = path.with_name(name or PARTIAL + path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error, remedy) from error
    finally:
        with suppress(OSError):  # gone already, or could never be made
            partial.unlink()


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unwritable(path: Path, error: OSError, remedy: str = REMEDY) -> SimEvalError:
    return SimEvalError(f"cannot write {path} ({error.strerror or error}): {remedy}")


def write_text(path: Path, text: str) -> None:
    with atomic(path) as partial:
        partial.write_text(text)


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path, remedy: str = "") -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        remedy: what a user can do when it cannot be read; empty: the remedy for a file of a run.

    Raises:
        SimEvalError: there is no such file, or it holds something else.
    """
    try:
        value = json.loads(path.read_text())
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
    except OSError as error:
        remedy = remedy or f"is {path.parent} a run folder?"
        raise SimEvalError(f"{path} cannot be read ({error.strerror}): {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise SimEvalError(f"{path} is damaged ({error}): {remedy or 'run it again into a new folder'}") from error
    return value


def sealed(mark: bytes, fill: Callable[[h5py.File], h5py.Dataset | None]) -> bytes:
    """A whole file, built in memory: the disk then sees one plain write, whose failure is a plain OSError.

    Args:
        mark: the kind and version of the file.
        fill: writes its groups, datasets and attributes. It may return a table, int64 [..., 3], of parts that the
            checksum leaves out because each has its own: position in the file, number of bytes, CRC-32.
    """
    import h5py

    with h5py.File("sealed", "w", driver="core", backing_store=False, userblock_size=USER_BLOCK) as file:
        table = fill(file)
        file.flush()
        body = memoryview(file.id.get_file_image())
        parts, where = np.zeros((0, 3), dtype=np.int64), b""
        if table is not None and table.size:
            parts = table[()].reshape(-1, 3)
            where = f" table {table.id.get_offset()} {len(parts)}".encode()

    def read(begin: int, size: int) -> memoryview:
        return body[begin - USER_BLOCK : begin - USER_BLOCK + size]

    digest = _checksum(where, parts, USER_BLOCK + len(body), read)
    return (mark + digest + where).ljust(USER_BLOCK, b"\0") + body


def write_sealed(path: Path, content: bytes, check: Callable[[Path], object], remedy: str) -> None:
    """Writes a whole file by :func:`atomic`.

    Args:
        check: reads the file before it gets its name, and raises when the disk spoiled it.
        remedy: "free some space": words of the error.

    Raises:
        SimEvalError: the disk refuses.
    """
    with atomic(path, f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}", remedy) as temporary:
        temporary.write_bytes(content)
        check(temporary)


def verified(path: Path, mark: bytes, kind: str, remedy: str) -> NDArray[np.int64]:
    """Compares the checksum of a file that :func:`sealed` made with the same mark; returns its table [n, 3] of parts.

    Args:
        kind, remedy: "episode", "delete it and collect it again": words of the error.

    Raises:
        SimEvalError: the file is missing, truncated, damaged or foreign.
    """
    try:
        with path.open("rb", buffering=0) as stream:
            handle = stream.fileno()
            size, block = os.fstat(handle).st_size, os.pread(handle, USER_BLOCK, 0)
            if (seal := _SEAL.fullmatch(block, len(mark))) is None or not block.startswith(mark):
                raise _unsound(path, kind, "sim_eval did not write it, or its beginning is lost", remedy)
            position, count = int(seal[3] or 0), int(seal[4] or 0)
            if position + 24 * count > size:
                raise ValueError("too short")
            parts = np.frombuffer(os.pread(handle, 24 * count, position), dtype="<i8").reshape(count, 3)
            digest = _checksum(seal[2], parts, size, lambda begin, size: os.pread(handle, size, begin))
    except OSError as error:
        raise SimEvalError(f"cannot read {path} ({error.strerror}): check the path and permissions") from error
    except ValueError as error:
        raise _unsound(path, kind, "it is truncated or damaged", remedy) from error
    if digest != seal[1]:
        raise _unsound(path, kind, "it is truncated or damaged", remedy)
    return parts


_SEAL = re.compile(rb"([0-9a-f]{64})((?: table (\d{1,15}) (\d{1,15}))?)\0*")


def _unsound(path: Path, kind: str, reason: str, remedy: str) -> SimEvalError:
    return SimEvalError(f"{path} is not a sound {kind} ({reason}): {remedy}")


def _checksum(where: bytes, parts: NDArray[np.int64], size: int, read: Callable[[int, int], Buffer]) -> bytes:
    """SHA-256, in hexadecimal, of ``where`` and of all of a file of ``size`` bytes that is not among the parts.

    Args:
        read: from a position, so many bytes.

    Raises:
        ValueError: the parts overlap or leave the file.
    """
    if ((parts[:, :2] < 0) | (parts[:, :2] > size)).any():
        raise ValueError("parts leave the file")
    ordered = parts[np.argsort(parts[:, 0])]
    begins = np.append(USER_BLOCK, ordered[:, 0] + ordered[:, 1])
    ends = np.append(ordered[:, 0], size)
    if (begins > ends).any():
        raise ValueError("parts overlap")
    digest = hashlib.sha256(where)
    for begin, length in zip(begins.tolist(), (ends - begins).tolist(), strict=True):
        digest.update(read(begin, length))
    return digest.hexdigest().encode()
