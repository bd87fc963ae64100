"""The compiled control step does what robosuite's own does, to the last bit, or is not used."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim_eval.core.types import EpisodeKey, FloatArray
from sim_eval.envs.libero_sim import installation
from sim_eval.envs.robosuite_robot import load_robosuite, quiet, single_arm_robots
from sim_eval.envs.robosuite_sim import RobosuiteSimulator
from sim_eval.envs.tasks import get_task, suite_tasks, suites

load_robosuite()
from sim_eval.envs import osc_pose  # noqa: E402

COLD = """
import json, os, sys, time
import numba
from numba.core import caching
folder, barrier = sys.argv[1], sys.argv[2]
if folder:
    numba.config.CACHE_DIR = folder
else:  # no folder that numba knows can be written
    implementation = getattr(caching, "CacheImpl", None) or caching._CacheImpl
    implementation._locator_classes = [each for each in implementation._locator_classes if "User" in each.__name__][:1]
from sim_eval.core.types import EpisodeKey
from sim_eval.envs.robosuite_robot import load_robosuite, quiet
from sim_eval.envs.tasks import get_task
with quiet():
    load_robosuite()
    from sim_eval.envs import osc_pose
    from robosuite.utils import control_utils
    import robosuite
    env = robosuite.make("Lift", robots="Panda", has_renderer=False, has_offscreen_renderer=False, use_camera_obs=False)
    env.step(env.action_spec[0])  # compiles what robosuite itself needs
open(os.path.join(barrier, str(os.getpid())), "w").close()
while len(os.listdir(barrier)) < int(sys.argv[3]):
    time.sleep(0.05)
began = time.process_time()
simulator = get_task("robosuite/LiftWide").make()
seconds = time.process_time() - began
simulator.reset(EpisodeKey("robosuite/LiftWide", "test", 0))
simulator.act([0.5] * 7)
stats = osc_pose._substeps.stats
print(json.dumps({
    "compiled": isinstance(simulator._step, osc_pose.CompiledStep),
    "misses": sum(stats.cache_misses.values()), "hits": sum(stats.cache_hits.values()),
    "seconds": seconds, "digest": simulator.snapshot().digest, "folder": stats.cache_path,
}))
"""


def environment(**arguments: object) -> Any:
    """A robosuite environment as ours are."""
    import robosuite

    with quiet():
        env = robosuite.make(
            "Lift",
            robots="Panda",
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            use_object_obs=False,
            ignore_done=True,
            hard_reset=False,
            seed=0,
            **arguments,
        )
    for observable in env.observation_names:
        env.modify_observable(observable, "enabled", False)
    return env


def states(env: Any, step: osc_pose.ControlStep, reset: Callable[[], object], steps: int) -> list[FloatArray]:
    """All that MuJoCo's next step depends on, after the reset and after each of some random actions."""
    import mujoco

    everything = mujoco.mjtState.mjSTATE_INTEGRATION
    model, data = env.sim.model._model, env.sim.data._data
    rng = np.random.default_rng(0)
    reset()
    reached = [np.empty(mujoco.mj_stateSize(model, everything)) for _ in range(steps + 1)]
    for index, state in enumerate(reached):
        if index:
            step(rng.uniform(-1.2, 1.2, env.action_dim))
        mujoco.mj_getState(model, data, state, everything)
    return reached


def assert_same(env: Any, compiled: osc_pose.ControlStep, reset: Callable[[], object], steps: int) -> None:
    assert isinstance(compiled, osc_pose.CompiledStep)
    own, ours = (states(env, step, reset, steps) for step in (env.step, compiled))
    assert not np.array_equal(own[0], own[-1])
    for number, (expected, found) in enumerate(zip(own, ours, strict=True)):
        assert np.array_equal(expected, found, equal_nan=True), f"control step {number}"


def check_task(name: str, steps: int) -> None:
    """Two episodes of each kind: a controller's first step differs from its others."""
    with closing(get_task(name).make()) as simulator:
        assert isinstance(simulator, RobosuiteSimulator)
        for index in range(2):
            reset = partial(simulator.reset, EpisodeKey(name, "test", index))
            assert_same(simulator._env, simulator._step, reset, steps // 2)


def test_the_compiled_step_is_used_and_leads_to_the_same_bits(fast: RobosuiteSimulator) -> None:
    key = EpisodeKey(fast.task.name, "test", 0)
    assert_same(fast._env, fast._step, lambda: fast.reset(key), 30)


def test_an_arm_whose_controlled_frame_moves_with_its_first_joint() -> None:
    check_task("robosuite/LiftWide@IIWA", 20)


def test_an_action_that_is_no_number_has_the_same_consequences(fast: RobosuiteSimulator, tmp_path: Path) -> None:
    def with_bad_ones(step: osc_pose.ControlStep) -> osc_pose.ControlStep:
        return lambda action: step(np.where(action > 0.9, np.nan, action))

    here = Path.cwd()
    os.chdir(tmp_path)  # MuJoCo writes its warnings into a file
    try:
        key = EpisodeKey(fast.task.name, "test", 0)
        own, ours = (
            states(fast._env, with_bad_ones(step), lambda: fast.reset(key), 15) for step in (fast._env.step, fast._step)
        )
    finally:
        os.chdir(here)
    assert (tmp_path / "MUJOCO_LOG.TXT").read_text().count("CTRL") == 2
    assert np.array_equal(own, ours, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"robosuite/{task}" for task in ("Lift", "LiftWide", "PickPlaceCan", "Stack")])
