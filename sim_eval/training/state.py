"""``training.pt``: from where an interrupted training goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sim_eval.configs import TrainConfig
from sim_eval.core.decoding import decode, encode
from sim_eval.core.errors import SimEvalError
from sim_eval.core.files import atomic
from sim_eval.policies.spatialvla.trainer import TrainerState
from sim_eval.training import old_metadata
from sim_eval.training.metadata import ValidationRound

STATE = "training.pt"


@dataclass
class Progress:
    """How far a training is.

    Attributes:
        seconds: on the clock so far, validation included.
        due: number of validations that are behind; those that fall due together are one.
        rounds: result of each validation.
        best: index of the best round, None before the first.
        digest: of the kept weights, empty before the first.
        earlier_budgets: minutes or steps that the training was given before it was lengthened.
    """

    seconds: float = 0.0
    due: int = 0
    rounds: tuple[ValidationRound, ...] = ()
    best: int | None = None
    digest: str = ""
    earlier_budgets: tuple[float, ...] = ()


@dataclass(frozen=True)
class Identity:
    """What must be the same for a training to be continued, besides the files' places and the speed.

    Attributes:
        episodes: keys of the demonstrations.
        render: how these were rendered.
        processes: that share a batch.
    """

    config: TrainConfig
    episodes: tuple[str, ...]
    render: str
    processes: int

    def differences(self, other: Identity) -> list[str]:
        """Names of the fields in which another identity differs."""
        mine, others = (each.config.identity() | vars(each) | {"config": None} for each in (self, other))
        return [name for name in {**mine, **others} if mine.get(name) != others.get(name)]


def write_state(folder: Path, identity: Identity, progress: Progress, trainer: TrainerState) -> None:
    """Writes ``training.pt``, whole or not at all.

    Raises:
        SimEvalError: the disk refuses.
    """
    path = folder / STATE
    state = {"identity": encode(identity), "progress": encode(progress), "trainer": trainer}
    try:
        with atomic(path) as partial:
            torch.save(state, partial)
    except RuntimeError as error:  # of torch, where the disk is full
        raise SimEvalError(f"cannot write {path} ({error}): free some space or choose another --out") from error


def read_state(folder: Path) -> tuple[Identity, Progress, TrainerState] | None:
    """What :func:`write_state` wrote; None: the folder is empty.

    Raises:
        SimEvalError: the folder holds something else, or a damaged file.
    """
    path = folder / STATE
    if not path.exists():
        if any(folder.iterdir()):
            raise SimEvalError(f"{folder} holds other files and no training: choose another --out")
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return _identity(state["identity"]), decode(Progress, state["progress"]), state["trainer"]
    except Exception as error:  # torch.load reports damage in many ways
        raise damaged(folder, error) from error


def damaged(folder: Path, error: Exception) -> SimEvalError:
    return SimEvalError(f"{folder / STATE} is damaged ({type(error).__name__}): delete {folder} and train again")


def _identity(table: dict[str, Any]) -> Identity:
    if "config" not in table:  # of before 0.2
        config = old_metadata.configuration(table)
        return Identity(config, tuple(table["episodes"]), table["shown"], table["processes"])
    return decode(Identity, table)
