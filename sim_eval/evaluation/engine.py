"""The one episode loop: scoring, collecting and replaying all run through :func:`run_episode`.

Chunking is implemented here and nowhere else: the policy returns a chunk of actions, the engine executes the first
part of it, observes again and calls the policy again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import (
    ActionChunk,
    ActionSpec,
    EpisodeKey,
    FloatArray,
    InstructionCondition,
    Observation,
    Recorder,
    RenderConfig,
    Simulator,
    Status,
    Task,
    observe_task,
)
from sim_eval.policies.policy import Policy, PolicyRequest

# Correlation of the disturbance from one control step to the next: at 20 Hz a push lasts about half a second, long
# enough to lead the arm off the demonstrator's path instead of averaging out.
DISTURBANCE_CORRELATION = 0.9
# Mean length in control steps of a burst of disturbance.
BURST_STEPS = 8


@dataclass(frozen=True)
class RolloutProtocol:
    """How episodes are run; scores are comparable only under one protocol.

    Attributes:
        n_action_steps: control steps executed of each chunk before the policy is called again.
        post_success_steps: control steps after the first success, so that success at the end has a meaning.
        instruction_condition: "counterfactual" gives the policy the instruction of another goal than the one scored.
        render: how the task is rendered.
        other_robot: the policy was trained for another robot than that of a task.
    """

    n_action_steps: int = 4
    post_success_steps: int = 10
    instruction_condition: InstructionCondition = "correct"
    render: RenderConfig = field(default_factory=RenderConfig)
    other_robot: bool = False

    def __post_init__(self) -> None:
        if self.n_action_steps < 1:
            raise SimEvalError(f"n_action_steps must be 1 or more, not {self.n_action_steps}")
        if self.post_success_steps < 0:
            raise SimEvalError(f"post_success_steps must be 0 or more, not {self.post_success_steps}")


@dataclass(frozen=True)
class EpisodeResult:
    """The result of one episode. All fields but ``seconds`` are the same whenever the episode is run again.

    Attributes:
        key: the episode.
        instruction: the sentence that the policy was given.
        success: whether the task's rule held at some step.
        success_end: whether it held at the last step.
        steps: control steps.
        first_success: the control step (from 1) at which the rule first held; None: never.
        phase: the furthest of the task's phases that was reached; "none" before the first.
        policy_calls: number of calls of the policy.
        error: why the episode broke off, one line; None: it did not. An episode with an error is a failure.
        seconds: wall-clock time.
    """

    key: EpisodeKey
    instruction: str
    success: bool
    success_end: bool
    steps: int
    first_success: int | None
    phase: str
    policy_calls: int
    error: str | None
    seconds: float = field(compare=False)


def lost_episode(
    task: Task, key: EpisodeKey, instruction_condition: InstructionCondition, error: str, seconds: float
) -> EpisodeResult:
    """The result of an episode whose worker died or hung: a failure."""
    return EpisodeResult(
        key, task.instruction(key, instruction_condition), False, False, 0, None, "none", 0, error, seconds
    )


class _BrokenEpisode(Exception):
    """Ends one episode, but not the run."""


@contextmanager
def _blame(who: str) -> Iterator[None]:
    """Turns an exception of the policy or the simulator into a :class:`_BrokenEpisode` of one line."""
    try:
        yield
    except _BrokenEpisode:
        raise
    except Exception as error:
        raise _BrokenEpisode(" ".join(f"{who}: {type(error).__name__}: {error}".split())) from error


def _ask(
    simulator: Simulator, policy: Policy, key: EpisodeKey, instruction: str, policy_call: int
) -> tuple[Observation, ActionChunk]:
    """An observation with the cameras of the policy's spec, and the policy's chunk."""
    with _blame("simulator"):
        observation = observe_task(simulator, instruction, tuple(policy.spec.cameras))
        privileged = simulator.privileged() if policy.spec.privileged else None
    with _blame("policy"):
        (chunk,) = policy.predict([PolicyRequest(observation, key, policy_call, simulator.spec.action, privileged)])
        return observation, replace(chunk, actions=_checked(chunk.actions, simulator.spec.action))


def _checked(actions: FloatArray, spec: ActionSpec) -> FloatArray:
    """Actions [chunk size, dim] clipped to the bounds; refuses another shape and non-finite numbers."""
    actions = np.asarray(actions, dtype=np.float64)
    if actions.ndim != 2 or len(actions) == 0 or actions.shape[1] != spec.dim:
        raise _BrokenEpisode(f"policy: action chunk of shape {actions.shape}, [1 or more, {spec.dim}] is needed")
    if not np.isfinite(actions).all():
        raise _BrokenEpisode("policy: action chunk holds numbers that are not finite")
    return spec.clip(actions)


class Disturbance:
    """Temporally correlated unit noise (stationary AR(1)), in bursts; one draw [dim] a control step."""

    def __init__(self, key: EpisodeKey, dim: int) -> None:
        self._rng, self._bursts = key.rng("disturbance"), key.rng("bursts")
        self._noise = self._rng.standard_normal(dim)
        self._on = False

    def draw(self, share: float) -> FloatArray:
        """The next draw [dim]; zeros between bursts, which take ``share`` of all control steps."""
        fresh = self._rng.standard_normal(self._noise.shape)
        self._noise = DISTURBANCE_CORRELATION * self._noise + np.sqrt(1 - DISTURBANCE_CORRELATION**2) * fresh
        # A Markov chain of two states, which is on for BURST_STEPS on average and for the share in the long run.
        begin = min(1.0, share / (1 - share) / BURST_STEPS) if share < 1 else 1.0
        end = 1 / BURST_STEPS if share < 1 else 0.0
        change = self._bursts.random() < (end if self._on else begin)
        self._on = self._on != change
        return self._noise if self._on else np.zeros_like(self._noise)


def run_episode(
    simulator: Simulator,
    policy: Policy,
    key: EpisodeKey,
    protocol: RolloutProtocol,
    recorder: Recorder | None = None,
    disturb: bool = False,
) -> EpisodeResult:
    """Runs one episode until ``post_success_steps`` after its first success, or until the task's ``max_episode_steps``.

    Args:
        disturb: add the policy's disturbance to each executed action (DART, Laskey et al. 2017), but not to its label.

    Returns:
        The result. An exception of the policy or the simulator ends the episode only, as a failure with ``error`` set;
        a recorder's exception and KeyboardInterrupt propagate.
    """
    began = time.perf_counter()
    recorder = recorder or Recorder()
    task, spec = simulator.task, simulator.spec.action
    instruction = task.instruction(key, protocol.instruction_condition)
    noise = Disturbance(key, spec.dim) if disturb else None
    steps = policy_calls = phase = 0
    first_success: int | None = None
    success_end, error = False, None
    started = False
    try:
        with _blame("simulator"):
            simulator.reset(key)
        recorder.start(simulator, key, instruction)
        started = True
        last = task.max_episode_steps
        while steps < last:
            observation, chunk = _ask(simulator, policy, key, instruction, policy_calls)
            policy_calls += 1
            recorder.asked(observation, chunk)
            for label in chunk.actions[: protocol.n_action_steps]:
                executed = label
                if noise is not None and chunk.disturbance is not None:
                    with _blame("policy"):
                        executed = spec.clip(label + chunk.disturbance * noise.draw(chunk.disturbed_share))
                recorder.before_act(simulator, label, executed)
                with _blame("simulator"):
                    status = simulator.act(executed)
                steps += 1
                recorder.after_act(simulator, status)
                success_end, phase = status.success, max(phase, status.phase)
                if status.success and first_success is None:
                    first_success = steps
                    last = min(task.max_episode_steps, steps + protocol.post_success_steps)
                if steps >= last:
                    break
    except _BrokenEpisode as broken:
        error, first_success, success_end = str(broken), None, False
    if started:
        recorder.finish(simulator, first_success is not None)
    return EpisodeResult(
        key=key,
        instruction=instruction,
        success=first_success is not None,
        success_end=success_end,
        steps=steps,
        first_success=first_success,
        phase=task.phases[phase - 1] if phase else "none",
        policy_calls=policy_calls,
        error=error,
        seconds=time.perf_counter() - began,
    )


class Recorders(Recorder):
    """Several recorders as one."""

    def __init__(self, *recorders: Recorder) -> None:
        self._recorders = recorders

    def start(self, simulator: Simulator, key: EpisodeKey, instruction: str) -> None:
        for recorder in self._recorders:
            recorder.start(simulator, key, instruction)

    def asked(self, observation: Observation, chunk: ActionChunk) -> None:
        for recorder in self._recorders:
            recorder.asked(observation, chunk)

    def before_act(self, simulator: Simulator, label: FloatArray, executed: FloatArray) -> None:
        for recorder in self._recorders:
            recorder.before_act(simulator, label, executed)

    def after_act(self, simulator: Simulator, status: Status) -> None:
        for recorder in self._recorders:
            recorder.after_act(simulator, status)

    def finish(self, simulator: Simulator, success: bool) -> None:
        for recorder in self._recorders:
            recorder.finish(simulator, success)

    def still_working(self) -> None:
        for recorder in self._recorders:
            recorder.still_working()