def test_every_task(name: str) -> None:
    check_task(name, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("robot", single_arm_robots())
def test_every_arm(robot: str) -> None:
    check_task(f"robosuite/LiftWide@{robot}", 1000)


@pytest.mark.slow
@pytest.mark.skipif(installation() is None, reason="LIBERO is not installed: make libero")
@pytest.mark.parametrize("suite", [suite for suite in suites() if suite.startswith("libero")])
def test_every_task_of_libero(suite: str) -> None:
    first, *others = suite_tasks(suite)
    check_task(first, 1000)
    for name in others:
        check_task(name, 100)


@pytest.fixture(scope="module")
def env() -> Iterator[Any]:
    made = environment()
    yield made
    made.close()


def test_what_is_not_proven_is_left_to_robosuite(
    env: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from robosuite.utils.control_utils import opspace_matrices

    assert osc_pose.unproven(env) == ""
    arm = env.robots[0].part_controllers["right"]
    for thing, name, value, reason in (
        (arm, "interpolator_pos", object(), "is not OSC_POSE with"),
        (arm, "uncoupling", False, "is not OSC_POSE with"),
        (env, "lite_physics", False, "not one arm"),
        (env, "robots", env.robots * 2, "not one arm"),
        (env, "ignore_done", False, "horizon"),
        (env, "hard_reset", True, "another model"),
        (type(env), "_pre_action", lambda self, action, policy_step: None, "Lift has a step of its own"),
        (osc_pose, "opspace_matrices", opspace_matrices.py_func, "numba is switched off"),
        (osc_pose, "_library", None, "MuJoCo's library"),
        (osc_pose, "PROVEN", {"mujoco": "0.1"}, "proven for 0.1"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(thing, name, value)
            assert reason in osc_pose.unproven(env)
    env.modify_observable("robot0_joint_pos", "enabled", True)
    with caplog.at_level(logging.WARNING):
        assert osc_pose.control_step(env) == osc_pose.control_step(env) == env.step
    env.modify_observable("robot0_joint_pos", "enabled", False)
    assert [record.getMessage() for record in caplog.records] == [
        "control steps are robosuite's own, which take longer: robosuite's horizon or observables are in use"
    ]


def test_another_controller_is_left_to_robosuite() -> None:
    from robosuite import load_composite_controller_config

    with quiet():
        config = load_composite_controller_config(robot="Panda")
    config["body_parts"]["right"] = {
        **config["body_parts"]["right"],
        "type": "JOINT_POSITION",
        "output_min": -0.05,
        "output_max": 0.05,
    }
    with closing(environment(controller_configs=config)) as env:
        assert "JOINT_POSITION" in osc_pose.unproven(env)
        assert osc_pose.control_step(env) == env.step


def test_one_wrong_last_bit_is_noticed(env: Any) -> None:
    compiled = osc_pose.control_step(env)
    before = env.sim.get_state().flatten()
    assert osc_pose.same_bits(env, compiled)
    assert not osc_pose.same_bits(env, lambda action: compiled(action * (1 + 2**-50)))
    assert np.array_equal(env.sim.get_state().flatten(), before)


def cold(tmp_path: Path, folder: str, processes: int) -> list[dict[str, Any]]:
    """What new processes report that make a simulator at the same time."""
    barrier = tmp_path / "ready"
    barrier.mkdir()
    command = [sys.executable, "-c", COLD, folder, str(barrier), str(processes)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    answers = [process.communicate()[0] for process in started]
    return [json.loads(answer.splitlines()[-1]) for answer in answers]


def test_a_lock_that_cannot_be_had_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("is none")
    with osc_pose._one_process(str(tmp_path / "folder")):
        entered = True
    assert entered


@pytest.mark.slow
def test_the_loop_is_compiled_once_and_within_ten_seconds(tmp_path: Path) -> None:
    (tmp_path / "numba").mkdir()
    reports = cold(tmp_path, str(tmp_path / "numba"), 2)
    assert all(report["compiled"] for report in reports)
    assert sorted((report["misses"], report["hits"]) for report in reports) == [(0, 1), (1, 0)]
    assert max(report["seconds"] for report in reports) < 10
    assert len({report["digest"] for report in reports}) == 1


@pytest.mark.slow
def test_where_nothing_can_be_written_it_is_compiled_all_the_same(tmp_path: Path, fast: RobosuiteSimulator) -> None:
    (report,) = cold(tmp_path, "", 1)
    assert report["compiled"]
    assert not Path(report["folder"]).exists()  # it was temporary
    fast.reset(EpisodeKey(fast.task.name, "test", 0))
    fast.act(np.full(7, 0.5))
    assert fast.snapshot().digest == report["digest"]
