"""A key alone decides an episode: in any order, in any process, whether somebody looks or not."""

import json
import subprocess
import sys
from contextlib import closing

import mujoco
import numpy as np
import pytest

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import EpisodeKey, RenderConfig
from sim_eval.envs.robosuite_sim import RobosuiteSimulator
from sim_eval.envs.tasks import get_task, task_names

TASK = "robosuite/LiftWide"
STEPS = 25
ELSEWHERE = """
import json, sys
import sim_eval
from sim_eval.core.types import EpisodeKey
from sim_eval.envs.tasks import get_task
simulator = get_task("robosuite/LiftWide").make()
digests = {}
for index in (2, 0, 1):
    key = EpisodeKey("robosuite/LiftWide", "test", index)
    simulator.reset(key)
    rng = key.rng("test")
    digests[index] = [simulator.snapshot().digest]
    for _ in range(25):
        simulator.act(rng.uniform(-1, 1, 7))
        digests[index].append(simulator.snapshot().digest)
print(json.dumps(digests))
simulator.close()
"""


def trajectory(simulator: RobosuiteSimulator, key: EpisodeKey, look: bool = False) -> list[str]:
    """Digests of the state after the reset and after each of some random actions."""
    simulator.reset(key)
    rng = key.rng("test")
    digests = [simulator.snapshot().digest]
    for _ in range(STEPS):
        if look:
            simulator.observe()
            simulator.privileged()
        simulator.act(rng.uniform(-1, 1, 7))
        digests.append(simulator.snapshot().digest)
    return digests


def test_same_key_same_trajectory_in_any_order_and_process(fast: RobosuiteSimulator) -> None:
    keys = [EpisodeKey(TASK, "test", index) for index in range(3)]
    forward = [trajectory(fast, key) for key in keys]
    looking = [trajectory(fast, key, look=True) for key in reversed(keys)][::-1]
    assert forward == looking
    answer = subprocess.run([sys.executable, "-c", ELSEWHERE], capture_output=True, text=True, check=True)
    elsewhere = json.loads(answer.stdout.splitlines()[-1])
    assert [elsewhere[str(index)] for index in range(3)] == forward
    assert len({digests[0] for digests in forward}) == 3


def test_splits_never_share_an_episode(fast: RobosuiteSimulator) -> None:
    starts = set()
    for split in ("train", "val", "test"):
        for index in range(3):
            fast.reset(EpisodeKey(TASK, split, index))
            starts.add(fast.snapshot().digest)
    assert len(starts) == 9


def test_cube_size_belongs_to_the_key(fast: RobosuiteSimulator) -> None:
    def size_and_mass(index: int) -> tuple[float, ...]:
        fast.reset(EpisodeKey(TASK, "test", index))
        model = fast._model
        geom, body = model.geom("cube_g0").id, model.body("cube_main").id
        assert np.array_equal(model.geom_size[geom], model.geom_size[model.geom("cube_g0_vis").id])
        return (*model.geom_size[geom], model.body_mass[body], *model.body_inertia[body])

    first = size_and_mass(0)
    assert size_and_mass(1) != first
    assert size_and_mass(0) == first
    half_size, mass = np.array(first[:3]), first[3]
    assert np.all((half_size >= 0.020) & (half_size <= 0.022))
    assert mass == pytest.approx(1000 * np.prod(2 * half_size))  # robosuite's density for a box is water's


def test_cube_spreads_over_the_promised_square(fast: RobosuiteSimulator) -> None:
    places = []
    for index in range(60):
        fast.reset(EpisodeKey(TASK, "test", index))
        places.append(fast.privileged()["cube_pos"][:2])
    assert np.abs(places).max() <= 0.12
    assert np.all(np.ptp(places, axis=0) > 0.18)


def test_observation_is_what_the_contract_says(fast: RobosuiteSimulator) -> None:
    fast.reset(EpisodeKey(TASK, "test", 0))
    observation, spec = fast.observe(), fast.spec
    assert {name: len(value) for name, value in observation.proprio.items()} == dict(spec.proprio)
    for name, view in observation.views.items():
        assert view.rgb.shape == (*spec.cameras[name], 3)
        assert view.rgb.dtype == np.uint8
        assert view.depth.dtype == np.float32
        rotation = view.camera_to_world[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
    assert fast.observe(()).views == {}


def test_each_of_two_simulators_describes_its_own_model(fast: RobosuiteSimulator) -> None:
    other = get_task("robosuite/Stack").make(RenderConfig("fast"))
    with closing(other):
        described = [simulator.provenance()["model_file"] for simulator in (fast, other, other, fast)]
    for simulator, text in zip((fast, other, other, fast), described, strict=True):
        assert isinstance(simulator, RobosuiteSimulator)
        written, own = mujoco.MjModel.from_xml_string(text), simulator._model
        assert (written.nq, written.ngeom, written.names) == (own.nq, own.ngeom, own.names)
    assert described[1] == described[2]
    assert described[0] == described[3]


def test_unknown_task_names_the_known_ones() -> None:
    with pytest.raises(SimEvalError, match="robosuite/LiftWide"):
        get_task("robosuite/Fly")
    assert {"robosuite/Lift", "robosuite/LiftWide"} <= set(task_names())


def test_unknown_split_is_refused() -> None:
    with pytest.raises(SimEvalError, match="train, val, test"):
        EpisodeKey(TASK, "tset", 0)
