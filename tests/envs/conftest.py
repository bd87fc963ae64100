from collections.abc import Iterator

import pytest

from sim_eval.core.types import RenderConfig
from sim_eval.envs.robosuite_sim import RobosuiteSimulator
from sim_eval.envs.tasks import get_task

TASK = "robosuite/LiftWide"


def make(options: RenderConfig) -> RobosuiteSimulator:
    simulator = get_task(TASK).make(options)
    assert isinstance(simulator, RobosuiteSimulator)
    return simulator


@pytest.fixture(scope="session")
def fast() -> Iterator[RobosuiteSimulator]:
    simulator = make(RenderConfig(mode="fast"))
    yield simulator
    simulator.close()


@pytest.fixture(scope="session")
def faithful() -> Iterator[RobosuiteSimulator]:
    simulator = make(RenderConfig(mode="faithful"))
    yield simulator
    simulator.close()
