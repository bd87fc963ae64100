"""LIBERO's 130 tasks in its five suites, as ``libero_object/3``: the number is LIBERO's, counted from 0.

They exist when LIBERO is installed (``make libero``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import EpisodeKey, InstructionCondition, RenderConfig, Simulator, Task, WorkspaceBox
from sim_eval.envs.libero_sim import OFFICIAL_STATES, PHASES, LiberoSimulator, official_tasks

# Control steps within which each suite is scored, in OpenVLA's protocol, which others followed.
MAX_EPISODE_STEPS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
# From 5 mm above the floor or the table, so that its plane stays out.
WORKSPACES = {
    "FLOOR": WorkspaceBox((-0.35, -0.35, 0.005), (0.3, 0.4, 0.35)),
    "TABLE": WorkspaceBox((-0.45, -0.45, 0.905), (0.3, 0.45, 1.3)),
    "KITCHEN": WorkspaceBox((-0.45, -0.45, 0.905), (0.3, 0.45, 1.3)),
    "LIVING_ROOM": WorkspaceBox((-0.3, -0.45, 0.415), (0.3, 0.45, 0.8)),
    "STUDY": WorkspaceBox((-0.45, -0.45, 0.872), (0.2, 0.45, 1.3)),
}
SCENE = re.compile(r"(?P<room>[A-Z_]+)_SCENE\d+_")


@dataclass(frozen=True)
class LiberoTask(Task):
    """A task whose test episodes are LIBERO's official initial states, and as many."""

    def instruction(self, key: EpisodeKey, instruction_condition: InstructionCondition = "correct") -> str:
        """See :meth:`sim_eval.core.types.Task.instruction`.

        Raises:
            SimEvalError: also when the key's official initial state does not exist.
        """
        if key.split == "test" and key.index >= OFFICIAL_STATES:
            raise SimEvalError(
                f"{self.name} has {OFFICIAL_STATES} official initial states: keep --first and --episodes within them"
            )
        return super().instruction(key, instruction_condition)


def make(task: Task, options: RenderConfig) -> Simulator:
    suite, number = task.name.split("/")
    return LiberoSimulator(task, suite, official_tasks()[suite][int(number)], options)


def scene(suite: str, official: str) -> str:
    """A name that all tasks of one scene share."""
    prefix = SCENE.match(official)
    return prefix.group() if prefix else suite


def sentence(official: str) -> str:
    """The official instruction, which LIBERO derives from the task's name."""
    return SCENE.sub("", official).replace("_", " ")


def room(suite: str, official: str) -> str:
    """The task's workspace: a key of :data:`WORKSPACES`."""
    prefix = SCENE.match(official)
    return prefix["room"] if prefix else "FLOOR" if suite == "libero_object" else "TABLE"


def counterfactuals(suite: str, official: str, tasks: Sequence[str]) -> tuple[str, ...]:
    """The instructions of the suite's other tasks in the same scene, or of all its other tasks if it has none."""
    near = [sentence(task) for task in tasks if scene(suite, task) == scene(suite, official)]
    far = [sentence(task) for task in tasks]
    right = sentence(official)
    unlike = [[each for each in dict.fromkeys(some) if each != right] for some in (near, far)]
    return tuple(unlike[0] or unlike[1])


TASKS = tuple(
    LiberoTask(
        name=f"{suite}/{number}",
        goals=((sentence(official),),),
        max_episode_steps=MAX_EPISODE_STEPS[suite],
        workspace=WORKSPACES[room(suite, official)],
        phases=PHASES,
        factory=make,
        counterfactuals=counterfactuals(suite, official, tasks),
        render="faithful",
    )
    for suite, tasks in official_tasks().items()
    for number, official in enumerate(tasks)
)
MISSING = {} if TASKS else {"libero": "LIBERO is not installed: make libero, or pip install 'sim_eval[libero]'"}
SUITES = {
    suite: tuple(f"{suite}/{number}" for number in range(len(tasks))) for suite, tasks in official_tasks().items()
}
