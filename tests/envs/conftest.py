from collections.abc import Iterator

import pytest

from sim_eval.envs.contract import SimulatorOptions
from sim_eval.envs.robosuite_sim import RobosuiteSimulator
from sim_eval.envs.tasks import get_task

TASK = "robosuite/LiftWide"


def make(options: SimulatorOptions) -> RobosuiteSimulator:
    simulator = get_task(TASK).make(options)
    assert isinstance(simulator, RobosuiteSimulator)
    return simulator


@pytest.fixture(scope="session")
def fast() -> Iterator[RobosuiteSimulator]:
    simulator = make(SimulatorOptions(render="fast"))
    yield simulator
    simulator.close()


@pytest.fixture(scope="session")
def faithful() -> Iterator[RobosuiteSimulator]:
    simulator = make(SimulatorOptions(render="faithful"))
    yield simulator
    simulator.close()
