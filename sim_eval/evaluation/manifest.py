"""The episodes of a run, which are fixed before the first one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sim_eval.core.decoding import decode
from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import EpisodeKey


def digest(value: object) -> str:
    """SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """The keys of a run, in their order. Two runs of one manifest are paired episode by episode."""

    keys: tuple[EpisodeKey, ...]

    @classmethod
    def plan(cls, tasks: Sequence[str], split: str, first: int, episodes: int) -> Manifest:
        """``episodes`` of each task from index ``first`` on.

        Raises:
            SimEvalError: there are no episodes, a task is named twice, or the split or first index does not exist.
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
        """Digest of the set of keys; their order does not matter, since an episode does not depend on earlier ones."""
        return digest([asdict(key) for key in sorted(self.keys)])

    def to_dict(self) -> dict[str, object]:
        return {"digest": self.digest, "keys": [asdict(key) for key in self.keys]}

    @classmethod
    def from_dict(cls, data: dict[str, object]) -> Manifest:
        """Reads the output of :meth:`to_dict`.

        Raises:
            SimEvalError: a field is missing or wrong, or the digest is not that of the keys.
        """
        manifest = decode(cls, {name: value for name, value in data.items() if name != "digest"})
        repeated = len(set(manifest.keys)) < len(manifest.keys)
        if not manifest.keys or repeated or data.get("digest") != manifest.digest:
            raise SimEvalError("its digest is not that of its keys")
        return manifest
