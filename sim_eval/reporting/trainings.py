"""Finished trainings and the test runs of their weights, as ``results`` reports them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sim_eval.configs import DEFAULT_MINUTES, TrainConfig
from sim_eval.core.errors import SimEvalError
from sim_eval.core.programs import command
from sim_eval.core.types import EpisodeKey
from sim_eval.evaluation.engine import EpisodeResult, RolloutProtocol
from sim_eval.evaluation.run_folder import MANIFEST, Run
from sim_eval.reporting.runs import LeftOut, complete_runs, folders_with
from sim_eval.reporting.summary import Tally, by_task, tally
from sim_eval.training.metadata import METADATA, TrainingMetadata, read_metadata

SCORED = "test"  # the split
# Fields of a configuration that are no change of its setting: the seed, paths and speed, and those that a setting has
# a field for.
NO_CHANGE = {*TrainConfig.FREE, *TrainConfig.BUDGETS, "seed", "expert", "demonstrations"}


@dataclass(frozen=True)
class Setting:
    """A training's configuration without its seed. Trainings of one setting are pooled.

    Attributes:
        expert: which of the two fusion experts.
        budget: the minutes or steps that were asked for.
        changes: every other field that is not at its default, as "field value".
        device: the device and, on a CPU, its threads: they decide what a budget of minutes is worth. With several
            processes also their number, since each has a batch of its own.
        demonstrations: (task, episodes), by name.
    """

    expert: str
    budget: str
    changes: tuple[str, ...]
    device: str
    demonstrations: tuple[tuple[str, int], ...]

    @property
    def conditions(self) -> str:
        """All but expert and data, in words."""
        return ", ".join([f"{self.budget} on {self.device}", *self.changes])

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(task for task, _ in self.demonstrations)


def setting_of(metadata: TrainingMetadata) -> Setting:
    """The setting of a training: what was asked for, not how long it took."""
    config = metadata.config
    budget = f"{config.minutes or DEFAULT_MINUTES:g} minutes" if config.steps is None else f"{config.steps} steps"
    if metadata.earlier_budgets:
        budget += f" (lengthened from {', '.join(f'{earlier:g}' for earlier in metadata.earlier_budgets)})"
    return Setting(
        expert=config.expert,
        budget=budget,
        changes=tuple(
            f"{name} {' '.join(value) if isinstance(value, list) else value}"
            for name, value in config.changes().items()
            if name not in NO_CHANGE
        ),
        device=metadata.device
        + f" with {metadata.threads} threads" * (metadata.device == "cpu")
        + f" in {metadata.processes} processes" * (metadata.processes > 1),
        demonstrations=tuple(sorted(metadata.demonstrations.items())),
    )


@dataclass(frozen=True)
class FinishedTraining:
    """A checkpoint folder whose training has spent its budget."""

    folder: Path
    metadata: TrainingMetadata
    setting: Setting

    @property
    def seed(self) -> int:
        return self.metadata.config.seed

    def count(self, task: str) -> int:
        """Demonstrations of a task."""
        return self.metadata.demonstrations.get(task, 0)


@dataclass(frozen=True)
class ScoredTraining:
    """The test episodes of one training's weights, run in one way, each episode once.

    Attributes:
        training: whose weights.
        protocol: of the episodes.
        variant: overrides of the inference settings that the checkpoint was saved with, in words.
        results: in the order of their keys.
    """

    training: FinishedTraining
    protocol: RolloutProtocol
    variant: str
    results: tuple[EpisodeResult, ...]

    @property
    def tallies(self) -> dict[str, Tally]:
        """Task -> success at any step."""
        return {task: tally(results) for task, results in by_task(self.results).items()}


@dataclass(frozen=True)
class Results:
    """Finished trainings, their test results, and the folders that count in neither."""

    trainings: tuple[FinishedTraining, ...]
    scored: tuple[ScoredTraining, ...]
    left_out: tuple[LeftOut, ...]


def read_results(trainings: Sequence[Path], runs: Sequence[Path]) -> Results:
    """Reads the trainings and runs at or beneath the paths, and joins them by the digest of the weights.

    Raises:
        SimEvalError: a path holds no training, or no run.
    """
    finished, unfinished = read_trainings(folders_with(METADATA, trainings, "training"))
    complete, incomplete = complete_runs(folders_with(MANIFEST, runs, "run"))
    scored, unusable = join(finished, complete)
    tested = {each.training.folder for each in scored}
    untested = [
        LeftOut(folder, f"no complete {SCORED} run of its weights: {command('rollout')} --policy {folder}")
        for folder in (each.folder for each in finished)
        if folder not in tested
    ]
    return Results(tuple(finished), tuple(scored), (*unfinished, *untested, *incomplete, *unusable))


def read_trainings(folders: Sequence[Path]) -> tuple[list[FinishedTraining], list[LeftOut]]:
    """The finished trainings of the folders, each weights once, and the others."""
    finished: dict[str, FinishedTraining] = {}
    left_out = []
    for folder in folders:
        try:
            metadata = read_metadata(folder)
        except SimEvalError as error:
            left_out.append(LeftOut(folder, str(error)))
            continue
        if not (metadata.finished and metadata.digest):
            how = f"{command('train')} {metadata.config.options}"
            reason = f"unfinished, {metadata.minutes:.1f} minutes so far: continue it by `{how}`"
            left_out.append(LeftOut(folder, reason))
        elif metadata.digest in finished:
            left_out.append(LeftOut(folder, f"the same weights as {finished[metadata.digest].folder}"))
        else:
            finished[metadata.digest] = FinishedTraining(folder, metadata, setting_of(metadata))
    return list(finished.values()), left_out


def join(trainings: Sequence[FinishedTraining], runs: Sequence[Run]) -> tuple[list[ScoredTraining], list[LeftOut]]:
    """The test episodes of each training, and the runs that give none.

    Where runs of the same weights, variant and protocol share an episode, that of the longest run counts.
    """
    by_digest = {each.metadata.digest: each for each in trainings}
    left_out = []
    scored: dict[tuple[str, RolloutProtocol, str], dict[EpisodeKey, EpisodeResult]] = {}
    for run in sorted(runs, key=lambda run: (-len(run.episodes), str(run.folder))):
        if reason := unusable(run, by_digest):
            left_out.append(LeftOut(run.folder, reason))
            continue
        results = scored.setdefault((run.spec.digest, run.protocol, run.spec.variant), {})
        fresh = {result.key: result for result in run.episodes if result.key not in results}
        if not fresh:
            reason = "other runs of the same weights and protocol have all its episodes"
            left_out.append(LeftOut(run.folder, reason))
        results.update(fresh)
    order = {digest: place for place, digest in enumerate(by_digest)}
    return [
        ScoredTraining(by_digest[digest], protocol, variant, tuple(results[key] for key in sorted(results)))
        for (digest, protocol, variant), results in sorted(scored.items(), key=lambda entry: order[entry[0][0]])
    ], left_out


def unusable(run: Run, trainings: Mapping[str, FinishedTraining]) -> str:
    """Why a run is the test of none of the trainings, by digest; empty if it is."""
    splits = sorted({key.split for key in run.manifest.keys})
    if not run.spec.digest:
        return f"policy '{run.spec.name}' has no weights, so no training made it"
    if run.spec.digest not in trainings:
        return f"no finished training here has its weights, {run.spec.name}@{run.spec.digest[:8]}"
    if splits != [SCORED]:
        return f"{'/'.join(splits)} split: only the {SCORED} split is scored"
    return ""
