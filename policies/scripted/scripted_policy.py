"""The policy `scripted`: demonstrators that see the simulator's state.

Each module of this folder lists its demonstrators by task in ``DEMONSTRATORS``, or has a function
``find_demonstrator(task)`` if they come with a simulator's package.
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

# (privileged state, instruction) -> one action; it depends on nothing else.
Demonstrator: TypeAlias = Callable[[Mapping[str, FloatArray], str], ActionChunk]


@cache
def _modules() -> list[ModuleType]:
    return [import_module(f"{scripted.__name__}.{info.name}") for info in iter_modules(scripted.__path__)]


@cache
def find_demonstrator(task: str) -> Demonstrator | None:
    """The task's demonstrator, whatever its robot; None: it has none.

    Raises:
        SimEvalError: the demonstrator comes with a package that is not installed.
    """
    task = task.partition("@")[0]
    for module in _modules():
        demonstrator: Demonstrator | None = getattr(module, "DEMONSTRATORS", {}).get(task)
        if demonstrator is None and module.__name__ != __name__ and hasattr(module, "find_demonstrator"):
            demonstrator = module.find_demonstrator(task)
        if demonstrator is not None:
            return demonstrator
    return None


class ScriptedPolicy:
    """Commands what the demonstrator of the episode's task would do, one action per call."""

    spec = PolicySpec(name="scripted", privileged=True)

    def predict(self, requests: Sequence[PolicyRequest]) -> list[ActionChunk]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: PolicyRequest) -> ActionChunk:
        demonstrator = find_demonstrator(request.key.task)
        if demonstrator is None:
            raise SimEvalError(f"no scripted demonstrator for '{request.key.task}': choose another --policy")
        if request.privileged is None:
            raise SimEvalError("the scripted policy was given no simulator state")
        return demonstrator(request.privileged, request.observation.instruction)
