"""Demonstrations against the environment: pictures rendered again, actions played through the evaluation's engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import ActionChunk, EnvironmentSpec, FloatArray, Recorder, Simulator
from sim_eval.diagnosis.findings import Finding, Level, graded, level_above
from sim_eval.diagnosis.pictures import Pair, picture_findings
from sim_eval.evaluation.engine import RolloutProtocol, run_episode
from sim_eval.policies.policy import PolicyRequest, PolicySpec

if TYPE_CHECKING:
    from sim_eval.datasets.episode_file import Episode, EpisodeHeader

# Path of the end effector as recorded, against the path that the same actions make it travel here. Recorded at 10, 15
# and 40 Hz and played back at 20, it is 1.85, 1.30 and 0.6 times as long.
MOTION = (0.8, 1.25)


@dataclass(frozen=True)
class Catalogue:
    """The demonstrations of some folders.

    Attributes:
        headers: of every sound file, in the order of their keys.
        problems: one sentence each: files that are damaged, or that may not be used together.
    """

    headers: Mapping[Path, EpisodeHeader]
    problems: tuple[str, ...]

    @property
    def spec(self) -> EnvironmentSpec | None:
        """What the first of them holds."""
        return next((header.spec for header in self.headers.values()), None)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(header.key.task for header in self.headers.values()))

    def of(self, task: str) -> dict[Path, EpisodeHeader]:
        return {path: header for path, header in self.headers.items() if header.key.task == task}

    def chosen(self, task: str, count: int) -> list[Path]:
        """At most so many of a task's successful episodes, evenly spread over its keys."""
        good = [path for path, header in self.of(task).items() if header.success]
        places = np.unique(np.linspace(0, len(good) - 1, min(count, len(good))).round().astype(int))
        return [good[place] for place in places]


def catalogue(folders: Sequence[Path]) -> Catalogue:
    """Looks through folders of episodes.

    Raises:
        SimEvalError: a folder holds none.
    """
    from sim_eval.datasets.checks import check_episode, set_problems
    from sim_eval.datasets.episode_file import episode_files, read_header

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


def catalogue_findings(found: Catalogue) -> Iterator[Finding]:
    if found.problems:
        more = f" (and {len(found.problems) - 1} more)" if len(found.problems) > 1 else ""
        yield Finding("files", "fault", found.problems[0] + more, "collect these episodes again or take them out")
    else:
        counts = ", ".join(f"{len(found.of(task))} of {task}" for task in found.tasks)
        yield Finding("files", "ok", f"sound and of one kind: {counts}")


def first_pictures(simulator: Simulator, episodes: Sequence[Episode]) -> Iterator[Finding]:
    """The first observation of each episode against what the environment shows at that episode's key now."""
    starts, pairs = [], dict[str, list[Pair]]()
    for episode in episodes:
        simulator.reset(episode.key)
        starts.append(_difference(episode.states[0], simulator.snapshot().state))
        seen, recorded = simulator.observe().views, episode.observations[0].views
        for name in recorded.keys() & seen.keys():
            pairs.setdefault(name, []).append((recorded[name], seen[name]))
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
    """Answers with what was executed in a recorded episode; past its end, with nothing moving."""

    spec = PolicySpec(name="recorded actions")

    def __init__(self, episode: Episode, n_action_steps: int) -> None:
        self._actions, self._replan = episode.executed_actions, n_action_steps

    def predict(self, requests: Sequence[PolicyRequest]) -> list[ActionChunk]:
        return [ActionChunk(self._chunk(request)) for request in requests]

    def _chunk(self, request: PolicyRequest) -> FloatArray:
        start = request.policy_call * self._replan
        chunk = self._actions[start : start + self._replan]
        return chunk if len(chunk) else np.zeros((self._replan, request.action.dim))


class PathRecorder(Recorder):
    """Keeps where the end effector was before each action, and the state that the simulator was in."""

    def __init__(self) -> None:
        self.positions: list[FloatArray] = []
        self.states: list[FloatArray] = []

    def before_act(self, simulator: Simulator, label: FloatArray, executed: FloatArray) -> None:
        self.positions.append(simulator.observe(()).proprio["eef_pos"])
        self.states.append(simulator.snapshot().state)


@dataclass(frozen=True)
class Replay:
    """A recorded success, played again.

    Attributes:
        success: it succeeds again.
        identical: every state before an action is the recorded one, bit for bit.
        drift: largest distance, in metres, of the end effector from where it was recorded.
        motion: length of the end effector's recorded path over that of the path here.
        error: why it broke off; None: it did not.
    """

    success: bool
    identical: bool
    drift: float
    motion: float
    error: str | None


def replay(simulator: Simulator, episode: Episode, protocol: RolloutProtocol) -> Replay:
    """Plays the executed actions of an episode through the engine that scores policies."""
    paths = PathRecorder()
    result = run_episode(simulator, Playback(episode, protocol.n_action_steps), episode.key, protocol, paths)
    there = np.array([seen.proprio["eef_pos"] for seen in episode.observations])
    count = min(len(there), len(paths.positions))
    if count < 2:
        return Replay(result.success, False, float("inf"), float("nan"), result.error)
    here, there = np.array(paths.positions[:count]), there[:count]
    identical = all(np.array_equal(*states) for states in zip(paths.states, episode.states, strict=False))
    lengths = [float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum()) for path in (there, here)]
    drift = float(np.linalg.norm(here - there, axis=1).max())
    return Replay(result.success, identical, drift, lengths[0] / max(lengths[1], 1e-9), result.error)


def replay_findings(replays: Sequence[Replay]) -> Iterator[Finding]:
    """What the replays of successful demonstrations prove of the way from an action to its effect."""
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
