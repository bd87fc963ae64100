"""Small trainings and runs on disk, written by the project's own writers."""

from __future__ import annotations

from pathlib import Path

from sim_eval.configs import TrainConfig
from sim_eval.core.types import EpisodeKey
from sim_eval.evaluation.engine import EpisodeResult, RolloutProtocol
from sim_eval.evaluation.manifest import Manifest
from sim_eval.evaluation.run_folder import open_run
from sim_eval.policies.policy import PolicySpec
from sim_eval.training.metadata import TrainingMetadata, ValidationRound, write_metadata

LIFT, STACK = "robosuite/Lift", "robosuite/Stack"
PROTOCOL = RolloutProtocol()
CONFIG = TrainConfig(minutes=20)


def digest(name: str) -> str:
    return name.encode().hex().ljust(64, "0")


def make_training(
    root: Path,
    name: str,
    config: TrainConfig = CONFIG,
    successes: tuple[int, ...] = (1, 3),
    demonstrations: dict[str, int] | None = None,
    device: str = "cpu",
    threads: int = 2,
    processes: int = 1,
    late: float = 0.9,
    earlier_budgets: tuple[float, ...] = (),
    finished: bool = True,
) -> Path:
    """A training validated on Stack every ten minutes, and later by its seed; 4 episodes a round.

    Args:
        late: minutes from the end of the budget to the end of the last validation.
    """
    folder = root / name
    folder.mkdir(parents=True)
    demonstrations = demonstrations or {STACK: 100}
    rounds = tuple(
        ValidationRound(100 * n, 10 * n + config.seed / 10, {STACK: (count, 4)})
        for n, count in enumerate(successes, start=1)
    )
    metadata = TrainingMetadata(
        config=config,
        minutes=10 * len(successes) + late,
        steps=200,
        device=device,
        threads=threads,
        processes=processes,
        demonstrations=demonstrations,
        windows={task: 50 * count for task, count in demonstrations.items()},
        parameters=1_234_567,
        trainable=1_000_000,
        versions={},
        rounds=rounds,
        best=len(rounds) - 1 if rounds else None,
        digest=digest(name),
        finished=finished,
        earlier_budgets=earlier_budgets,
    )
    write_metadata(folder, metadata)
    return folder


def make_run(
    folder: Path,
    weights: str,
    successes: set[int],
    tasks: tuple[str, ...] = (STACK,),
    split: str = "test",
    episodes: int = 4,
    finished: int | None = None,
    protocol: RolloutProtocol = PROTOCOL,
    variant: str = "",
    lasting: set[int] | None = None,
) -> Path:
    """A run in which the episodes of these indices succeed, and of them those ``lasting`` (all) at the last step too.

    ``weights`` names the training, "" is a policy without.
    """
    policy = PolicySpec("policy", digest=digest(weights) if weights else "", variant=variant)
    with open_run(folder, Manifest.plan(tasks, split, 0, episodes), policy, protocol, {}, []) as run:
        for key in run.remaining[:finished]:
            success = key.index in successes
            run.append(result(key, success, success and (lasting is None or key.index in lasting)))
    return folder


def result(key: EpisodeKey, success: bool, at_end: bool) -> EpisodeResult:
    return EpisodeResult(key, "go", success, at_end, 30, 20 if success else None, "none", 8, None, 1.0)
