"""What a checkpoint folder says of its training: ``training.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sim_eval.configs import TrainConfig
from sim_eval.core.decoding import decode, encode
from sim_eval.core.errors import SimEvalError
from sim_eval.core.files import write_json
from sim_eval.training import old_metadata

METADATA = "training.json"
LISTED = 8  # tasks that a line can name


@dataclass(frozen=True)
class ValidationRound:
    """One validation.

    Attributes:
        step: optimizer steps before it.
        minutes: on the training's clock before it.
        success: task name -> successes and episodes.
    """

    step: int
    minutes: float
    success: Mapping[str, tuple[int, int]]

    @property
    def rate(self) -> float:
        """Mean over tasks of the success rate, 0 to 1."""
        return sum(count / total for count, total in self.success.values()) / len(self.success)

    def __str__(self) -> str:
        scores = [f"{task} {count}/{total}" for task, (count, total) in self.success.items()]
        if len(scores) > LISTED:
            together = "/".join(str(sum(counts)) for counts in zip(*self.success.values(), strict=True))
            scores = [f"{together} on {len(scores)} tasks", f"their mean {self.rate:.1%}"]
        return ", ".join([f"step {self.step}", f"{self.minutes:.1f} minutes", *scores])


@dataclass(frozen=True)
class TrainingMetadata:
    """A training so far.

    Attributes:
        config: its whole configuration, with the budget filled in.
        minutes: spent, validation included.
        steps: optimizer steps done.
        device: kind of torch device.
        threads: torch's.
        demonstrations: task name -> number of episodes.
        windows: task name -> number of training windows.
        parameters: number of the network's parameters.
        trainable: number of those that are trained.
        versions: package -> version.
        rounds: validations, in order.
        best: index of the round whose weights are kept; None: no validation, the last weights are.
        digest: SHA-256 of the kept ``model.safetensors``; empty before there is one.
        finished: the whole budget was spent.
        earlier_budgets: if the training was lengthened, the minutes or steps that it was given before, in order; the
            learning rate followed a shorter cosine under each.
        processes: number of processes, each of which had batches of its own.

    Raises:
        SimEvalError: ``best`` is no round.
    """

    config: TrainConfig
    minutes: float
    steps: int
    device: str
    threads: int
    demonstrations: Mapping[str, int]
    windows: Mapping[str, int]
    parameters: int
    trainable: int
    versions: Mapping[str, str]
    rounds: tuple[ValidationRound, ...]
    best: int | None
    digest: str
    finished: bool
    earlier_budgets: tuple[float, ...] = ()
    processes: int = 1

    def __post_init__(self) -> None:
        if self.best is not None and not 0 <= self.best < len(self.rounds):
            raise SimEvalError(f"best is {self.best} of {len(self.rounds)} rounds")

    @property
    def passes(self) -> float:
        """How often each training window was seen, on average over all."""
        return self.steps * self.config.batch_size * self.processes / max(1, sum(self.windows.values()))

    @property
    def size(self) -> str:
        """The network's size, or that it was published."""
        return self.config.size if self.config.llava3d is None else "published"


def write_metadata(folder: Path, metadata: TrainingMetadata) -> None:
    """Writes ``training.json``, whole or not at all.

    Raises:
        SimEvalError: the disk refuses.
    """
    write_json(folder / METADATA, encode(metadata))


def read_metadata(folder: Path) -> TrainingMetadata:
    """The metadata in a checkpoint folder.

    Raises:
        SimEvalError: there are none, or they are damaged.
    """
    path = folder / METADATA
    try:
        table = json.loads(path.read_text())
        if isinstance(table, dict) and "config" not in table:
            table = old_metadata.todays(table)
        return decode(TrainingMetadata, table)
    except FileNotFoundError as error:
        raise SimEvalError(f"{path} is missing: sim_eval.train did not make {folder}, or an old version did") from error
    except OSError as error:
        raise SimEvalError(f"{path} cannot be read ({error.strerror}): check the path and permissions") from error
    except (AttributeError, TypeError, SimEvalError, ValueError, RecursionError) as error:
        raise SimEvalError(f"{path} is damaged ({error}): restore it or train the checkpoint again") from error
