"""The registry of tasks: ``TASKS`` of every module of this folder, and what other packages register.

A module may name groups of its tasks in ``SUITES``; a suite's name stands for its tasks wherever tasks are named.

Another package adds a task, and with its factory a simulator, by an entry point of the group ``sim_eval.tasks`` whose
name is the task's and whose value is the :class:`sim_eval.envs.contract.Task`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from sim_eval.envs.contract import SimEvalError, Task
from sim_eval.envs.plugins import find_plugin, plugin_names

TASK_GROUP = "sim_eval.tasks"


@cache
def _modules() -> list[ModuleType]:
    return [import_module(f"{__name__}.{info.name}") for info in iter_modules(__path__)]


@cache
def own_tasks() -> dict[str, Task]:
    """Task name -> task, of this package."""
    return {task.name: task for module in _modules() for task in module.TASKS}


@cache
def suites() -> dict[str, tuple[str, ...]]:
    """Suite name -> names of its tasks."""
    return {name: tasks for module in _modules() for name, tasks in getattr(module, "SUITES", {}).items()}


def expand(names: Iterable[str]) -> list[str]:
    """Names of tasks and suites as names of tasks, each once, in the order in which they were named.

    Raises:
        SimEvalError: no task or suite has one of the names.
    """
    tasks = dict.fromkeys(task for name in names for task in suites().get(name, (name,)))
    return [get_task(name).name for name in tasks]


def task_names() -> list[str]:
    """Of this package and of others."""
    return sorted({*own_tasks(), *plugin_names(TASK_GROUP)})


@cache
def get_task(name: str) -> Task:
    """The task of this name.

    Raises:
        SimEvalError: there is none, two packages have one, or another package's cannot be loaded.
    """
    own = own_tasks().get(name)
    plugin = find_plugin(TASK_GROUP, name, own is not None)
    if plugin is None:
        if own is None:
            raise SimEvalError(f"unknown task '{name}': choose one of {', '.join([*task_names(), *suites()])}")
        return own
    with plugin.blamed():
        task = plugin.load()
        if not isinstance(task, Task) or task.name != name:
            raise TypeError(f"it is {getattr(task, 'name', task)!r}, not the Task of that name")
    return task
