"""The policy `scripted`: waypoint experts that see the simulator's state.

Every module of this folder that has ``EXPERTS`` contributes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TypeAlias

from sim_eval.envs.contract import FloatArray, SimEvalError
from sim_eval.policies import scripted
from sim_eval.policies.policy import ActionChunk, PolicyRequest, PolicySpec

Expert: TypeAlias = Callable[[Mapping[str, FloatArray], str], ActionChunk]


@cache
def all_experts() -> dict[str, Expert]:
    """Task name -> expert: (privileged state, instruction) -> one action, a function of nothing else."""
    modules = [import_module(f"{scripted.__name__}.{info.name}") for info in iter_modules(scripted.__path__)]
    return {task: expert for module in modules for task, expert in getattr(module, "EXPERTS", {}).items()}


class ScriptedPolicy:
    """Asks the expert of the episode's task, at every control step."""

    spec = PolicySpec(name="scripted", privileged=True)

    def predict(self, requests: Sequence[PolicyRequest]) -> list[ActionChunk]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: PolicyRequest) -> ActionChunk:
        expert = all_experts().get(request.key.task)
        if expert is None:
            raise SimEvalError(
                f"no scripted expert for '{request.key.task}'; there is one for: {', '.join(sorted(all_experts()))}"
            )
        if request.privileged is None:
            raise SimEvalError("the scripted policy was given no simulator state")
        return expert(request.privileged, request.observation.instruction)
