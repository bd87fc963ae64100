"""Lift a cube from the table: stock robosuite Lift (+-3 cm) and LiftWide (+-12 cm)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from sim_eval.core.types import RenderConfig, Simulator, Task, WorkspaceBox
from sim_eval.envs.robosuite_sim import DEFAULT_ROBOT, RobosuiteScene, RobosuiteSimulator, set_box_size

if TYPE_CHECKING:
    from robosuite.environments.manipulation.lift import Lift

TABLE_HEIGHT = 0.8
# From 5 mm above the table, without its plane and its depth noise, to the height of a lifted cube.
WORKSPACE = WorkspaceBox((-0.25, -0.25, TABLE_HEIGHT + 0.005), (0.25, 0.25, TABLE_HEIGHT + 0.2))
REACH_METRES = 0.03


def phase(env: Lift, goal: int) -> int:
    """0: far, 1: the gripper is at the cube, 2: it grasps it, 3: success."""
    if env._check_success():
        return 3
    if env._check_grasp(gripper=env.robots[0].gripper, object_geoms=env.cube):
        return 2
    gripper = env.sim.data.site_xpos[env.robots[0].eef_site_id["right"]]
    return int(np.linalg.norm(gripper - env.sim.data.body_xpos[env.cube_body_id]) < REACH_METRES)


def randomize(env: Lift, rng: np.random.Generator) -> None:
    """The cube's size, which robosuite draws only when an environment is built: half sizes 20 to 22 mm."""
    set_box_size(env, "cube", rng.uniform(0.020, 0.022, 3))


def wide_placement() -> Mapping[str, object]:
    from robosuite.utils.placement_samplers import UniformRandomSampler

    return {
        "placement_initializer": UniformRandomSampler(
            name="ObjectSampler",
            x_range=[-0.12, 0.12],
            y_range=[-0.12, 0.12],
            rotation=None,
            ensure_object_boundary_in_range=False,
            ensure_valid_placement=True,
            reference_pos=np.array((0, 0, TABLE_HEIGHT)),
            z_offset=0.01,
        )
    }


def make(task: Task, options: RenderConfig) -> Simulator:
    arguments = wide_placement if task.name.startswith("robosuite/LiftWide") else dict
    scene = RobosuiteScene("Lift", phase, {"cube": "cube_main"}, arguments, randomize)
    return RobosuiteSimulator(task, scene, options)


TASKS = tuple(
    Task(
        name=name,
        goals=(("lift the red cube", "pick up the red cube", "raise the red cube off the table"),),
        max_episode_steps=200,
        workspace=WORKSPACE,
        phases=("reach", "grasp", "lift"),
        factory=make,
        robot=DEFAULT_ROBOT,
    )
    for name in ("robosuite/Lift", "robosuite/LiftWide")
)
