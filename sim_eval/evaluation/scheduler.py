"""Chooses the episodes to attempt until a task has enough: the same ones for any number of workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from itertools import count

from sim_eval.core.types import EpisodeKey
from sim_eval.datasets.recorder import is_kept
from sim_eval.evaluation.engine import EpisodeResult

# With fewer successes than one in so many attempts, the policy cannot demonstrate the task.
ATTEMPTS_BEFORE_GIVING_UP = 20


class EpisodeScheduler:
    """The episodes of one task and split: the first ``wanted`` that are kept, in the order of their indices.

    An index is handed out only while kept and running episodes together are fewer than wanted. It is then attempted
    whatever the running ones come to, so many workers attempt the same episodes as one process.

    Args:
        existing: indices of episodes that are already kept.
        keep_failures: failures are kept too, and the policy is never given up.
        failed: indices whose attempt need not be repeated.

    Attributes:
        kept: indices of the kept episodes.
        running: indices that were handed out and have not ended.
        ended: the results of the others, in the order in which they ended.
        given_up: the policy fails too often; nothing more is handed out.
    """

    def __init__(
        self,
        task: str,
        split: str,
        wanted: int,
        existing: Collection[int],
        keep_failures: bool = False,
        failed: Collection[int] = (),
    ) -> None:
        self.task, self.split, self.wanted = task, split, wanted
        self.kept, self.running = set(existing), set[int]()
        self.ended: list[EpisodeResult] = []
        self.given_up = False
        self._keep_failures = keep_failures
        self._indices = (index for index in count() if index not in self.kept and index not in failed)
        self._unjudged = deque[int]()
        self._success: dict[int, bool] = {}
        self._judged: list[bool] = []

    @property
    def successes(self) -> int:
        """Number of ended episodes that succeeded."""
        return sum(result.success for result in self.ended)

    @property
    def errors(self) -> int:
        """Number of ended episodes that broke off."""
        return sum(result.error is not None for result in self.ended)

    def key(self, index: int) -> EpisodeKey:
        return EpisodeKey(self.task, self.split, index)

    def next(self) -> EpisodeKey | None:
        """The next episode to attempt; None: none for now, only the failure of a running one brings another."""
        if self.given_up or len(self.kept) + len(self.running) >= self.wanted:
            return None
        index = next(self._indices)
        self.running.add(index)
        self._unjudged.append(index)
        return self.key(index)

    def end(self, result: EpisodeResult) -> None:
        """Takes the result of an episode that was handed out."""
        index = result.key.index
        self.running.remove(index)
        self.ended.append(result)
        if is_kept(result.success, result.steps, self._keep_failures):
            self.kept.add(index)
        self._success[index] = result.success
        # In the order of the indices, so that giving up does not depend on which worker was faster.
        while self._unjudged and self._unjudged[0] in self._success:
            self._judged.append(self._success[self._unjudged.popleft()])
            attempts = len(self._judged)
            few = attempts >= ATTEMPTS_BEFORE_GIVING_UP and sum(self._judged) * ATTEMPTS_BEFORE_GIVING_UP < attempts
            self.given_up = self.given_up or (few and not self._keep_failures)
