"""The one episode loop: scoring, collecting and replaying all run through :func:`run_episode`.

Chunking lives here and nowhere else: the policy answers with a chunk of actions, the engine executes its first part,
looks again and asks again.
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
)
from sim_eval.policies.policy import Policy, PolicyRequest

# Correlation of the disturbance from one control step to the next: at 20 Hz a push lasts about half a second, long
# enough to lead the arm off the expert's path instead of averaging out.
DISTURBANCE_CORRELATION = 0.9
# Control steps that a burst of disturbance lasts on average, where a policy wants it in bursts.
BURST_STEPS = 8


@dataclass(frozen=True)
class RolloutProtocol:
    """How episodes are run; scores compare only under one protocol.

    Attributes:
        replan: control steps executed of each chunk before the policy is asked again.
        settle_steps: control steps that go on after the first success, so that success at the end has a meaning.
        telling: "counterfactual" tells the policy another goal's instruction than the one that is scored.
        simulator: how the task is shown.
    """

    n_action_steps: int = 4
    post_success_steps: int = 10
    instruction_condition: InstructionCondition = "correct"
    render: RenderConfig = field(default_factory=RenderConfig)

    def __post_init__(self) -> None:
        if self.n_action_steps < 1:
            raise SimEvalError(f"replan must be 1 or more control steps, not {self.n_action_steps}")
        if self.post_success_steps < 0:
            raise SimEvalError(f"settle_steps must be 0 or more control steps, not {self.post_success_steps}")


@dataclass(frozen=True)
class EpisodeResult:
    """What came of one episode. All fields but ``seconds`` are its identity: run again, they are the same.

    Attributes:
        key: the episode.
        instruction: the sentence the policy was given.
        success: the task's rule held at some step.
        success_end: it held at the last step.
        steps: control steps made.
        first_success: the control step (from 1) at which the rule first held; None: never.
        phase: the furthest of the task's phases that was reached; "none" before the first.
        replans: how many times the policy was asked.
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
    """The result of an episode whose process never came to its end: a failure, however far it was."""
    return EpisodeResult(
        key, task.instruction(key, instruction_condition), False, False, 0, None, "none", 0, error, seconds
    )


class _BrokenEpisode(Exception):
    """One episode cannot go on; the run can."""


@contextmanager
def _blame(who: str) -> Iterator[None]:
    """Turns any exception of a policy or simulator into one line. A recorder's exceptions are not the episode's."""
    try:
        yield
    except _BrokenEpisode:
        raise
    except Exception as error:
        raise _BrokenEpisode(" ".join(f"{who}: {type(error).__name__}: {error}".split())) from error


def _ask(
    simulator: Simulator, policy: Policy, key: EpisodeKey, instruction: str, policy_call: int
) -> tuple[Observation, ActionChunk]:
    """One observation, with no more in it than the policy's spec names, and the policy's answer."""
    with _blame("simulator"):
        observation = replace(simulator.observe(tuple(policy.spec.cameras)), instruction=instruction)
        privileged = simulator.privileged() if policy.spec.privileged else None
    with _blame("policy"):
        (chunk,) = policy.predict([PolicyRequest(observation, key, policy_call, simulator.spec.action, privileged)])
        return observation, replace(chunk, actions=_checked(chunk.actions, simulator.spec.action))


def _checked(actions: FloatArray, spec: ActionSpec) -> FloatArray:
    """Actions [horizon, dim] in the bounds; refuses another shape and non-finite numbers."""
    actions = np.asarray(actions, dtype=np.float64)
    if actions.ndim != 2 or len(actions) == 0 or actions.shape[1] != spec.dim:
        raise _BrokenEpisode(f"policy: action chunk of shape {actions.shape}, [1 or more, {spec.dim}] is needed")
    if not np.isfinite(actions).all():
        raise _BrokenEpisode("policy: action chunk holds numbers that are not finite")
    return spec.clip(actions)


class Disturbance:
    """Temporally correlated unit noise (stationary AR(1)), one draw [dim] a control step, and when it is on."""

    def __init__(self, key: EpisodeKey, dim: int) -> None:
        self._rng, self._bursts = key.rng("disturbance"), key.rng("bursts")
        self._noise = self._rng.standard_normal(dim)
        self._on = False

    def draw(self, share: float) -> FloatArray:
        """The next draw [dim]; zeros between bursts, which take up ``share`` of all control steps."""
        fresh = self._rng.standard_normal(self._noise.shape)
        self._noise = DISTURBANCE_CORRELATION * self._noise + np.sqrt(1 - DISTURBANCE_CORRELATION**2) * fresh
        # A chain of two states that is on for BURST_STEPS and in the long run for the share.
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
    """Runs one episode to ``settle_steps`` after its first success, or to the task's horizon.

    Args:
        disturb: execute each label with the policy's disturbance added (DART, Laskey et al. 2017); labels stay clean.

    Returns:
        The result. An exception of the policy or the simulator ends the episode only, as a failure with ``error`` set;
        a recorder's exception and KeyboardInterrupt pass through.
    """
    began = time.perf_counter()
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
        if recorder:
            recorder.start(simulator, key, instruction)
        started = True
        last = task.max_episode_steps
        while steps < last:
            observation, chunk = _ask(simulator, policy, key, instruction, policy_calls)
            policy_calls += 1
            if recorder:
                recorder.asked(observation, chunk)
            for label in chunk.actions[: protocol.n_action_steps]:
                executed = label
                if noise is not None and chunk.disturbance is not None:
                    with _blame("policy"):
                        executed = spec.clip(label + chunk.disturbance * noise.draw(chunk.disturbed_share))
                if recorder:
                    recorder.before_act(simulator, label, executed)
                with _blame("simulator"):
                    status = simulator.act(executed)
                steps += 1
                if recorder:
                    recorder.after_act(simulator, status)
                success_end, phase = status.success, max(phase, status.phase)
                if status.success and first_success is None:
                    first_success = steps
                    last = min(task.max_episode_steps, steps + protocol.post_success_steps)
                if steps >= last:
                    break
    except _BrokenEpisode as broken:
        error, first_success, success_end = str(broken), None, False
    if recorder and started:
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
