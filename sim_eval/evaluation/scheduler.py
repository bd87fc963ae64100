"""Which episodes are tried until a task has as many as are wanted: the same ones, whoever runs them."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from itertools import count

from sim_eval.core.types import EpisodeKey
from sim_eval.datasets.recorder import is_kept
from sim_eval.evaluation.engine import EpisodeResult

# With fewer successes than one in so many tries, the demonstrator is not one.
ATTEMPTS_BEFORE_GIVING_UP = 20


class EpisodeScheduler:
    """The episodes of one task and split: the first ``wanted`` that are kept, in the order of their indices.

    An index is handed out only while those kept and those still running are together fewer than wanted: it is tried
    then whatever comes of those that run, so many workers try the same episodes as one process.

    Args:
        there: indices of episodes that are kept already.
        keep_failures: a failure is kept too, and the demonstrator never given up.
        failed: indices that need not be tried again.

    Attributes:
        kept: indices of the episodes that are.
        running: indices handed out whose end is not known.
        ended: the results of the others, as they came.
        hopeless: the demonstrator is given up; nothing more is handed out.
    """

    def __init__(
        self,
        task: str,
        split: str,
        wanted: int,
        there: Collection[int],
        keep_failures: bool = False,
        failed: Collection[int] = (),
    ) -> None:
        self.task, self.split, self.wanted = task, split, wanted
        self.kept, self.running = set(there), set[int]()
        self.ended: list[EpisodeResult] = []
        self.hopeless = False
        self._keep_failures = keep_failures
        self._indices = (index for index in count() if index not in self.kept and index not in failed)
        self._unjudged = deque[int]()
        self._success: dict[int, bool] = {}
        self._judged: list[bool] = []

    @property
    def successes(self) -> int:
        """Of those that have ended."""
        return sum(result.success for result in self.ended)

    @property
    def errors(self) -> int:
        """Of those that have ended."""
        return sum(result.error is not None for result in self.ended)

    def key(self, index: int) -> EpisodeKey:
        return EpisodeKey(self.task, self.split, index)

    def next(self) -> EpisodeKey | None:
        """The next episode to try; None: none, unless one that is running fails."""
        if self.hopeless or len(self.kept) + len(self.running) >= self.wanted:
            return None
        index = next(self._indices)
        self.running.add(index)
        self._unjudged.append(index)
        return self.key(index)

    def end(self, result: EpisodeResult) -> None:
        """An episode that was handed out has ended."""
        index = result.key.index
        self.running.remove(index)
        self.ended.append(result)
        if is_kept(result.success, result.steps, self._keep_failures):
            self.kept.add(index)
        self._success[index] = result.success
        # In the order of the indices, so that the verdict does not depend on who was quicker.
        while self._unjudged and self._unjudged[0] in self._success:
            self._judged.append(self._success[self._unjudged.popleft()])
            attempts = len(self._judged)
            few = attempts >= ATTEMPTS_BEFORE_GIVING_UP and sum(self._judged) * ATTEMPTS_BEFORE_GIVING_UP < attempts
            self.hopeless = self.hopeless or (few and not self._keep_failures)
