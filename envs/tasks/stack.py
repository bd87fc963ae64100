"""Stack one of two cubes on the other: stock robosuite Stack, and its mirror image on the same scenes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sim_eval.core.types import RenderConfig, Simulator, Task, WorkspaceBox
from sim_eval.envs.robosuite_sim import DEFAULT_ROBOT, RobosuiteScene, RobosuiteSimulator

if TYPE_CHECKING:
    from robosuite.environments.manipulation.stack import Stack

TABLE_HEIGHT = 0.8
WORKSPACE = WorkspaceBox((-0.2, -0.2, TABLE_HEIGHT + 0.005), (0.2, 0.2, TABLE_HEIGHT + 0.2))
REACH_METRES = 0.03
LIFTED_METRES = 0.04  # robosuite's, of a cube's centre above the table
ABOVE_METRES = 0.02  # of one centre above the other; the cubes' half heights are 0.02 and 0.025


def phase(env: Stack, goal: int) -> int:
    """0: far, 1: the gripper is at the cube that is to move, 2: it grasps it, 3: it has lifted it, 4: success.

    robosuite's rule of success, for whichever cube is to move (off the table, touching the other, and let go of), and
    one condition more: it is the upper one. robosuite, which knows one order only, would also count a tower of the
    other order whose lower cube leaves the table for a moment.
    """
    cubes = (env.cubeA, env.cubeA_body_id), (env.cubeB, env.cubeB_body_id)
    (moved, body), (base, base_body) = cubes if goal == 0 else reversed(cubes)
    place, below = env.sim.data.body_xpos[body], env.sim.data.body_xpos[base_body]
    grasped = env._check_grasp(gripper=env.robots[0].gripper, object_geoms=moved)
    lifted = place[2] > TABLE_HEIGHT + LIFTED_METRES
    if lifted and not grasped and place[2] > below[2] + ABOVE_METRES and env.check_contact(moved, base):
        return 4
    if grasped:
        return 3 if lifted else 2
    gripper = env.sim.data.site_xpos[env.robots[0].eef_site_id["right"]]
    return int(np.linalg.norm(gripper - place) < REACH_METRES)


def make(task: Task, options: RenderConfig) -> Simulator:
    objects = {"red": "cubeA_main", "green": "cubeB_main"}
    return RobosuiteSimulator(task, RobosuiteScene("Stack", phase, objects), options)


TASKS = (
    Task(
        name="robosuite/Stack",
        goals=(("stack the red cube on the green cube",), ("stack the green cube on the red cube",)),
        max_episode_steps=300,
        workspace=WORKSPACE,
        phases=("reach", "grasp", "lift", "place"),
        factory=make,
        robot=DEFAULT_ROBOT,
    ),
)
