"""The road from end to end: what is shipped does what its card says, and what is trained here does it too."""

import json
from pathlib import Path

import pytest

from sim_eval import collect, rollout, train
from sim_eval.policies.spatialvla.configuration_spatialvla import EXPERTS


def successes(policy: str, task: str, episodes: int, out: Path) -> int:
    options = rollout.RolloutArguments(policy=policy, task=task, episodes=episodes, out=out, video="none")
    assert rollout.main(options) == 0
    lines = [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]
    assert len(lines) == episodes
    assert not any(line["error"] for line in lines)
    return sum(line["success"] for line in lines)


def test_the_shipped_policy_lifts_cubes_it_has_never_seen(tmp_path: Path) -> None:
    assert successes("deep_llama", "robosuite/LiftWide", 6, tmp_path / "run") >= 5


@pytest.mark.slow
@pytest.mark.parametrize("task", ["robosuite/Lift", "robosuite/LiftWide"])
def test_the_shipped_policy_is_as_good_as_its_card_says(task: str, tmp_path: Path) -> None:
    # At a true rate of 95 %, fewer than 54 of 60 happens once in 30 such tests.
    assert successes("deep_llama", task, 60, tmp_path / "run") >= 54


@pytest.mark.slow
@pytest.mark.parametrize("expert", EXPERTS)
def test_a_policy_learns_from_what_is_collected_here(expert: str, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "policy"
    task = "robosuite/Lift"
    collect.main(collect.CollectArguments(task=task, out=data, episodes=40))
    train.main(train.TrainArguments(data=(data,), out=out, expert=expert, steps=900, val_episodes=0))
    assert successes(str(out), task, 20, tmp_path / "run") >= 14
