"""How fast a policy is scored: ours against the plain loop that a user of stock robosuite writes.

``python -m benchmarks.rollout_speed --policy deep_llama``. Both sides run in one process, episode by episode in turn,
with the same policy, keys and initial states, so that whatever else the machine does slows both. Before and after, one
state is looked at with both: what is timed are right pictures.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro
from annotated_types import Ge

from sim_eval.console import run
from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import CameraView, EpisodeKey, FloatArray, Observation, RenderConfig, Simulator, Task

if TYPE_CHECKING:
    from robosuite.environments.manipulation.manipulation_env import ManipulationEnv

    from sim_eval.evaluation.engine import RolloutProtocol
    from sim_eval.policies.policy import Policy

PROGRAM = "python -m benchmarks.rollout_speed"
# Two renderings of one table: robosuite's standard depth buffer alone is off by millimetres.
DEPTH_METRES, PLANE_METRES, SHARE = 0.02, 0.005, 0.99


@dataclass(frozen=True)
class SpeedArguments:
    """Time rollouts and RGB-D frames, ours and stock robosuite's, in turn.

    Attributes:
        policy: a shipped checkpoint's name, or a checkpoint folder.
        episodes: episodes of each side, split val.
        task: robosuite/LiftWide or robosuite/Lift.
        frames: looks with both cameras of each side.
        json: print one JSON object instead of the table.
    """

    policy: Annotated[str, tyro.conf.arg(metavar="NAME|DIR")]
    episodes: Annotated[int, Ge(1)] = 5
    task: str = "robosuite/LiftWide"
    frames: Annotated[int, Ge(1)] = 50
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


@dataclass(frozen=True)
class Timed:
    """One episode on the clock, reset included."""

    seconds: float
    steps: int
    success: bool


@dataclass(frozen=True)
class Side:
    """What one side took; medians over episodes, and over looks of which each is two frames."""

    episode_seconds: float
    episode_steps: float
    step_milliseconds: float
    frame_milliseconds: float
    episodes_per_minute: float
    successes: int


def main(arguments: SpeedArguments) -> int:
    """Runs the command; returns the exit code."""
    from tqdm import tqdm

    from sim_eval.envs.robosuite_robot import quiet
    from sim_eval.envs.tasks import get_task
    from sim_eval.evaluation.engine import RolloutProtocol
    from sim_eval.policies.policy import check_fit
    from sim_eval.policies.registry import load_policy

    task = get_task(arguments.task)
    policy = load_policy(arguments.policy)
    if not policy.spec.cameras:
        raise SimEvalError(f"policy '{arguments.policy}' sees no pictures: time a trained one, deep_llama for example")
    protocol = RolloutProtocol(render=RenderConfig.for_cameras("fast", policy.spec.cameras))
    keys = [EpisodeKey(task.name, "val", index) for index in range(arguments.episodes)]
    ours: list[Timed] = []
    plain: list[Timed] = []
    with ExitStack() as stack:
        simulator = stack.enter_context(closing(task.make(protocol.render)))
        check_fit(policy.spec, simulator.spec)
        stack.enter_context(quiet())  # robosuite says at every hard reset which file it reads
        env = stack.enter_context(closing(plain_environment(task, protocol.render)))
        hard_reset(env)
        check_pictures(simulator, env, keys[0])
        frames = frame_seconds(simulator, env, arguments.frames)
        for key in tqdm(keys, unit="pair", file=sys.stderr, dynamic_ncols=True):
            ours.append(play_ours(simulator, policy, key, protocol))
            simulator.reset(key)
            plain.append(play_plain(env, policy, key, simulator, protocol))
        check_pictures(simulator, env, keys[0])
    report(arguments, protocol, summary(ours, frames[0]), summary(plain, frames[1]))
    return 0


def plain_environment(task: Task, options: RenderConfig) -> ManipulationEnv:
    """Stock robosuite, its own defaults wherever the task does not say otherwise.

    Raises:
        SimEvalError: the task has no plain loop here.
    """
    import robosuite

    from sim_eval.envs.robosuite_sim import CAMERAS, CONTROL_HZ, DEFAULT_ROBOT
    from sim_eval.envs.tasks.lift import wide_placement

    placements: Mapping[str, Callable[[], Mapping[str, object]]] = {
        "robosuite/Lift": dict,
        "robosuite/LiftWide": wide_placement,
    }
    if task.name not in placements:
        raise SimEvalError(f"no plain loop for '{task.name}': choose one of {', '.join(placements)}")
    env: ManipulationEnv = robosuite.make(
        "Lift",
        robots=DEFAULT_ROBOT,
        control_freq=CONTROL_HZ,
        horizon=task.max_episode_steps,
        has_renderer=False,
        has_offscreen_renderer=True,
        use_camera_obs=True,
        camera_names=list(CAMERAS.values()),
        camera_heights=options.height,
        camera_widths=options.width,
        camera_depths=True,
        **placements[task.name](),
    )
    return env


def plain_observation(env: ManipulationEnv, seen: Mapping[str, FloatArray], task: Task, key: EpisodeKey) -> Observation:
    """Robosuite's observation dictionary as a policy wants it: upright pictures, metres, calibrated cameras."""
    from robosuite.utils import camera_utils
    from robosuite.utils.transform_utils import quat2mat

    from sim_eval.envs.robosuite_sim import CAMERAS

    views = {}
    for name, theirs in CAMERAS.items():
        rgb, buffer = seen[f"{theirs}_image"][::-1], seen[f"{theirs}_depth"][::-1, :, 0]
        views[name] = CameraView(
            rgb=np.ascontiguousarray(rgb, np.uint8),
            depth=np.ascontiguousarray(camera_utils.get_real_depth_map(env.sim, buffer), np.float32),
            intrinsics=camera_utils.get_camera_intrinsic_matrix(env.sim, theirs, *buffer.shape),
            camera_to_world=camera_utils.get_camera_extrinsic_matrix(env.sim, theirs),
        )
    quaternion = seen["robot0_eef_quat_site"]
    proprio = {
        "eef_pos": seen["robot0_eef_pos"],
        "eef_quat": quaternion,
        "eef_rot6d": quat2mat(quaternion)[:, :2].T.reshape(6),
        "gripper_qpos": seen["robot0_gripper_qpos"],
        "joint_pos": seen["robot0_joint_pos"],
    }
    return Observation(views, proprio, task.instruction(key), task.workspace)


