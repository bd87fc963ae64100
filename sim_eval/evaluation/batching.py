"""One policy for several workers: their questions wait a bounded time for each other and are answered together."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from sim_eval.core.types import ActionChunk
from sim_eval.policies.policy import Policy, PolicyRequest, PolicySpec


@dataclass(frozen=True)
class Question:
    """What a worker sends to be answered."""

    request: PolicyRequest


@dataclass(frozen=True)
class Failure:
    """The policy raised; an exception itself may not survive the way between processes."""

    name: str
    message: str

    def error(self) -> Exception:
        """An exception that reads as the policy's own did."""
        error: Exception = type(self.name, (Exception,), {})(self.message)
        return error


Answer: TypeAlias = ActionChunk | Failure


class Asker(Protocol):
    """Somebody who waits for an answer."""

    def send(self, message: Answer) -> None: ...


class AskingPolicy:
    """The policy as a worker sees it that has none of its own.

    Args:
        ask: sends the question and waits for the answer.
    """

    def __init__(self, spec: PolicySpec, ask: Callable[[Question], Answer]) -> None:
        self.spec = spec
        self._ask = ask

    def predict(self, requests: Sequence[PolicyRequest]) -> list[ActionChunk]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: PolicyRequest) -> ActionChunk:
        answer = self._ask(Question(request))
        if isinstance(answer, Failure):
            raise answer.error()
        return answer


class Batcher:
    """Collects questions and answers them in batches.

    Args:
        size: most questions in one batch. With 1 an answer does not depend on who else asks; with more its last bits
            may, since a network's sums are then made in another order.
        bound: seconds that a question waits for others at most.
    """

    def __init__(self, policy: Policy, size: int, bound: float) -> None:
        self._policy, self._size, self._bound = policy, size, bound
        self._waiting: deque[tuple[Asker, PolicyRequest, float]] = deque()

    def add(self, asker: Asker, question: Question) -> None:
        self._waiting.append((asker, question.request, time.monotonic()))

    def forget(self, asker: Asker) -> None:
        """The asker is dead."""
        self._waiting = deque(entry for entry in self._waiting if entry[0] is not asker)

    def holds(self, asker: Asker) -> bool:
        """Whether the asker waits for an answer."""
        return any(entry[0] is asker for entry in self._waiting)

    def patience(self) -> float:
        """Seconds until the oldest question has waited long enough; infinite without one."""
        return self._waiting[0][2] + self._bound - time.monotonic() if self._waiting else float("inf")

    def answer(self, busy: int) -> None:
        """Answers full batches, and what is left of one when nobody else can ask or when it has waited long enough.

        Args:
            busy: how many workers run an episode, those that wait for an answer included.
        """
        while self._waiting and (len(self._waiting) >= min(self._size, busy) or self.patience() <= 0):
            batch = [self._waiting.popleft() for _ in range(min(self._size, len(self._waiting)))]
            answers = self._predict([request for _, request, _ in batch])
            for (asker, _, _), answer in zip(batch, answers, strict=True):
                asker.send(answer)

    def _predict(self, requests: Sequence[PolicyRequest]) -> list[Answer]:
        try:
            chunks = self._policy.predict(requests)
            if len(chunks) != len(requests):
                raise ValueError(f"{len(chunks)} answers to {len(requests)} questions")
            return list(chunks)
        except Exception as error:
            if len(requests) == 1:
                return [Failure(type(error).__name__, str(error))]
            return [answer for request in requests for answer in self._predict([request])]  # one may be at fault
