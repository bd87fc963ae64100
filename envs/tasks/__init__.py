"""The registry of tasks: ``TASKS`` of every module of this folder, and what other packages register.

Another package adds a task, and with its factory a simulator, by an entry point of the group ``sim_eval.tasks`` whose
name is the task's and whose value is the :class:`sim_eval.envs.contract.Task`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from sim_eval.envs.contract import SimEvalError, Task
from sim_eval.envs.plugins import find_plugin, plugin_names

TASK_GROUP = "sim_eval.tasks"


@cache
def own_tasks() -> dict[str, Task]:
    """Task name -> task, of this package."""
    modules = [import_module(f"{__name__}.{info.name}") for info in iter_modules(__path__)]
    return {task.name: task for module in modules for task in module.TASKS}


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
            raise SimEvalError(f"unknown task '{name}': choose one of {', '.join(task_names())}")
        return own
    with plugin.blamed():
        task = plugin.load()
        if not isinstance(task, Task) or task.name != name:
            raise TypeError(f"it is {getattr(task, 'name', task)!r}, not the Task of that name")
    return task
