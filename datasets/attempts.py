"""The log of a collection: its configuration, and the attempts that failed and so left no episode file.

``<task>_<split>.attempts.jsonl`` stands beside the episode files. Its first line is the configuration, each later line
a failed attempt. A collection that is continued repeats no failed attempt and refuses another configuration. While it
runs, it holds a lock on the log, so a second collector cannot work on the same task in the same folder.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim_eval.core.decoding import decode, encode
from sim_eval.core.errors import SimEvalError
from sim_eval.core.files import unwritable
from sim_eval.core.types import file_stem
from sim_eval.datasets import old_demonstrations

SUFFIX = ".attempts.jsonl"


@dataclass(frozen=True)
class _FirstLine:
    """The first line of a log.

    Attributes:
        config: what the command was asked.
        outcome_settings: name -> value of what decides the outcome of an attempt.
    """

    config: Mapping[str, Any]
    outcome_settings: Mapping[str, Any]


@dataclass(frozen=True)
class _Failure:
    """A later line of a log: the index of the episode that failed."""

    failed: int


class AttemptsLog:
    """The log of one task and split, locked until :meth:`close`.

    Args:
        folder: of the episode files; it must exist.
        task, split: whose log it is.

    Attributes:
        failed: the indices of the episodes whose attempt ended without success and left no file.

    Raises:
        SimEvalError: another process holds the lock, or the log cannot be read or written.
    """

    def __init__(self, folder: Path, task: str, split: str) -> None:
        stem = file_stem(task, split)
        self._folder, self._task, self._path = folder, task, folder / f"{stem}{SUFFIX}"
        try:
            self._file = self._path.open("a+b")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system releases it when this process ends
        except BlockingIOError as error:
            self._file.close()
            raise SimEvalError(
                f"another process is collecting {task} into {folder}: wait until it ends or choose another --out"
            ) from error
        except OSError as error:
            raise unwritable(self._path, error) from error
        try:
            self._read(stem)
        except BaseException:
            self.close()
            raise

    def _read(self, stem: str) -> None:
        self._file.seek(0)
        lines = self._file.readlines()
        if lines and not lines[-1].endswith(b"\n"):  # a kill tore the last line; its attempt is made again
            lines.pop()
            self._file.truncate(sum(map(len, lines)))
        self._begun = bool(lines)
        if not lines:
            self._settings, self.failed = old_demonstrations.attempts(self._folder, stem)
            return
        try:
            self._settings = decode(_FirstLine, json.loads(lines[0])).outcome_settings
            self.failed = {decode(_Failure, json.loads(line)).failed for line in lines[1:]}
        except (ValueError, RecursionError, SimEvalError) as error:
            raise SimEvalError(f"{self._path} is damaged ({error}): delete it to repeat the failed attempts") from error

    @property
    def is_new(self) -> bool:
        """No earlier command has begun it."""
        return not self._settings

    def begin(self, config: object, outcome_settings: Mapping[str, object]) -> None:
        """Writes the first line, or compares it with that of the earlier commands.

        Args:
            config: what this command was asked, a dataclass or a table.
            outcome_settings: name -> value of what decides the outcome of an attempt; the others may differ.

        Raises:
            SimEvalError: the folder's episodes were collected with other settings; names them.
        """
        now = encode(outcome_settings)
        differ = [
            f"{name} was {was}, is now {now.get(name)}" for name, was in self._settings.items() if was != now.get(name)
        ]
        if differ:
            raise SimEvalError(
                f"{self._folder} holds {self._task} collected with other settings ({'; '.join(differ)}): "
                "choose another --out or the same options"
            )
        if not self._begun:
            self._append(encode(_FirstLine(encode(config), now)))
            for index in sorted(self.failed):
                self._append(encode(_Failure(index)))
            self._begun = True

    def fail(self, index: int) -> None:
        """Notes that the attempt at an episode failed.

        Raises:
            SimEvalError: the disk refuses.
        """
        self.failed.add(index)
        self._append(encode(_Failure(index)))

    def close(self) -> None:
        """Releases the lock."""
        self._file.close()

    def _append(self, line: object) -> None:
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise unwritable(self._path, error) from error
