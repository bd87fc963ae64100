"""What a process needs to score episodes of a run: the policy, one simulator at a time, and the recorders."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sim_eval.envs.contract import EpisodeKey, SimEvalError, Simulator, SimulatorOptions
from sim_eval.envs.tasks import get_task
from sim_eval.evaluation.batching import AskingPolicy
from sim_eval.evaluation.engine import EpisodeResult, Recorder, Recorders, RolloutProtocol, run_episode
from sim_eval.evaluation.run_folder import VIDEOS
from sim_eval.evaluation.trajectory import TrajectoryRecorder
from sim_eval.evaluation.workers import Link, Play, Pulse
from sim_eval.policies.policy import Inference, Policy, PolicySpec, load_policy
from sim_eval.reporting.video import VideoChoice, VideoRecorder


@dataclass(frozen=True)
class PolicySource:
    """Where a policy is loaded from; see :func:`load_policy`.

    Attributes:
        threads: torch's CPU threads from then on.
    """

    reference: str
    device: str
    inference: Inference
    threads: int
    keys: Path | None = None

    def load(self) -> Policy:
        policy = load_policy(self.reference, self.device, self.inference, self.keys)
        if torch := sys.modules.get("torch"):  # a policy without a network does not load it
            torch.set_num_threads(self.threads)
        return policy


class OneSimulator:
    """The simulator of the task at hand. Another task's takes its place, so memory does not grow with the tasks."""

    def __init__(self, options: SimulatorOptions) -> None:
        self._options = options
        self._open: Simulator | None = None

    def of(self, task: str) -> Simulator:
        if self._open is None or self._open.task.name != task:
            self.close()
            self._open = get_task(task).make(self._options)
        return self._open

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


@dataclass(frozen=True)
class Scoring:
    """How a run's episodes are scored, and recorded in its folder; small, so that it can be sent to a worker.

    Attributes:
        spec: of the policy.
        source: where a worker loads its own copy of the policy; None: it asks its parent's.
        threads: torch's, in the process whose policy is asked; None: it has no torch, or each has its own copy.
    """

    spec: PolicySpec
    protocol: RolloutProtocol
    folder: Path
    video: VideoChoice
    source: PolicySource | None = None
    threads: int | None = None

    def player(self, policy: Policy, simulators: OneSimulator, *recorders: Recorder) -> Play[EpisodeResult]:
        """Runs episodes in this process."""
        trajectories = TrajectoryRecorder(self.folder, self.threads)
        watched = trajectories.watch(policy)
        kept: list[Recorder] = [*recorders, trajectories]
        if self.video != "none":
            kept.append(VideoRecorder(self.folder / VIDEOS, self.spec.name, self.video, self.protocol.telling))
        recorder = Recorders(*kept)

        def play(key: EpisodeKey) -> EpisodeResult:
            return run_episode(simulators.of(key.task), watched, key, self.protocol, recorder)

        return play

    @contextmanager
    def __call__(self, link: Link) -> Iterator[Play[EpisodeResult]]:
        """As a worker's job."""
        policy: Policy = self.source.load() if self.source else AskingPolicy(self.spec, link.ask)
        if policy.spec != self.spec:
            raise SimEvalError(
                f"policy '{self.spec.name}' changed while the run went on: restore it and resume the run"
            )
        with closing(OneSimulator(self.protocol.simulator)) as simulators:
            yield self.player(policy, simulators, Pulse(link))
