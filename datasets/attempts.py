"""How a task's demonstrations are being collected, and which tries failed: what episode files cannot say.

``<task>_<split>.tries.jsonl`` stands beside the files: its first line is the manner, each later one a try that left no
file. Collecting that goes on repeats none of them, and notices another manner.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import file_stem

SUFFIX = ".tries.jsonl"


@dataclass(frozen=True)
class CollectionConfig:
    """What decides, besides key and look, what becomes of a try.

    Attributes:
        policy: who demonstrates: its name, and the digest of its weights if it has any.
        disturb: whether it is pushed off its path.
        settle: control steps that are recorded after the first success.
    """

    policy: str
    disturb: bool
    post_success_steps: int


class AttemptsLog:
    """Of one task and split, in a folder of episodes.

    Args:
        folder: it exists.
        manner: of this collecting; a folder without such a file takes it on.

    Attributes:
        failed: indices whose try ended without success and left no file.

    Raises:
        SimEvalError: the folder's episodes were collected in another manner, or the file cannot be read or written.
    """

    def __init__(self, folder: Path, task: str, split: str, collection_config: CollectionConfig) -> None:
        self._path = folder / f"{file_stem(task, split)}{SUFFIX}"
        self.failed: set[int] = set()
        try:
            lines = self._path.read_bytes().splitlines(keepends=True) if self._path.exists() else []
            if lines and not lines[-1].endswith(b"\n"):  # torn by a kill; its try is made again
                lines.pop()
                os.truncate(self._path, sum(map(len, lines)))
        except OSError as error:
            raise SimEvalError(f"{self._path} cannot be read ({error.strerror}): check the permissions") from error
        if not lines:
            self._append(asdict(collection_config))
            return
        try:
            there = CollectionConfig(**json.loads(lines[0]))
            self.failed.update(int(json.loads(line)["failed"]) for line in lines[1:])
        except (KeyError, TypeError, ValueError) as error:
            raise SimEvalError(f"{self._path} is damaged ({error}): delete it to try what failed again") from error
        if there != collection_config:
            told = asdict(collection_config)
            differ = [
                f"{name} {old} there, {told[name]} now" for name, old in asdict(there).items() if old != told[name]
            ]
            raise SimEvalError(
                f"{folder} holds {task} collected otherwise ({'; '.join(differ)}): "
                "choose another --out or the same options"
            )

    def fail(self, index: int) -> None:
        """Notes that a try has failed.

        Raises:
            SimEvalError: the disk refuses.
        """
        self.failed.add(index)
        self._append({"failed": index})

    def _append(self, line: dict[str, object]) -> None:
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise SimEvalError(
                f"cannot write {self._path} ({error.strerror}): free some space or choose another --out"
            ) from error