def play_ours(simulator: Simulator, policy: Policy, key: EpisodeKey, protocol: RolloutProtocol) -> Timed:
    from sim_eval.evaluation.engine import run_episode

    result = run_episode(simulator, policy, key, protocol)
    if result.error:
        raise SimEvalError(f"episode {key} broke off: {result.error}")
    return Timed(result.seconds, result.steps, result.success)


def play_plain(
    env: ManipulationEnv, policy: Policy, key: EpisodeKey, simulator: Simulator, protocol: RolloutProtocol
) -> Timed:
    """The plain loop, under the engine's stop rule, from the state of our simulator, which was reset to this key."""
    from sim_eval.policies.policy import PolicyRequest

    task, action_spec = simulator.task, simulator.spec.action
    seconds = hard_reset(env)
    seen = put(env, simulator.snapshot().state)  # not on the clock: a user takes the state that comes
    began = time.perf_counter()
    steps = policy_call = 0
    last, success = task.max_episode_steps, False
    while steps < last:
        request = PolicyRequest(plain_observation(env, seen, task, key), key, policy_call, action_spec)
        (chunk,) = policy.predict([request])
        policy_call += 1
        for action in chunk.actions[: protocol.n_action_steps]:
            seen, *_ = env.step(action)
            steps += 1
            if not success and env._check_success():
                success, last = True, min(task.max_episode_steps, steps + protocol.post_success_steps)
            if steps >= last:
                break
    return Timed(seconds + time.perf_counter() - began, steps, success)


def hard_reset(env: ManipulationEnv) -> float:
    """Resets robosuite as it does by default, and returns the seconds that took.

    It leaves the replaced OpenGL context to Python's collector, which would free it inside whichever context is then
    current and so destroy that one's pictures; here it is freed inside itself, off the clock.
    """
    replaced = env.sim._render_context_offscreen
    began = time.perf_counter()
    env.reset()
    seconds = time.perf_counter() - began
    replaced.gl_ctx.make_current()
    del replaced
    gc.collect()
    return seconds


def put(env: ManipulationEnv, state: FloatArray) -> Mapping[str, FloatArray]:
    """Brings robosuite into a state [n] and looks afresh."""
    env.sim.set_state_from_flattened(state)
    env.sim.forward()
    env.sim._render_context_offscreen.gl_ctx.make_current()  # robosuite draws into whichever context is current
    seen: Mapping[str, FloatArray] = env._get_observations(force_update=True)
    return seen


