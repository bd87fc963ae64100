"""Statistics of ``compare``: which runs may be paired, and how pairs of runs differ on the same episodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations, zip_longest
from operator import attrgetter
from string import ascii_uppercase

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import EpisodeKey
from sim_eval.envs.tasks import outer_suites, suite_tasks, suites
from sim_eval.evaluation.engine import EpisodeResult
from sim_eval.evaluation.run_folder import Run
from sim_eval.reporting.intervals import (
    SIGNIFICANCE,
    discordant,
    episodes_to_separate,
    holm,
    paired_difference_interval,
    paired_p_value,
)
from sim_eval.reporting.runs import partial, protocol_fields
from sim_eval.reporting.summary import Part, Tally, parts

ALL_TASKS = "all tasks"
Pair = tuple[str, str]  # letters of two runs


@dataclass(frozen=True)
class Contrast:
    """Two runs on the same episodes of a task, or of one goal of it.

    Attributes:
        task, goal: as in a summary; the task may be a suite, or "all tasks".
        pair: the letters of the two runs.
        first, second: their successes; an episode with an error is a failure.
        only_first, only_second: episodes that one of them won alone.
        difference: of the rates, first less second.
        interval: Tango's 95 % interval of the difference.
        p_value: exact McNemar.
        p_holm: corrected for all contrasts of one table.
        needed: the number of episodes at which this contrast alone has a power of 80 % at 5 %, if the rates are as
            observed; None: no difference was observed, or more than 100,000 are needed.
    """

    task: str
    goal: str
    pair: Pair
    first: Tally
    second: Tally
    only_first: int
    only_second: int
    difference: float
    interval: tuple[float, float]
    p_value: float
    p_holm: float
    needed: int | None

    @property
    def part(self) -> Part:
        return self.task, self.goal

    @property
    def of_suite(self) -> bool:
        return self.task in suites()

    @property
    def separated(self) -> bool:
        return self.p_holm < SIGNIFICANCE

    @property
    def more(self) -> int | None:
        """How many more episodes would separate the two; 0: they are separated."""
        if self.separated:
            return 0
        return None if self.needed is None else max(0, self.needed - self.first.episodes)


def lettered(runs: Sequence[Run]) -> dict[str, Run]:
    """The runs by letter, A first.

    Raises:
        SimEvalError: fewer than two, more than letters, or one twice.
    """
    if not 2 <= len(runs) <= len(ascii_uppercase):
        raise SimEvalError(f"name 2 to {len(ascii_uppercase)} run folders to compare, not {len(runs)}")
    folders = [run.folder.resolve() for run in runs]
    if twice := next((folder for folder in folders if folders.count(folder) > 1), None):
        raise SimEvalError(f"{twice} is named twice: name each run once")
    return dict(zip(ascii_uppercase, runs, strict=False))


def covered(across: Sequence[str], field: str) -> bool:
    """Whether a field of the protocol may differ: it is named, or the table that it is part of."""
    return any(field == name or field.startswith(f"{name}.") for name in across)


def check_pairable(runs: Mapping[str, Run], across: Sequence[str] = ()) -> None:
    """Refuses runs that are partial, or not of the same episodes under the same protocol.

    Args:
        across: fields of the protocol that may differ, because they are compared; "render" stands for all of its own.

    Raises:
        SimEvalError: names every difference.
    """
    letters = list(runs)
    fields = list(protocol_fields(runs[letters[0]].protocol))
    for name in across:
        if not any(covered([name], field) for field in fields):
            raise SimEvalError(f"--across {name}: the protocol has no such field; it has {', '.join(fields)}")
    problems = [
        f"{letter} ({run.folder}) is partial, {partial(run)}" for letter, run in runs.items() if not run.complete
    ]
    for letter in letters[1:]:
        problems += differences((letters[0], letter), runs, across)
    if problems:
        raise SimEvalError(f"these runs cannot be paired: {'; '.join(problems)}")


def differences(pair: Pair, runs: Mapping[str, Run], across: Sequence[str]) -> Iterator[str]:
    """Why two runs cannot be paired, one clause each."""
    a, b = pair
    for one, other in (pair, (b, a)):
        if alone := sorted(set(runs[one].manifest.keys) - set(runs[other].manifest.keys)):
            last = f" to {alone[-1]}" if len(alone) > 1 else ""
            yield (
                f"{len(alone)} episodes of {one} ({runs[one].folder}) are not in {other} ({runs[other].folder}), "
                f"{alone[0]}{last}: roll out both with the same --task, --split, --first and --episodes"
            )
    first, second = protocol_fields(runs[a].protocol), protocol_fields(runs[b].protocol)
    for name in first:
        if first[name] != second[name] and not covered(across, name):
            yield (
                f"{name} is {first[name]} in {a} ({runs[a].folder}) and {second[name]} in {b} ({runs[b].folder}): "
                f"roll out both alike, or compare --across {name}"
            )


def contrasts(runs: Mapping[str, Run], at_end: bool = False) -> tuple[Contrast, ...]:
    """Every pair of runs: on each whole suite and the suites of which it is made, on each task, on each goal of a task
    that has several, and on all tasks if these are several and no suite.

    Args:
        runs: by letter, of the same episodes.
        at_end: count success at the last step, not at any.
    """
    first = next(iter(runs.values()))
    tasks = first.manifest.tasks
    inside = {suite: suite_tasks(suite) for suite in outer_suites(tasks)}
    chosen: dict[Part, Sequence[EpisodeResult]] = {
        (suite, ""): [result for result in first.episodes if result.key.task in mine] for suite, mine in inside.items()
    }
    chosen |= parts(first.episodes)
    if len(tasks) > 1 and not any(set(mine) == set(tasks) for mine in inside.values()):
        chosen[ALL_TASKS, ""] = first.episodes
    measure = attrgetter("success_end" if at_end else "success")
    won = {letter: {each.key: measure(each) for each in run.episodes} for letter, run in runs.items()}
    single = [
        contrast(part, pair, [[won[letter][result.key] for result in results] for letter in pair])
        for part, results in chosen.items()
        for pair in combinations(runs, 2)
    ]
    corrected = holm([each.p_value for each in single])
    return tuple(replace(each, p_holm=p) for each, p in zip(single, corrected, strict=True))


def contrast(part: Part, pair: Pair, won: Sequence[Sequence[bool]]) -> Contrast:
    """One contrast, as if it stood alone.

    Args:
        won: the first run's, then the second's successes on the same episodes.
    """
    first, second = won
    episodes, alone = len(first), discordant(first, second)
    p_value = paired_p_value(*alone)
    return Contrast(
        *part,
        pair,
        Tally(sum(first), episodes),
        Tally(sum(second), episodes),
        *alone,
        difference=(sum(first) - sum(second)) / episodes,
        interval=paired_difference_interval(*alone, episodes),
        p_value=p_value,
        p_holm=p_value,
        needed=episodes_to_separate(*alone, episodes),
    )


def disagreements(first: Run, second: Run) -> list[EpisodeKey]:
    """The episodes that only one of two runs won, alternating between those of the first and of the second."""
    won = {each.key: each.success for each in second.episodes}
    alone = [
        [each.key for each in first.episodes if each.success is wins and won[each.key] is not wins]
        for wins in (True, False)
    ]
    return [key for key in chain.from_iterable(zip_longest(*alone)) if key is not None]
