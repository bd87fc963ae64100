"""The one episode loop: when it stops, what counts as success, who sees what, and whose error stops what."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fake_simulator import PLANE, FakePolicy, PlaneSimulator, constant, wander

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import ActionChunk, EpisodeKey, FloatArray, Recorder, Simulator, Status
from sim_eval.evaluation.engine import BURST_STEPS, Disturbance, RolloutProtocol, run_episode
from sim_eval.policies.policy import PolicySpec

KEY = EpisodeKey(PLANE.name, "test", 3)
PROTOCOL = RolloutProtocol()


class Witness(Recorder):
    """A recorder that keeps everything it is told."""

    def __init__(self) -> None:
        self.labels: list[FloatArray] = []
        self.executed: list[FloatArray] = []
        self.statuses: list[Status] = []
        self.finished: list[bool] = []

    def start(self, simulator: Simulator, key: EpisodeKey, instruction: str) -> None:
        assert key == KEY
        assert instruction == PLANE.instruction(KEY)

    def before_act(self, simulator: Simulator, label: FloatArray, executed: FloatArray) -> None:
        self.labels.append(label)
        self.executed.append(executed)

    def after_act(self, simulator: Simulator, status: Status) -> None:
        self.statuses.append(status)

    def finish(self, simulator: Simulator, success: bool) -> None:
        self.finished.append(success)


def test_passing_through_the_goal_is_success_but_not_at_the_end():
    witness = Witness()
    result = run_episode(PlaneSimulator(PLANE), constant(1.0, 0.0), KEY, PROTOCOL, witness)
    assert (result.success, result.success_end) == (True, False)
    assert result.first_success is not None
    assert result.steps == result.first_success + 10 == len(witness.statuses)
    assert [status.success for status in witness.statuses].index(True) + 1 == result.first_success
    assert result.phase == "goal"
    assert witness.finished == [True]


def test_staying_at_the_goal_is_success_at_the_end():
    spec = PolicySpec("homing", privileged=True)
    homing = FakePolicy(lambda r: 5 * (r.privileged["goal"] - r.observation.proprio["eef_pos"][:2])[None], spec)
    result = run_episode(PlaneSimulator(PLANE), homing, KEY, PROTOCOL)
    assert result.success
    assert result.success_end


def test_without_success_it_runs_to_the_horizon():
    policy = constant(0.0, 0.0)
    result = run_episode(PlaneSimulator(PLANE), policy, KEY, PROTOCOL)
    assert (result.success, result.success_end, result.first_success) == (False, False, None)
    assert result.steps == PLANE.max_episode_steps == 30
    assert result.policy_calls == 8  # 7 times 4 steps and once 2
    assert result.phase == "none"
    assert result.error is None


def test_the_horizon_cuts_the_settling_short():
    result = run_episode(PlaneSimulator(PLANE), constant(0.3, 0.0), KEY, PROTOCOL)
    assert result.first_success is not None
    assert 20 < result.first_success < 30
    assert result.steps == 30


def test_no_settling_stops_at_the_first_success():
    result = run_episode(PlaneSimulator(PLANE), constant(1.0, 0.0), KEY, RolloutProtocol(post_success_steps=0))
    assert result.steps == result.first_success
    assert result.success_end


@pytest.mark.parametrize(("horizon", "asked"), [(1, 30), (3, 10), (4, 8), (8, 8)])
def test_a_chunk_is_executed_up_to_replan_or_its_end(horizon: int, asked: int):
    policy = constant(0.0, 0.0, horizon=horizon)
    assert run_episode(PlaneSimulator(PLANE), policy, KEY, PROTOCOL).policy_calls == asked
    assert [request.policy_call for request in policy.requests] == list(range(asked))


def test_actions_are_executed_in_the_order_of_the_chunk_and_in_bounds():
    witness = Witness()
    policy = FakePolicy(lambda request: [[0.1, 0.0], [0.2, 0.0], [-7.0, 7.0], [9.0, 9.0]])
    run_episode(PlaneSimulator(PLANE), policy, KEY, RolloutProtocol(n_action_steps=3), witness)
    assert np.array(witness.executed[:4]).tolist() == [[0.1, 0.0], [0.2, 0.0], [-1.0, 1.0], [0.1, 0.0]]


def test_only_the_cameras_of_the_spec_are_rendered_and_privileged_state_stays_hidden():
    simulator, blind = PlaneSimulator(PLANE), constant(0.0, 0.0)
    run_episode(simulator, blind, KEY, PROTOCOL)
    assert set(simulator.observed) == {()}
    assert all(request.privileged is None for request in blind.requests)

    simulator = PlaneSimulator(PLANE)
    seeing = FakePolicy(lambda request: np.zeros((8, 2)), PolicySpec("seeing", cameras={"side": (32, 32)}))
    run_episode(simulator, seeing, KEY, PROTOCOL)
    assert set(simulator.observed) == {("side",)}
    assert all(list(request.observation.views) == ["side"] for request in seeing.requests)


def test_the_same_key_gives_the_same_result_whatever_ran_before():
    simulator, policy = PlaneSimulator(PLANE), wander()
    alone = run_episode(simulator, policy, KEY, PROTOCOL)
    run_episode(simulator, policy, EpisodeKey(PLANE.name, "test", 4), PROTOCOL)
    assert run_episode(simulator, policy, KEY, PROTOCOL) == alone  # equality leaves the time out


def fail(request: object) -> object:
    raise ValueError("out of\nideas")


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (FakePolicy(fail), "policy: ValueError: out of ideas"),
        (FakePolicy(lambda request: [[0.0, np.nan]]), "not finite"),
        (FakePolicy(lambda request: np.zeros((4, 3))), "shape (4, 3)"),
        (FakePolicy(lambda request: np.zeros((0, 2))), "shape (0, 2)"),
        (FakePolicy(lambda request: np.zeros(2)), "shape (2,)"),
    ],
)
def test_a_policys_error_ends_its_episode_only(policy: FakePolicy, words: str):
    witness = Witness()
    result = run_episode(PlaneSimulator(PLANE), policy, KEY, PROTOCOL, witness)
    assert result.error is not None
    assert words in result.error
    assert "\n" not in result.error
    assert (result.success, result.success_end, result.steps) == (False, False, 0)
    assert witness.finished == [False]


def test_a_simulators_error_after_success_is_a_failure():
    witness = Witness()
    result = run_episode(PlaneSimulator(PLANE, breaks_at=12), constant(1.0, 0.0), KEY, PROTOCOL, witness)
    assert result.error == "simulator: RuntimeError: the physics diverged"
    assert any(status.success for status in witness.statuses)
    assert witness.finished == [False]
    assert (result.success, result.first_success, result.steps) == (False, None, 12)


def test_an_interrupt_and_a_recorders_error_pass_through():
    def interrupt(request: object) -> object:
        raise KeyboardInterrupt

    class FullDisk(Witness):
        def after_act(self, simulator: Simulator, status: Status) -> None:
            raise OSError("no space left")

    with pytest.raises(KeyboardInterrupt):
        run_episode(PlaneSimulator(PLANE), FakePolicy(interrupt), KEY, PROTOCOL)
    with pytest.raises(OSError, match="no space"):
        run_episode(PlaneSimulator(PLANE), constant(0.0, 0.0), KEY, PROTOCOL, FullDisk())


def test_a_disturbance_moves_what_is_executed_and_leaves_labels_clean():
    policy = FakePolicy(lambda request: ActionChunk(np.tile([0.5, 0.0], (4, 1)), np.array([0.3, 0.0])))
    witness, again, calm = Witness(), Witness(), Witness()
    run_episode(PlaneSimulator(PLANE), policy, KEY, PROTOCOL, witness, disturb=True)
    run_episode(PlaneSimulator(PLANE), policy, KEY, PROTOCOL, again, disturb=True)
    run_episode(PlaneSimulator(PLANE), policy, KEY, PROTOCOL, calm)
    assert np.all(np.array(witness.labels) == [0.5, 0.0])
    executed = np.array(witness.executed)
    assert np.std(executed[:, 0]) > 0.05
    assert np.all(executed[:, 1] == 0.0)
    assert np.all(np.abs(executed) <= 1.0)
    assert np.array_equal(executed, np.array(again.executed))
    assert np.array_equal(np.array(calm.executed), np.array(calm.labels))


def test_the_disturbance_is_unit_noise_correlated_over_steps():
    noise = Disturbance(KEY, 50)
    flow_samples = np.array([noise.draw(1.0) for _ in range(2000)])
    assert flow_samples.std() == pytest.approx(1.0, abs=0.05)
    assert np.mean(flow_samples[1:] * flow_samples[:-1]) == pytest.approx(0.9, abs=0.05)


def test_bursts_of_disturbance_take_up_their_share_and_are_those_draws():
    always, bursts = Disturbance(KEY, 3), Disturbance(KEY, 3)
    pairs = [(always.draw(1.0), bursts.draw(0.2)) for _ in range(20000)]
    on = np.array([drawn.any() for _, drawn in pairs])
    assert on.mean() == pytest.approx(0.2, abs=0.03)
    assert on.sum() / (on[1:] > on[:-1]).sum() == pytest.approx(BURST_STEPS, rel=0.15)  # the mean length of a burst
    assert all(np.array_equal(*pair) for pair, is_on in zip(pairs, on, strict=True) if is_on)


def test_a_protocol_that_cannot_run_is_refused():
    with pytest.raises(SimEvalError, match="n_action_steps"):
        RolloutProtocol(n_action_steps=0)
    with pytest.raises(SimEvalError, match="post_success_steps"):
        RolloutProtocol(post_success_steps=-1)


def test_the_policy_sees_the_protocols_instruction_whatever_the_simulator_knows():
    """Simulators give sensor readings; the engine adds the sentence and the workspace."""
    for condition in ("correct", "counterfactual"):
        task = replace(PLANE, counterfactuals=("stay away from the goal",))
        policy = constant(0.0, 0.0)
        run_episode(PlaneSimulator(task), policy, KEY, RolloutProtocol(instruction_condition=condition))
        told = {request.observation.instruction for request in policy.requests}
        assert told == {task.instruction(KEY, condition)}
        assert all(request.observation.workspace == PLANE.workspace for request in policy.requests)
