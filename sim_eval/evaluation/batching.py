"""One policy shared by several workers: their requests wait a bounded time for each other and are answered together."""

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
    """A worker's request to the shared policy."""

    request: PolicyRequest


@dataclass(frozen=True)
class Failure:
    """The policy raised an exception, which itself may not be picklable."""

    name: str
    message: str

    def error(self) -> Exception:
        """An exception with the name and message of the policy's."""
        error: Exception = type(self.name, (Exception,), {})(self.message)
        return error


Answer: TypeAlias = ActionChunk | Failure


class Asker(Protocol):
    """A worker that waits for an answer."""

    def send(self, message: Answer) -> None: ...


class AskingPolicy:
    """A worker's stand-in for the shared policy.

    Args:
        ask: sends a request and waits for the answer.
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
    """Collects requests and answers them in batches.

    Args:
        size: largest batch. With 1 an answer does not depend on other requests; with more its last bits may, since a
            network then adds in another order.
        bound: longest time in seconds that a request waits for others.
    """

    def __init__(self, policy: Policy, size: int, bound: float) -> None:
        self._policy, self._size, self._bound = policy, size, bound
        self._waiting: deque[tuple[Asker, PolicyRequest, float]] = deque()

    def add(self, asker: Asker, question: Question) -> None:
        self._waiting.append((asker, question.request, time.monotonic()))

    def forget(self, asker: Asker) -> None:
        """Drops the requests of a worker that is dead."""
        self._waiting = deque(entry for entry in self._waiting if entry[0] is not asker)

    def holds(self, asker: Asker) -> bool:
        """Whether the worker waits for an answer."""
        return any(entry[0] is asker for entry in self._waiting)

    def seconds_left(self) -> float:
        """Seconds until the oldest request has waited long enough; infinite without requests."""
        return self._waiting[0][2] + self._bound - time.monotonic() if self._waiting else float("inf")

    def answer(self, busy: int) -> None:
        """Answers full batches, and a smaller one when no other worker can send a request or it has waited long enough.

        Args:
            busy: number of workers that run an episode, including those that wait for an answer.
        """
        while self._waiting and (len(self._waiting) >= min(self._size, busy) or self.seconds_left() <= 0):
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
