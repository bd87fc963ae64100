"""The jobs of a process that runs episodes, to score or to collect them: policy, simulator and recorders."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from sim_eval.configs import CollectConfig, RolloutConfig
from sim_eval.core.errors import SimEvalError
from sim_eval.core.resources import return_memory, uncollected
from sim_eval.core.types import EnvironmentSpec, EpisodeKey, Recorder, RenderConfig, Simulator
from sim_eval.envs.tasks import get_task
from sim_eval.evaluation.batching import AskingPolicy
from sim_eval.evaluation.engine import EpisodeResult, Recorders, RolloutProtocol, run_episode
from sim_eval.evaluation.trajectory import TrajectoryRecorder
from sim_eval.evaluation.workers import HeartbeatRecorder, Link, Play
from sim_eval.policies.policy import InferenceConfig, Policy, PolicySpec, check_fit
from sim_eval.policies.registry import is_remote, load_policy

# Picklable, so that each worker makes its own recorder. That calls ``still_working`` while it works after an episode.
RecorderFactory: TypeAlias = Callable[[Callable[[], None]], Recorder]


@dataclass(frozen=True)
class PolicySource:
    """How a policy is loaded; see :func:`sim_eval.policies.registry.load_policy`.

    Attributes:
        threads: torch's CPU threads after loading.
    """

    reference: str
    device: str
    inference: InferenceConfig
    threads: int
    keys: Path | None = None

    @classmethod
    def of(cls, config: RolloutConfig) -> PolicySource:
        """The policy of a rollout."""
        inference = InferenceConfig(config.euler_steps, config.weights, config.compile)
        return cls(config.policy, config.device, inference, config.threads, config.keys)

    def load(self) -> Policy:
        with uncollected():
            policy = load_policy(self.reference, self.device, self.inference, self.keys)
        if torch := sys.modules.get("torch"):  # a policy without a network does not load it
            torch.set_num_threads(self.threads)
        return policy

    def elsewhere(self, policy: Policy) -> bool:
        """Whether it computes on a GPU or a server, which may not have room for a copy for each worker.

        Args:
            policy: that this source has loaded.
        """
        if (device := getattr(policy, "device", None)) is not None:
            return bool(device.type != "cpu")
        torch = sys.modules.get("torch")
        return is_remote(self.reference) or (torch is not None and torch.cuda.is_initialized())


class OneSimulator:
    """The simulator of the current task. Another task's replaces it, so memory does not grow with the tasks."""

    def __init__(self, options: RenderConfig) -> None:
        self._options = options
        self._open: Simulator | None = None

    def of(self, task: str) -> Simulator:
        if self._open is None or self._open.task.name != task:
            self.close()
            with uncollected():
                self._open = get_task(task).make(self._options)
            return_memory()  # MuJoCo's compiler has taken more than a hundred megabytes for a while
        return self._open

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


@dataclass(frozen=True)
class EpisodeJob(ABC):
    """How episodes are run and recorded; small, since it is sent to workers.

    Attributes:
        spec: of the policy.
        folder: for the recordings.
        source: of a worker's own copy of the policy; None: it calls its parent's.
    """

    spec: PolicySpec
    protocol: RolloutProtocol
    folder: Path
    source: PolicySource | None = field(default=None, kw_only=True)

    @abstractmethod
    def player(self, policy: Policy, simulators: OneSimulator, *recorders: Recorder) -> Play[EpisodeResult]:
        """Runs episodes in this process."""

    @contextmanager
    def __call__(self, link: Link) -> Iterator[Play[EpisodeResult]]:
        """As a worker's job."""
        policy: Policy = self.source.load() if self.source else AskingPolicy(self.spec, link.ask)
        if policy.spec != self.spec:
            raise SimEvalError(
                f"policy '{self.spec.name}' changed while the run went on: restore it and resume the run"
            )
        with closing(OneSimulator(self.protocol.render)) as simulators:
            yield self.player(policy, simulators, HeartbeatRecorder(link))


@dataclass(frozen=True)
class RolloutJob(EpisodeJob):
    """How a run's episodes are scored; their trajectories are recorded in its folder.

    Attributes:
        recorders: make further recorders.
        threads: torch's threads in the process of a shared policy; None: it has no torch, or the policy is not shared.
    """

    recorders: tuple[RecorderFactory, ...] = ()
    threads: int | None = None

    def player(self, policy: Policy, simulators: OneSimulator, *recorders: Recorder) -> Play[EpisodeResult]:
        trajectories = TrajectoryRecorder(self.spec, self.folder, self.threads)
        still_working = Recorders(*recorders).still_working
        recorder = Recorders(*recorders, trajectories, *(make(still_working) for make in self.recorders))
        return lambda key: run_episode(simulators.of(key.task), policy, key, self.protocol, recorder)


@dataclass(frozen=True)
class CollectJob(EpisodeJob):
    """Runs episodes as demonstrations and writes a file for each into the folder.

    Attributes:
        config: the options of the collection.
        recorded: task -> cameras (name -> height, width) of the episodes that the folder already holds.
    """

    config: CollectConfig
    recorded: Mapping[str, Mapping[str, tuple[int, int]]] = field(default_factory=dict)

    @property
    def cameras(self) -> tuple[str, ...]:
        """The cameras to record; empty: all."""
        return tuple(name.strip() for name in self.config.cameras.split(",") if name.strip())

    def player(self, policy: Policy, simulators: OneSimulator, *recorders: Recorder) -> Play[EpisodeResult]:
        from sim_eval.datasets.recorder import DemonstrationRecorder, is_kept

        config = self.config
        demonstrations = DemonstrationRecorder(
            self.folder, self.protocol.render, config.keep_failures, cameras=self.cameras or None
        )
        recorder = Recorders(*recorders, demonstrations)

        def play(key: EpisodeKey) -> EpisodeResult:
            simulator = simulators.of(key.task)
            check_fit(policy.spec, simulator.spec)
            self._check_cameras(key.task, simulator.spec)
            if config.dry_run_first:
                result = run_episode(simulator, policy, key, self.protocol, Recorders(*recorders), config.disturb)
                if not is_kept(result.success, result.steps, config.keep_failures):
                    return result
            return run_episode(simulator, policy, key, self.protocol, recorder, config.disturb)

        return play

    def _check_cameras(self, task: str, spec: EnvironmentSpec) -> None:
        """Refuses an unknown camera, and cameras that differ from those of the existing episodes.

        Raises:
            SimEvalError: names them.
        """
        if unknown := [name for name in self.cameras if name not in spec.cameras]:
            raise SimEvalError(f"--cameras: {task} has no camera '{unknown[0]}', it has {', '.join(spec.cameras)}")
        cameras = {name: spec.cameras[name] for name in self.cameras or spec.cameras}
        if (recorded := self.recorded.get(task, cameras)) != cameras:
            raise SimEvalError(
                f"{self.folder} holds pictures of {dict(recorded)}, this command makes {cameras}: choose another --out "
                "or the same --cameras"
            )
