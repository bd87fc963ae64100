"""The policy `scripted`: demonstrators that see the simulator's state.

Every module of this folder contributes those of its ``DEMONSTRATORS``, or, where a simulator's package brings
demonstrators of its own, ``find_demonstrator``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import TypeAlias

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import ActionChunk, FloatArray
from sim_eval.policies import scripted
from sim_eval.policies.policy import PolicyRequest, PolicySpec

Demonstrator: TypeAlias = Callable[[Mapping[str, FloatArray], str], ActionChunk]


@cache
def _modules() -> list[ModuleType]:
    return [import_module(f"{scripted.__name__}.{info.name}") for info in iter_modules(scripted.__path__)]


@cache
def find_demonstrator(task: str) -> Demonstrator | None:
    """The task's expert: (privileged state, instruction) -> one action, a function of nothing else; None: it has none.

    Raises:
        SimEvalError: it comes with a package that is not installed.
    """
    for module in _modules():
        expert: Demonstrator | None = getattr(module, "DEMONSTRATORS", {}).get(task)
        if expert is None and module.__name__ != __name__ and hasattr(module, "find_demonstrator"):
            expert = module.find_demonstrator(task)
        if expert is not None:
            return expert
    return None


class ScriptedPolicy:
    """Asks the expert of the episode's task, at every control step."""

    spec = PolicySpec(name="scripted", privileged=True)

    def predict(self, requests: Sequence[PolicyRequest]) -> list[ActionChunk]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: PolicyRequest) -> ActionChunk:
        expert = find_demonstrator(request.key.task)
        if expert is None:
            raise SimEvalError(f"no scripted expert for '{request.key.task}': choose another --policy")
        if request.privileged is None:
            raise SimEvalError("the scripted policy was given no simulator state")
        return expert(request.privileged, request.observation.instruction)
