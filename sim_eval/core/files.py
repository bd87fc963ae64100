"""Files that are whole or not there: atomic writes, JSON, and sealed HDF5.

A sealed file tells damage and change: HDF5's user block, which other readers skip, holds a mark and a SHA-256 of the
rest. So damage is told before HDF5, which may loop for ever on it, parses the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sim_eval.core.errors import SimEvalError

if TYPE_CHECKING:
    import h5py

T = TypeVar("T")

PARTIAL = ".partial-"


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to; it takes the name of ``path`` when the block ends well, and goes otherwise.

    Raises:
        SimEvalError: the disk refuses.
    """
    partial = path.with_name(PARTIAL + path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):  # gone already, or could never be made
            partial.unlink()


def unwritable(path: Path, error: OSError) -> SimEvalError:
    return SimEvalError(f"cannot write {path} ({error.strerror or error}): choose another --out or free some space")


def write_json(path: Path, value: object) -> None:
    with atomic(path) as partial, partial.open("w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a run.

    Raises:
        SimEvalError: there is no such file, or it holds something else.
    """
    try:
        value = json.loads(path.read_text())
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
    except OSError as error:
        raise SimEvalError(f"{path} cannot be read ({error.strerror}): is {path.parent} a run folder?") from error
    except ValueError as error:
        raise SimEvalError(f"{path} is damaged ({error}): run it again into a new folder") from error
    return value


USER_BLOCK = 512
TEMPORARY_SUFFIX = ".tmp"


def hdf5_image(fill: Callable[[h5py.File], T]) -> tuple[bytes, T]:
    """An HDF5 file built in memory, without its user block, and what ``fill`` returned.

    Args:
        fill: writes its groups, datasets and attributes.
    """
    import h5py

    with h5py.File("image", "w", driver="core", backing_store=False, userblock_size=USER_BLOCK) as file:
        result = fill(file)
        file.flush()
        return cast(bytes, file.id.get_file_image()), result


def sealed(mark: bytes, fill: Callable[[h5py.File], None]) -> bytes:
    """A whole file, built in memory: the disk then sees one plain write, whose failure is a plain OSError.

    Args:
        mark: what kind of file it is, and in which version.
        fill: writes its groups, datasets and attributes.
    """
    body, _ = hdf5_image(fill)
    return _user_block(mark, body) + body


def write_sealed(path: Path, content: bytes, check: Callable[[Path], object], remedy: str) -> None:
    """Writes a file so that ``path`` either holds all of it or is untouched, whenever the process dies.

    Args:
        check: reads the file before it gets its name, and raises when the disk spoiled it.
        remedy: "free some space": words of the error.

    Raises:
        SimEvalError: the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        check(temporary)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise SimEvalError(f"cannot write {path} ({error.strerror or error}): {remedy}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def unsealed(path: Path, mark: bytes, kind: str, remedy: str) -> Iterator[h5py.File]:
    """The file, known to be what :func:`sealed` made with the same mark.

    Args:
        kind, remedy: "episode", "delete it and collect it again": words of the error.

    Raises:
        SimEvalError: the file is missing, truncated, damaged or foreign.
    """
    try:
        with path.open("rb") as stream:
            block = stream.read(USER_BLOCK)
            ours = block.startswith(mark)
            body = stream.read() if ours else b""
    except OSError as error:
        raise SimEvalError(f"cannot read {path} ({error.strerror}): check the path and permissions") from error
    if not ours or block != _user_block(mark, body):
        reason = "it is truncated or damaged" if ours else "sim_eval did not write it, or its beginning is lost"
        raise SimEvalError(f"{path} is not a sound {kind} ({reason}): {remedy}")
    import h5py

    with h5py.File(io.BytesIO(block + body), "r") as file:
        yield file


def _user_block(mark: bytes, body: bytes) -> bytes:
    return (mark + hashlib.sha256(body).hexdigest().encode()).ljust(USER_BLOCK, b"\0")


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
