"""Pick a can from one bin and place it in its compartment of the other: stock robosuite PickPlaceCan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sim_eval.core.types import RenderConfig, Simulator, Task, WorkspaceBox
from sim_eval.envs.robosuite_sim import DEFAULT_ROBOT, RobosuiteScene, RobosuiteSimulator

if TYPE_CHECKING:
    from robosuite.environments.manipulation.pick_place import PickPlace

BIN_HEIGHT = 0.8
# The bin that the can is picked from, from inside. The bin that it goes to never moves, so proprioception says where
# it is; its walls would be two thirds of all that is seen (27 to 38 tokens instead of 60 to 110).
WORKSPACE = WorkspaceBox((-0.08, -0.48, BIN_HEIGHT + 0.03), (0.28, -0.02, BIN_HEIGHT + 0.3))
REACH_METRES = 0.04
LIFTED_METRES = 0.14  # of the can's centre above the bin's foot: the can stands clear of the bin's floor


def phase(env: PickPlace, goal: int) -> int:
    """0: far, 1: the gripper is at the can, 2: it grasps it, 3: it has lifted it, 4: success."""
    if env._check_success():
        return 4
    can = next(entry for entry in env.objects if entry.name == "Can")
    place = env.sim.data.body_xpos[env.obj_body_id["Can"]]
    if env._check_grasp(gripper=env.robots[0].gripper, object_geoms=can):
        return 3 if place[2] > BIN_HEIGHT + LIFTED_METRES else 2
    gripper = env.sim.data.site_xpos[env.robots[0].eef_site_id["right"]]
    return int(np.linalg.norm(gripper - place) < REACH_METRES)


def make(task: Task, options: RenderConfig) -> Simulator:
    scene = RobosuiteScene("PickPlaceCan", phase, {"can": "Can_main"}, hidden=("Visual",))
    return RobosuiteSimulator(task, scene, options)


TASKS = (
    Task(
        name="robosuite/PickPlaceCan",
        goals=(("put the can in the bin",),),
        max_episode_steps=300,
        workspace=WORKSPACE,
        phases=("reach", "grasp", "lift", "place"),
        factory=make,
        robot=DEFAULT_ROBOT,
    ),
)
