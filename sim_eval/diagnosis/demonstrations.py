"""Demonstrations against the environment: pictures are rendered again, and actions replayed by the engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import ActionChunk, EnvironmentSpec, FloatArray, Recorder, Simulator
from sim_eval.datasets.checks import check_episode, set_problems
from sim_eval.datasets.episode_file import Episode, EpisodeHeader, episode_files, read_header
from sim_eval.diagnosis.findings import Finding, Level, graded, level_above
from sim_eval.diagnosis.pictures import Pair, picture_findings
from sim_eval.evaluation.engine import RolloutProtocol, run_episode
from sim_eval.policies.policy import PolicyRequest, PolicySpec

# Length of the end effector's recorded path over that of the path with the same actions here. Recorded at 10, 15 and
# 40 Hz and played back at 20 Hz, it is 1.85, 1.30 and 0.6.
MOTION = (0.8, 1.25)


@dataclass(frozen=True)
class Catalogue:
    """The demonstrations of some folders.

    Attributes:
        headers: of every sound file, in the order of their keys.
        problems: files that are damaged or may not be used together, one sentence each.
    """

    headers: Mapping[Path, EpisodeHeader]
    problems: tuple[str, ...]

    @property
    def spec(self) -> EnvironmentSpec | None:
        """The environment of the first of them."""
        return next((header.spec for header in self.headers.values()), None)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(header.key.task for header in self.headers.values()))

    def of(self, task: str) -> dict[Path, EpisodeHeader]:
        return {path: header for path, header in self.headers.items() if header.key.task == task}

    def chosen(self, task: str, count: int) -> list[Path]:
        """At most ``count`` of a task's successful episodes, evenly spread over its keys."""
        good = [path for path, header in self.of(task).items() if header.success]
        places = np.unique(np.linspace(0, len(good) - 1, min(count, len(good))).round().astype(int))
        return [good[place] for place in places]


def catalogue(folders: Sequence[Path]) -> Catalogue:
    """Reads the headers of all episodes in some folders.

    Raises:
        SimEvalError: a folder has no episodes.
    """
    headers, problems = {}, []
    for folder in folders:
        files = episode_files(folder)
        if not files:
            raise SimEvalError(f"no demonstrations in {folder}: give --data a folder that sim_eval.collect filled")
        for path in files:
            try:
                problems += [f"{path}: {problem}" for problem in check_episode(path)]
                headers[path] = read_header(path)
            except SimEvalError as error:
                problems.append(str(error))
    ordered = dict(sorted(headers.items(), key=lambda entry: entry[1].key))
    return Catalogue(ordered, (*problems, *set_problems(ordered)))


def catalogue_findings(data: Catalogue) -> Iterator[Finding]:
    if data.problems:
        more = f" (and {len(data.problems) - 1} more)" if len(data.problems) > 1 else ""
        yield Finding("files", "fault", data.problems[0] + more, "collect these episodes again or remove them")
    else:
        counts = ", ".join(f"{len(data.of(task))} of {task}" for task in data.tasks)
        yield Finding("files", "ok", f"sound and of one kind: {counts}")


def first_pictures(simulator: Simulator, episodes: Sequence[Episode]) -> Iterator[Finding]:
    """The first observation of each episode against the environment's at the same key."""
    starts, pairs = [], dict[str, list[Pair]]()
    for episode in episodes:
        simulator.reset(episode.key)
        starts.append(_difference(episode.states[0], simulator.snapshot().state))
        rendered, recorded = simulator.observe().views, episode.observations[0].views
        for name in recorded.keys() & rendered.keys():
            pairs.setdefault(name, []).append((recorded[name], rendered[name]))
    yield graded(
        "initial states",
        level_above(max(starts), 1e-6, 1e-2),
        "bit-identical" if max(starts) == 0 else f"differ by up to {max(starts):.2g}",
        "install the versions that the demonstrations name, or collect them again",
    )
    for name, views in sorted(pairs.items()):
        yield from picture_findings(name, views)


def _difference(one: FloatArray, other: FloatArray) -> float:
    return float(np.abs(one - other).max()) if one.shape == other.shape else float("inf")


class Playback:
    """Returns the executed actions of a recorded episode; after its end, zeros."""

    spec = PolicySpec(name="recorded actions")

    def __init__(self, episode: Episode, n_action_steps: int) -> None:
        self._actions, self._n_action_steps = episode.executed_actions, n_action_steps

    def predict(self, requests: Sequence[PolicyRequest]) -> list[ActionChunk]:
        return [ActionChunk(self._chunk(request)) for request in requests]

    def _chunk(self, request: PolicyRequest) -> FloatArray:
        start = request.policy_call * self._n_action_steps
        chunk = self._actions[start : start + self._n_action_steps]
        return chunk if len(chunk) else np.zeros((self._n_action_steps, request.action.dim))


class PathRecorder(Recorder):
    """Records the end effector's position and the simulator's state before each action."""

    def __init__(self) -> None:
        self.positions: list[FloatArray] = []
        self.states: list[FloatArray] = []

    def before_act(self, simulator: Simulator, label: FloatArray, executed: FloatArray) -> None:
        self.positions.append(simulator.observe(()).proprio["eef_pos"])
        self.states.append(simulator.snapshot().state)


@dataclass(frozen=True)
class Replay:
    """The replay of a successful episode.

    Attributes:
        success: whether it succeeds again.
        identical: whether every state before an action equals the recorded one bit for bit.
        drift: largest distance in metres of the end effector from its recorded position.
        motion: length of the end effector's recorded path over that of its path here.
        error: why it broke off; None: it did not.
    """

    success: bool
    identical: bool
    drift: float
    motion: float
    error: str | None


def replay(simulator: Simulator, episode: Episode, protocol: RolloutProtocol) -> Replay:
    """Replays the executed actions of an episode by the engine that scores policies."""
    paths = PathRecorder()
    result = run_episode(simulator, Playback(episode, protocol.n_action_steps), episode.key, protocol, paths)
    recorded = np.array([each.proprio["eef_pos"] for each in episode.observations])
    count = min(len(recorded), len(paths.positions))
    if count < 2:
        return Replay(result.success, False, float("inf"), float("nan"), result.error)
    here, recorded = np.array(paths.positions[:count]), recorded[:count]
    identical = all(np.array_equal(*states) for states in zip(paths.states, episode.states, strict=False))
    lengths = [float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum()) for path in (recorded, here)]
    drift = float(np.linalg.norm(here - recorded, axis=1).max())
    return Replay(result.success, identical, drift, lengths[0] / max(lengths[1], 1e-9), result.error)


def replay_findings(replays: Sequence[Replay]) -> Iterator[Finding]:
    """Whether the actions of successful demonstrations have the same effect here."""
    count, successes = len(replays), sum(each.success for each in replays)
    identical = sum(each.identical for each in replays)
    level: Level = "ok" if successes == count else "warning" if 2 * successes > count else "fault"
    drift = max(each.drift for each in replays)
    errors = [each.error for each in replays if each.error]
    yield graded(
        "replays",
        level,
        f"{successes} of {count} demonstrated successes succeed again, {identical} bit-identical; the end effector is "
        f"at most {1000 * drift:.1f} mm off" + "".join(f"; {error}" for error in errors[:1]),
        "actions mean something else here: check controller, control rate and versions, or collect again",
    )
    motion = float(np.median([each.motion for each in replays]))
    yield graded(
        "motion an action",
        "ok" if MOTION[0] <= motion <= MOTION[1] else "fault",
        f"the end effector travelled {motion:.2f} times as far as the same actions make it travel here",
        "record and evaluate at one control rate and one action scale",
    )
