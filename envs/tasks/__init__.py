"""The registry of tasks: ``TASKS`` of every module of this folder, and what other packages register.

A module may name groups of its tasks in ``SUITES``: suite name -> names of its tasks or of other suites. A suite's name
stands for its tasks wherever tasks are named. A module whose tasks need another package has ``MISSING``: beginning of
their names -> the remedy; it is empty when that package is installed.

Another package adds a task, and with its factory a simulator, by an entry point of the group ``sim_eval.tasks``, whose
name is the task's and whose value is the :class:`sim_eval.core.types.Task`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from sim_eval.core.errors import SimEvalError
from sim_eval.core.plugins import find_plugin, plugin_names
from sim_eval.core.types import RenderMode, Task
from sim_eval.envs.robosuite_robot import single_arm_robots

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
    """Suite name -> names of its parts: tasks or other suites."""
    return {name: parts for module in _modules() for name, parts in getattr(module, "SUITES", {}).items()}


def suite_tasks(name: str) -> tuple[str, ...]:
    """The tasks of a suite, each once; of a task, the task itself."""
    parts = suites().get(name)
    return (name,) if parts is None else tuple(dict.fromkeys(task for part in parts for task in suite_tasks(part)))


def expand(names: Iterable[str]) -> list[str]:
    """The tasks that names of tasks and suites stand for, each once, in the order of the names.

    Raises:
        SimEvalError: no task or suite has one of the names.
    """
    return list(dict.fromkeys(get_task(task).name for name in names for task in suite_tasks(name)))


def whole_suites(tasks: Iterable[str]) -> list[str]:
    """The suites all of whose tasks are among these."""
    given = set(tasks)
    return [name for name in suites() if given.issuperset(suite_tasks(name))]


def groups(suite: str) -> tuple[str, ...]:
    """The suites of which a suite is made; none if tasks are among its parts."""
    parts = suites()[suite]
    return parts if all(part in suites() for part in parts) else ()


def outer_suites(tasks: Iterable[str]) -> list[str]:
    """The whole suites that are in no larger one, each followed by the suites of which it is made."""
    inside = {name: set(suite_tasks(name)) for name in whole_suites(tasks)}
    outer = [name for name, mine in inside.items() if not any(mine < other for other in inside.values())]
    return list(dict.fromkeys(name for suite in outer for name in (suite, *groups(suite))))


def in_short(tasks: Iterable[str]) -> str:
    """A short text for many tasks: whole suites by their names, the largest first, then the other tasks."""
    left = dict.fromkeys(tasks)
    named = []
    for suite in sorted(whole_suites(left), key=lambda name: -len(suite_tasks(name))):
        if left.keys() >= set(suite_tasks(suite)):
            named.append(suite)
            left = {name: None for name in left if name not in suite_tasks(suite)}
    return ", ".join([*named, *left])


def task_names() -> list[str]:
    """The tasks of this package and of others."""
    return sorted({*own_tasks(), *plugin_names(TASK_GROUP)})


def _suggestion(name: str) -> str:
    """What to do about an unknown name: install a package, or choose a similar name, an example, or a suite."""
    missing: dict[str, str] = {
        start: remedy for each in _modules() for start, remedy in getattr(each, "MISSING", {}).items()
    }
    for start, remedy in missing.items():
        if name.startswith(start):
            return remedy
    tasks = task_names()
    if close := get_close_matches(name, [*tasks, *suites()], n=5, cutoff=0.5):
        advice = f"did you mean {' or '.join(close)}?"
    else:  # one example for each simulator whose tasks are not in a suite of its name
        examples = {task.partition("/")[0]: task for task in reversed(tasks)}
        advice = f"choose a task, such as {' or '.join(examples[each] for each in examples if each not in suites())}"
    return f"{advice}; suites: {', '.join(suites())}" if suites() else advice


def choose_render(asked: RenderMode | None, tasks: Iterable[str]) -> RenderMode:
    """The rendering mode of a run of these tasks.

    Args:
        asked: the user's choice; None: the tasks' common default.

    Raises:
        SimEvalError: there is no choice, and the tasks' defaults differ.
    """
    if asked is not None:
        return asked
    defaults = {get_task(name).render: name for name in tasks}
    if len(defaults) > 1:
        differing = ", ".join(f"{name} {mode}" for mode, name in defaults.items())
        raise SimEvalError(
            f"the tasks' default rendering differs ({differing}): give --render fast or --render faithful"
        )
    return next(iter(defaults))


@cache
def get_task(name: str) -> Task:
    """The task of this name; ``NAME@ROBOT`` is the task NAME with another robot.

    Raises:
        SimEvalError: there is none, it cannot have the robot, two packages have one, or another package's cannot be
            loaded.
    """
    own = own_tasks().get(name)
    plugin = find_plugin(TASK_GROUP, name, own is not None)
    if plugin is None:
        base, other, robot = name.partition("@")
        if own is None and other:
            return with_robot(get_task(base), robot)
        if own is None:
            raise SimEvalError(f"unknown task '{name}': {_suggestion(name)}")
        return own
    with plugin.blamed():
        task = plugin.load()
        if not isinstance(task, Task) or task.name != name:
            raise TypeError(f"it is {getattr(task, 'name', task)!r}, not the Task of that name")
    return task


def with_robot(task: Task, robot: str) -> Task:
    """The task with another robot; with its own, the task itself.

    Raises:
        SimEvalError: it cannot have the robot.
    """
    if not task.robot:
        raise SimEvalError(f"{task.name} has one robot: leave @{robot} out")
    if robot == task.robot:
        return task
    if robot not in (robots := single_arm_robots()):
        raise SimEvalError(
            f"{task.name}@{robot}: robosuite has no robot '{robot}' with one arm and a fixed base: "
            f"choose one of {', '.join(robots)}"
        )
    return replace(task, name=f"{task.name}@{robot}", robot=robot)
