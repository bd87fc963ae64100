"""The registry of tasks: every module of this folder that has ``TASKS`` contributes them."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from sim_eval.envs.contract import SimEvalError, Task


@cache
def all_tasks() -> dict[str, Task]:
    """Task name -> task."""
    modules = [import_module(f"{__name__}.{info.name}") for info in iter_modules(__path__)]
    return {task.name: task for module in modules for task in module.TASKS}


def task_names() -> list[str]:
    return sorted(all_tasks())


def get_task(name: str) -> Task:
    """The task of this name.

    Raises:
        SimEvalError: there is none.
    """
    if name not in all_tasks():
        raise SimEvalError(f"unknown task '{name}': choose one of {', '.join(task_names())}")
    return all_tasks()[name]
