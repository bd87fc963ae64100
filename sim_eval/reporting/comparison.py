"""Trainings beside each other: which runs scored them, and what their curves and scores count up to. No drawing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import EpisodeKey
from sim_eval.envs.tasks import get_task
from sim_eval.reporting.summary import Tally, summaries

if TYPE_CHECKING:
    from sim_eval.evaluation.engine import EpisodeResult, RolloutProtocol
    from sim_eval.evaluation.run_folder import Run
    from sim_eval.training.metadata import TrainingMetadata

VALIDATED, SCORED = "val", "test"
# Options that change what a training gives and are part of `changes`.
UNRECORDED = ("learning_rate", "normalization")

LeftOut: TypeAlias = tuple[Path, str]
Key = TypeVar("Key", str, int, tuple[int, tuple[tuple[str, int], ...]])


def pool(tallies: Iterable[Tally]) -> Tally:
    """All their episodes together."""
    counts = list(tallies)
    return Tally(sum(each.successes for each in counts), sum(each.episodes for each in counts))


@dataclass(frozen=True)
class Setting:
    """What a training was like but for its seed; trainings of one setting may be pooled.

    Attributes:
        expert, size, batch_size, flow_samples, sampling_temperature, device, threads: as in the record.
        changes: changed fields of the network, and :data:`UNRECORDED` options.
        budget: the minutes or steps it was given.
        demonstrations: (task, episodes), by name.
    """

    expert: str
    size: str
    changes: tuple[str, ...]
    batch_size: int
    flow_samples: int
    sampling_temperature: float
    budget: str
    device: str
    threads: int
    demonstrations: tuple[tuple[str, int], ...]

    @property
    def conditions(self) -> str:
        """All but expert and data, in words."""
        threads = f" ({self.threads} threads)" if self.device == "cpu" else ""
        return ", ".join(
            [
                f"{self.budget} on {self.device}{threads}",
                f"size {self.size}",
                f"batches of {self.batch_size} with {self.flow_samples} draws",
                f"sampling temperature {self.sampling_temperature:g}",
                *self.changes,
            ]
        )

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(task for task, _ in self.demonstrations)


@dataclass(frozen=True)
class Training:
    """A finished training."""

    folder: Path
    record: TrainingMetadata

    @property
    def setting(self) -> Setting:
        record, config = self.record, self.record.config
        changes = {name: value for name, value in config.changes().items() if name in UNRECORDED or "." in name}
        # A last validation comes after the time is up: how long it took is no part of what was given.
        minutes = record.rounds[-1].minutes if record.rounds else record.minutes
        by_clock = f"{minutes:.0f} minutes" if minutes >= 10 else f"{minutes:.1f} minutes"
        return Setting(
            expert=config.expert,
            size=record.size,
            changes=tuple(f"{name.removeprefix('network.')}={value}" for name, value in changes.items()),
            batch_size=config.batch_size,
            flow_samples=config.flow_samples,
            sampling_temperature=config.sampling_temperature,
            budget=by_clock if config.steps is None else f"{config.steps} steps",
            device=record.device,
            threads=record.threads,
            demonstrations=tuple(sorted(record.demonstrations.items())),
        )

    def count(self, task: str) -> int:
        """Demonstrations of a task."""
        return self.record.demonstrations.get(task, 0)


@dataclass(frozen=True)
class Tested:
    """What the complete test runs of one training found, run in one way, each episode once.

    Attributes:
        training: whose weights.
        protocol: of the episodes.
        variant: how the policy was run otherwise than its checkpoint says.
        results: by key.
    """

    training: Training
    protocol: RolloutProtocol
    variant: str
    results: tuple[EpisodeResult, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(result.key.task for result in self.results))

    def scores(self, at_end: bool = False) -> dict[tuple[str, str], Tally]:
        """(task, goal) -> tally; goal "" is the whole task, and the only one where a task has one goal.

        Args:
            at_end: count success at the last step, not at any.
        """
        return {
            (each.task, each.goal): Tally(each.successes_end if at_end else each.successes, each.episodes)
            for each in summaries(self.results)
        }


@dataclass(frozen=True)
class Comparison:
    """Finished trainings, their test results, and the folders that count in neither, each with the reason."""

    trainings: tuple[Training, ...]
    tested: tuple[Tested, ...]
    left_out: tuple[LeftOut, ...]


def compare(trainings: Sequence[Path], runs: Sequence[Path]) -> Comparison:
    """Reads the trainings and runs at or beneath the paths, and joins them by the digest of the weights.

    Raises:
        SimEvalError: a path does not exist.
    """
    from sim_eval.evaluation.run_folder import MANIFEST
    from sim_eval.training.metadata import METADATA

    found, bad_trainings = read_trainings(*folders_with(METADATA, trainings, "training"))
    tested, bad_runs = join(found, *folders_with(MANIFEST, runs, "run"))
    scored = {each.training.folder for each in tested}
    bare = [
        (each.folder, f"no complete {SCORED} run of its weights: python -m sim_eval.rollout --policy {each.folder}")
        for each in found
        if each.folder not in scored
    ]
    return Comparison(tuple(found), tuple(tested), (*bad_trainings, *bare, *bad_runs))


def folders_with(name: str, paths: Sequence[Path], what: str) -> tuple[list[Path], list[LeftOut]]:
    """Folders at or beneath the paths that hold a file of this name, each once, and the paths that have none.

    Raises:
        SimEvalError: a path does not exist.
    """
    found: dict[Path, Path] = {}
    empty = []
    for path in paths:
        if not path.exists():
            raise SimEvalError(f"{path} does not exist: name folders of {what}s")
        folders = sorted(file.parent for file in path.rglob(name))
        for folder in folders:
            found.setdefault(folder.resolve(), folder)
        if not folders:
            empty.append((path, f"no {what}: no {name} in it"))
    return list(found.values()), empty


def read_trainings(folders: Sequence[Path], left_out: Sequence[LeftOut]) -> tuple[list[Training], list[LeftOut]]:
    """Finished trainings of the folders, no weights twice; the others join those left out."""
    from sim_eval.training.metadata import read_metadata

    found: dict[str, Training] = {}
    out = list(left_out)
    for folder in folders:
        try:
            record = read_metadata(folder)
        except SimEvalError as error:
            out.append((folder, str(error)))
            continue
        if not (record.finished and record.digest):
            out.append(
                (folder, f"unfinished, {record.minutes:.1f} minutes so far: continue by `{record.config.command}`")
            )
        elif record.digest in found:
            out.append((folder, f"the same weights as {found[record.digest].folder}"))
        else:
            found[record.digest] = Training(folder, record)
    return list(found.values()), out


def join(
    trainings: Sequence[Training], folders: Sequence[Path], left_out: Sequence[LeftOut]
) -> tuple[list[Tested], list[LeftOut]]:
    """Test results of the trainings from run folders; runs that give none join those left out.

    Where runs of the same weights, variant and protocol share an episode, the one of the longest run counts.
    """
    from sim_eval.evaluation.run_folder import read_run

    by_digest = {each.record.digest: each for each in trainings}
    runs: list[Run] = []
    out = list(left_out)
    for folder in folders:
        try:
            run = read_run(folder)
            reason = unusable(run, by_digest)
        except SimEvalError as error:
            reason = str(error)
        if reason:
            out.append((folder, reason))
        else:
            runs.append(run)
    kept: dict[tuple[str, RolloutProtocol, str], dict[EpisodeKey, EpisodeResult]] = {}
    for run in sorted(runs, key=lambda run: (-len(run.episodes), str(run.folder))):
        results = kept.setdefault((run.digest, run.protocol, run.variant), {})
        fresh = {result.key: result for result in run.episodes if result.key not in results}
        if not fresh:
            out.append((run.folder, "its episodes were all counted from other runs of the same weights and protocol"))
        results.update(fresh)
    order = {digest: place for place, digest in enumerate(by_digest)}
    return [
        Tested(by_digest[digest], protocol, variant, tuple(results[key] for key in sorted(results)))
        for (digest, protocol, variant), results in sorted(kept.items(), key=lambda entry: order[entry[0][0]])
    ], out


def unusable(run: Run, known: Iterable[str]) -> str:
    """Why a run's results do not count, or nothing.

    Raises:
        SimEvalError: the run is of a task that does not exist.
    """
    splits = sorted({key.split for key in run.manifest.keys})
    for task in run.manifest.tasks:
        get_task(task)
    if not run.digest:
        return f"policy '{run.policy}' has no weights, so no training made it"
    if run.digest not in known:
        return f"no finished training here has its weights, {run.policy}@{run.digest[:8]}"
    if splits != [SCORED]:
        return f"{'/'.join(splits)} split: only the {SCORED} split is scored"
    if not run.complete:
        return f"{len(run.episodes)} of {len(run.manifest.keys)} episodes: resume it by rollout --out {run.folder}"
    return ""


@dataclass(frozen=True)
class Point:
    """A success rate at so many minutes or demonstrations, over the episodes of so many seeds."""

    x: float
    tally: Tally
    seeds: int = 1


@dataclass(frozen=True)
class Series:
    """One expert in one panel.

    Attributes:
        expert: its name.
        pooled: points over the episodes of all seeds; empty where seeds cannot be pooled point by point.
        seeds: each seed's own points.
    """

    expert: str
    pooled: tuple[Point, ...]
    seeds: tuple[tuple[Point, ...], ...]


@dataclass(frozen=True)
class Panel:
    """One task of a figure.

    Attributes:
        task: its name.
        conditions: what the trainings have in common, in words.
        series: one an expert, by name.
        shown: the trainings' folders.
    """

    task: str
    conditions: str
    series: tuple[Series, ...]
    shown: tuple[Path, ...]

    @property
    def sample(self) -> str:
        """What stands behind a point, such as "n = 60 (3 seeds of 20)"."""
        points = [point for series in self.series for point in series.pooled]
        each = span([point.tally.episodes for series in self.series for seed in series.seeds for point in seed])
        if not points:
            return f"n = {each} a seed, not pooled"
        if all(point.seeds == 1 for point in points):
            return f"n = {each} (1 seed)"
        together = span([point.tally.episodes for point in points])
        return f"n = {together} ({span([point.seeds for point in points])} seeds of {each})"


def span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def minutes_panels(trainings: Sequence[Training]) -> tuple[Panel, ...]:
    """Validated success against training minutes; a task's trainings differ in expert and seed only."""
    panels = []
    for task in sorted({task for each in trainings for entry in each.record.rounds for task in entry.success}):
        validated = [each for each in trainings if validation(each, task)]
        chosen = fullest(validated, lambda setting: replace(setting, expert=""))
        if not chosen:
            continue
        series = []
        for expert, members in grouped(chosen, lambda each: each.record.config.expert):
            seeds = tuple(validation(each, task) for each in members)
            series.append(Series(expert, pool_rounds(seeds), seeds))
        setting = chosen[0].setting
        data = ", ".join(f"{count} of {name}" for name, count in setting.demonstrations)
        conditions = f"{setting.conditions}; demonstrations: {data}"
        panels.append(Panel(task, conditions, tuple(series), tuple(each.folder for each in chosen)))
    return tuple(panels)


