"""The log of a collection: its configuration, and the attempts that failed and so left no episode file.

``<task>_<split>.attempts.jsonl`` stands beside the episode files. Its first line is the configuration, each later line
a failed attempt. A collection that is continued repeats no failed attempt and refuses another configuration. While it
runs, it holds a lock on the log, so a second collector cannot work on the same task in the same folder.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping
from pathlib import Path

from sim_eval.core.decoding import encode
from sim_eval.core.errors import SimEvalError
from sim_eval.core.files import unwritable
from sim_eval.core.types import file_stem
from sim_eval.datasets import old_demonstrations

SUFFIX = ".attempts.jsonl"


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
        self._folder, self._task, self._stem = folder, task, file_stem(task, split)
        self._path = folder / f"{self._stem}{SUFFIX}"
        try:
            self._file = self._path.open("a+b")
        except OSError as error:
            raise unwritable(self._path, error) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when this process ends, however it ends
            self._read()
        except BlockingIOError as error:
            self.close()
            raise SimEvalError(
                f"another process is collecting {task} into {folder}: wait until it ends or choose another --out"
            ) from error
        except (KeyError, OSError, OverflowError, TypeError, ValueError, RecursionError) as error:
            self.close()
            raise SimEvalError(f"{self._path} is damaged ({error}): delete it to repeat the failed attempts") from error

    def _read(self) -> None:
        self._file.seek(0)
        lines = self._file.readlines()
        if lines and not lines[-1].endswith(b"\n"):  # a kill tore the last line; its attempt is made again
            lines.pop()
            self._file.truncate(sum(map(len, lines)))
        self._has_config = bool(lines)
        if lines:
            self._settings: Mapping[str, object] = dict(json.loads(lines[0])["outcome_settings"])
            self.failed = {int(json.loads(line)["failed"]) for line in lines[1:]}
        else:
            self._settings, self.failed = old_demonstrations.attempts(self._folder, self._stem)

    @property
    def is_new(self) -> bool:
        """No earlier command has left its configuration."""
        return not self._settings

    def begin(self, config: object, outcome_settings: Mapping[str, object]) -> None:
        """Writes the first line, or compares it with that of the earlier commands.

        Args:
            config: the whole configuration of this command, for a reader.
            outcome_settings: name -> value of what decides the outcome of an attempt; nothing else is compared.

        Raises:
            SimEvalError: the folder's episodes were collected with other settings; names them.
        """
        now = encode(outcome_settings)
        if differ := [name for name, value in self._settings.items() if value != now.get(name)]:
            changes = "; ".join(f"{name} was {self._settings[name]}, is now {now.get(name)}" for name in differ)
            raise SimEvalError(
                f"{self._folder} holds {self._task} collected with other settings ({changes}): "
                "choose another --out or the same options"
            )
        if not self._has_config:
            self._append({"config": encode(config), "outcome_settings": now})
            for index in sorted(self.failed):  # of an old log
                self._append({"failed": index})

    def fail(self, index: int) -> None:
        """Notes that the attempt at an episode failed.

        Raises:
            SimEvalError: the disk refuses.
        """
        self.failed.add(index)
        self._append({"failed": index})

    def close(self) -> None:
        """Releases the lock."""
        self._file.close()

    def _append(self, line: object) -> None:
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise unwritable(self._path, error) from error
