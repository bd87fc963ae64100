"""Proving a run by asking its policy again: other actions are found, rounding is told from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from fake_simulator import PLANE, PlaneSimulator, constant
from recorded_run import PROTOCOL, SEEING, Program, file_of, lines, play

from sim_eval.configs import RolloutConfig
from sim_eval.core.types import ActionChunk
from sim_eval.evaluation.engine import run_episode
from sim_eval.evaluation.trajectory import read_trajectory
from sim_eval.evaluation.verification import TOLERANCE, RecordedPolicy
from sim_eval.policies.baselines import RandomPolicy
from sim_eval.policies.policy import PolicyRequest


def configured(reference: str) -> RolloutConfig:
    return RolloutConfig(reference, task=PLANE.name, episodes=8)


def test_the_policy_asked_again_gives_the_recorded_actions(tmp_path: Path, verify: Program):
    play(tmp_path, RandomPolicy(), config=configured("random"))
    code, shown = verify(tmp_path, "--policy", "--strict")
    assert code == 0
    questions = str(sum(line["policy_calls"] for line in lines(tmp_path)))
    assert shown.splitlines()[-1].split()[-3:] == [questions, questions, "0"]


def test_actions_of_another_policy_are_refuted_by_asking_again(tmp_path: Path, verify: Program):
    """A whole run passed off as another policy's: only asking that policy again can tell."""
    impostor = constant(0.9, 0.0)
    impostor.spec = RandomPolicy.spec
    play(tmp_path, impostor, config=configured("random"))
    assert verify(tmp_path, "--strict")[0] == 0
    code, shown = verify(tmp_path, "--policy")
    assert code == 1
    assert "chunks differ when inferred again, most by 0.9" in shown


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("zero", "'zero' is no longer the policy of"),
        ("gone/checkpoint", "cannot be loaded again: unknown policy 'gone/checkpoint'"),
    ],
)
def test_another_policy_or_none_is_refused(tmp_path: Path, verify: Program, reference: str, words: str):
    play(tmp_path, RandomPolicy(), config=configured(reference), episodes=1)
    code, shown = verify(tmp_path, "--policy")
    assert code == 2
    assert words in shown
    assert shown.count("\n") == 1


class Rounding:
    """The random policy with an error in its answer to the third question."""

    spec = RandomPolicy.spec

    def __init__(self, error: float) -> None:
        self._error = error

    def predict(self, requests: Sequence[PolicyRequest]) -> list[ActionChunk]:
        answers = RandomPolicy().predict(requests)
        moved = [np.where(np.abs(each.actions) < 0.9, each.actions + self._error, each.actions) for each in answers]
        return [
            ActionChunk(change) if request.policy_call == 2 else answer
            for request, answer, change in zip(requests, answers, moved, strict=True)
        ]


@pytest.mark.parametrize(("error", "code"), [(1e-6, 0), (2.1 * TOLERANCE, 1)])
def test_rounding_is_reported_and_more_is_refuted(
    tmp_path: Path, verify: Program, monkeypatch: pytest.MonkeyPatch, error: float, code: int
):
    play(tmp_path, RandomPolicy(), config=configured("random"), episodes=1)
    monkeypatch.setattr("sim_eval.evaluation.jobs.load_policy", lambda *arguments: Rounding(error))
    found, shown = verify(tmp_path, "--policy", "--out", str(tmp_path / "report.json"))
    assert found == code
    assert "1 of 8 chunks differ when inferred again" in shown
    inferred = json.loads((tmp_path / "report.json").read_text())["episodes"][0]["inferred"]
    assert (inferred["chunks"], inferred["equal"]) == (8, 7)
    assert inferred["largest"] == pytest.approx(error / 2, rel=1e-3)
    assert 9 <= inferred["step"] <= 12
    assert verify(tmp_path, "--policy", "--strict")[0] == 1


def test_an_answer_of_another_length_is_infinitely_far(recorded: Path):
    found = read_trajectory(file_of(recorded, 0))
    player = RecordedPolicy(found, SEEING, constant(0.0, 0.0, horizon=2))
    run_episode(PlaneSimulator(PLANE), player, found.key, PROTOCOL)
    assert player.inferred is not None
    assert player.inferred.equal == 0
    assert player.inferred.largest == float("inf")