def validation(training: Training, task: str) -> tuple[Point, ...]:
    """A training's validations of one task."""
    tallies = [(entry.minutes, Tally(*entry.success.get(task, (0, 0)))) for entry in training.record.rounds]
    return tuple(Point(minutes, tally) for minutes, tally in tallies if tally.episodes)


def pool_rounds(seeds: Sequence[Sequence[Point]]) -> tuple[Point, ...]:
    """Seeds pooled round by round, at the mean of their minutes; nothing when they had unequally many rounds."""
    if len({len(points) for points in seeds}) != 1:
        return ()
    return tuple(
        Point(sum(point.x for point in each) / len(each), pool(point.tally for point in each), len(each))
        for each in zip(*seeds, strict=True)
    )


def demonstrations_panels(tested: Sequence[Tested]) -> tuple[Panel, ...]:
    """Test success, under one protocol, against the number of demonstrations of the task.

    A task's trainings are of the same tasks, and differ in number of demonstrations, expert and seed only. A task that
    was trained with one number of demonstrations only has no panel.
    """
    panels = []
    for task in sorted({task for each in tested for task, _ in each.scores()}):
        scores = {each.training.folder: score for each in tested if (score := each.scores().get((task, "")))}
        trained = [each.training for each in tested if each.training.folder in scores and each.training.count(task)]
        chosen = fullest(trained, lambda s: replace(s, expert="", demonstrations=tuple((name, 0) for name in s.tasks)))
        if len({each.count(task) for each in chosen}) < 2:
            continue
        series = tuple(
            data_series(expert, members, task, scores)
            for expert, members in grouped(chosen, lambda each: each.record.config.expert)
        )
        conditions = f"{chosen[0].setting.conditions}; trained on {', '.join(chosen[0].setting.tasks)}"
        panels.append(Panel(task, conditions, series, tuple(each.folder for each in chosen)))
    return tuple(panels)