def check_pictures(simulator: Simulator, env: ManipulationEnv, key: EpisodeKey) -> None:
    """Looks at one state with both and compares the table, the cameras and the proprioception.

    Raises:
        SimEvalError: they do not see the same.
    """
    from sim_eval.core.cameras import unproject
    from sim_eval.envs.tasks.lift import TABLE_HEIGHT

    simulator.reset(key)
    mine = simulator.observe()
    theirs = plain_observation(env, put(env, simulator.snapshot().state), simulator.task, key)
    for name, view in mine.views.items():
        other = theirs.views[name]
        table = np.abs(unproject(view)[..., 2] - TABLE_HEIGHT) < PLANE_METRES
        alike = np.abs(view.depth - other.depth)[table] < DEPTH_METRES
        if not table.any() or alike.mean() < SHARE:
            raise SimEvalError(f"camera '{name}' shows the table differently in robosuite's picture: time nothing")
        if not all(
            np.allclose(getattr(view, part), getattr(other, part)) for part in ("intrinsics", "camera_to_world")
        ):
            raise SimEvalError(f"camera '{name}' is calibrated differently in the plain loop: time nothing")
    for name, values in theirs.proprio.items():
        if not np.allclose(values, mine.proprio[name], atol=1e-6):
            raise SimEvalError(f"proprio '{name}' differs in the plain loop: time nothing")


def frame_seconds(simulator: Simulator, env: ManipulationEnv, count: int) -> tuple[list[float], list[float]]:
    """Seconds of ``count`` looks with both cameras, ours and robosuite's in turn; robosuite's depth stays a buffer."""
    from sim_eval.envs.robosuite_sim import CAMERAS

    options = next(iter(simulator.spec.cameras.values()))
    still = np.zeros(simulator.spec.action.dim)
    ours, plain = [], []
    for _ in range(count):
        simulator.act(still)  # what was seen before is forgotten
        began = time.perf_counter()
        simulator.observe()
        ours.append(time.perf_counter() - began)
        env.sim._render_context_offscreen.gl_ctx.make_current()
        began = time.perf_counter()
        for camera in CAMERAS.values():
            env.sim.render(camera_name=camera, height=options[0], width=options[1], depth=True)
        plain.append(time.perf_counter() - began)
    return ours, plain


def summary(episodes: Sequence[Timed], looks: Sequence[float]) -> Side:
    return Side(
        episode_seconds=median(episode.seconds for episode in episodes),
        episode_steps=median(episode.steps for episode in episodes),
        step_milliseconds=median(1e3 * episode.seconds / episode.steps for episode in episodes),
        frame_milliseconds=median(1e3 * seconds / 2 for seconds in looks),
        episodes_per_minute=60 * len(episodes) / sum(episode.seconds for episode in episodes),
        successes=sum(episode.success for episode in episodes),
    )


def report(arguments: SpeedArguments, protocol: RolloutProtocol, ours: Side, plain: Side) -> None:
    """Prints both sides and how many times faster ours is."""
    from sim_eval.reporting.tables import Table

    ratios = {
        "per_episode": plain.episode_seconds / ours.episode_seconds,
        "per_control_step": plain.step_milliseconds / ours.step_milliseconds,
        "per_frame": plain.frame_milliseconds / ours.frame_milliseconds,
        "episodes_per_minute": ours.episodes_per_minute / plain.episodes_per_minute,
    }
    if arguments.json:
        print(json.dumps({**asdict(arguments), "ours": asdict(ours), "robosuite": asdict(plain), "ratios": ratios}))
        return
    options, count = protocol.render, arguments.episodes
    rows = [
        ("seconds an episode", "episode_seconds", "{:.2f}", ratios["per_episode"]),
        ("control steps an episode", "episode_steps", "{:.0f}", None),
        ("ms a control step, all included", "step_milliseconds", "{:.1f}", ratios["per_control_step"]),
        (f"ms an RGB-D frame, {options.height}x{options.width}", "frame_milliseconds", "{:.1f}", ratios["per_frame"]),
        ("episodes a minute (mean)", "episodes_per_minute", "{:.1f}", ratios["episodes_per_minute"]),
        (f"successes of {count}", "successes", "{:d}", None),
    ]
    cells = [
        (
            label,
            *(shape.format(getattr(side, name)) for side in (ours, plain)),
            "" if ratio is None else f"{ratio:.1f}x",
        )
        for label, name, shape, ratio in rows
    ]
    print(f"{arguments.policy} on {arguments.task}: {count} episodes and {arguments.frames} looks each; medians")
    print(Table(("", "ours", "robosuite", "ratio"), cells))
    print(
        f"ours: soft reset; cameras rendered (fast) when the policy is asked, every {protocol.n_action_steps} steps.\n"
        "robosuite: hard reset; both cameras rendered by its own renderer at every step; policy asked as often.\n"
        "Both start from the same states. Their episodes may differ in length all the same, which flatters one\n"
        "ratio or the other: take the smaller of those by episode and by control step.\n"
        "A frame is one camera's RGB and depth; robosuite's depth is left unconverted."
    )


if __name__ == "__main__":
    run(main, SpeedArguments, PROGRAM)
