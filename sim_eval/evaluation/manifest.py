"""Which episodes a run is made of, fixed before the first one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import EpisodeKey


def digest(value: object) -> str:
    """SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """The keys of a run, in the order in which they are run. Two runs on one manifest are paired episode by episode."""

    keys: tuple[EpisodeKey, ...]

    @classmethod
    def plan(cls, tasks: Sequence[str], split: str, first: int, episodes: int) -> Manifest:
        """``episodes`` of each task from index ``first`` on.

        Raises:
            SimEvalError: nothing is planned, something is planned twice, or the split or first index does not exist.
        """
        if not tasks or episodes < 1:
            raise SimEvalError("no episodes are planned: name at least one task and one episode")
        if len(set(tasks)) < len(tasks):
            raise SimEvalError(f"a task is named twice: {', '.join(tasks)}; name each once")
        return cls(tuple(EpisodeKey(task, split, first + number) for task in tasks for number in range(episodes)))

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(key.task for key in self.keys))

    @property
    def digest(self) -> str:
        """Of the set of keys: an episode does not depend on what was run before it, so their order does not count."""
        return digest([asdict(key) for key in sorted(self.keys)])

    def to_dict(self) -> dict[str, object]:
        return {"digest": self.digest, "keys": [asdict(key) for key in self.keys]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Manifest:
        """Reads what :meth:`to_dict` wrote.

        Raises:
            SimEvalError: a field is missing or wrong, or the digest is not that of the keys.
        """
        try:
            entries, recorded = data["keys"], data["digest"]
            manifest = cls(tuple(EpisodeKey(entry["task"], entry["split"], entry["index"]) for entry in entries))
        except (KeyError, TypeError) as error:
            raise SimEvalError(f"manifest is damaged: {error!r}") from error
        if not manifest.keys or len(set(manifest.keys)) < len(manifest.keys) or recorded != manifest.digest:
            raise SimEvalError("manifest is damaged: its digest is not that of its keys")
        return manifest