def data_series(expert: str, members: Sequence[Training], task: str, scores: Mapping[Path, Tally]) -> Series:
    """One expert's scores, folder -> tally, by demonstrations of the task.

    Trainings whose other tasks had other data are not pooled, even with as many demonstrations of this one.
    """
    alike = grouped(members, lambda each: (each.count(task), each.setting.demonstrations))
    together = tuple(Point(count, pool(scores[each.folder] for each in same), len(same)) for (count, _), same in alike)
    seeds = tuple(
        tuple(
            Point(count, scores[each.folder])
            for count, same in grouped(mine, lambda each: each.count(task))
            for each in same
        )
        for _, mine in grouped(members, lambda each: each.record.config.seed)
    )
    return Series(expert, together, seeds)


def grouped(trainings: Iterable[Training], key: Callable[[Training], Key]) -> list[tuple[Key, list[Training]]]:
    """Trainings by a key, in the key's order, and within it by seed."""
    groups: dict[Key, list[Training]] = {}
    for training in sorted(trainings, key=lambda each: (each.record.config.seed, str(each.folder))):
        groups.setdefault(key(training), []).append(training)
    return sorted(groups.items(), key=lambda group: group[0])


def fullest(trainings: Sequence[Training], family: Callable[[Setting], Setting]) -> list[Training]:
    """The family of comparable trainings that shows most: numbers of demonstrations, experts, the network unchanged,
    trainings, minutes."""

    def worth(members: Sequence[Training]) -> tuple[float, ...]:
        return (
            len({each.setting.demonstrations for each in members}),
            len({each.record.config.expert for each in members}),
            not members[0].setting.changes,
            len(members),
            sum(each.record.minutes for each in members),
        )

    families: dict[Setting, list[Training]] = {}
    for training in trainings:
        families.setdefault(family(training.setting), []).append(training)
    return max(families.values(), key=worth, default=[])
