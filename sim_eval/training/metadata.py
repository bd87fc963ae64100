"""What came of a training, as its checkpoint folder remembers it: ``training.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

from sim_eval.configs import TrainConfig
from sim_eval.core import old_files
from sim_eval.core.decoding import decode, encode
from sim_eval.core.errors import SimEvalError
from sim_eval.core.files import write_json

METADATA = "training.json"
LISTED = 8  # tasks that a line can name


@dataclass(frozen=True)
class ValidationRound:
    """One validation.

    Attributes:
        step, minutes: when, on the training's clock.
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
        expert, size, seed, batch_size, draws, balance, every, optimizer: as the command line gave them.
        command: what was typed.
        overrides: ``FIELD=VALUE`` that ``--set`` changed in the network's configuration.
        minutes, steps: behind it, validation included.
        device, threads: torch's.
        demonstrations, windows: task name -> number of episodes, and of training windows.
        parameters, trainable: numbers in the network, and those of them that are trained.
        versions: package -> version.
        rounds: validations, in order.
        best: index of the round whose weights are kept; None: no validation, the last weights are.
        digest: SHA-256 of the kept ``model.safetensors``; empty before there is one.
        finished: the whole budget was spent.
        earlier_budgets: minutes or steps that it was first to take, in order, if it was lengthened; the learning rate
            followed a shorter cosine under each.
    """

    expert: str
    size: str
    seed: int
    batch_size: int
    flow_samples: int
    balance: float
    command: str
    overrides: tuple[str, ...]
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
    frame_stride: int = 1
    optimizer: str = "adamw"
    earlier_budgets: tuple[float, ...] = ()
    config: TrainConfig = field(default_factory=TrainConfig)  # a stand-in of branch R: branch T's file replaces it

    def to_dict(self) -> dict[str, object]:
        return {**asdict(self), "config": encode(self.config)}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> TrainingMetadata:
        """Reads what :meth:`to_dict` wrote, out of JSON.

        Raises:
            SimEvalError: a field is missing, unknown or of another type.
        """
        try:
            values = old_files.training(data)
            values["config"] = decode(TrainConfig, values.get("config", {}), "config")
            values["rounds"] = tuple(_round(entry) for entry in cast(Sequence[Mapping[str, object]], values["rounds"]))
            for name in ("demonstrations", "windows"):
                values[name] = {task: int(count) for task, count in cast(Mapping[str, int], values[name]).items()}
            values["overrides"] = tuple(cast(Sequence[str], values["overrides"]))
            budgets = cast(Sequence[float], values.get("earlier_budgets", ()))
            values["earlier_budgets"] = tuple(float(budget) for budget in budgets)
            record = cls(**values)  # checked below
            for name, kind in KINDS.items():
                if not isinstance(getattr(record, name), kind):
                    raise TypeError(f"{name} is {getattr(record, name)!r}")
            if record.best is not None and not 0 <= record.best < len(record.rounds):
                raise ValueError(f"best is {record.best} of {len(record.rounds)} rounds")
        except KeyError as error:
            raise SimEvalError(f"{error.args[0]} is missing") from error
        except (AttributeError, TypeError, ValueError) as error:
            raise SimEvalError(str(error)) from error
        return record


KINDS = {
    **dict.fromkeys(("expert", "size", "optimizer", "command", "device", "digest"), str),
    **dict.fromkeys(
        ("seed", "batch_size", "flow_samples", "frame_stride", "steps", "threads", "parameters", "trainable"), int
    ),
    **dict.fromkeys(("balance", "minutes"), int | float),
    "versions": Mapping,
    "finished": bool,
    "best": int | None,
}


def write_metadata(folder: Path, record: TrainingMetadata) -> None:
    """Writes ``training.json``, whole or not at all.

    Raises:
        SimEvalError: the disk refuses.
    """
    write_json(folder / METADATA, record.to_dict())


def read_metadata(folder: Path) -> TrainingMetadata:
    """The record in a checkpoint folder.

    Raises:
        SimEvalError: there is none, or it is damaged.
    """
    path = folder / METADATA
    try:
        return TrainingMetadata.from_dict(json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise SimEvalError(f"{path} is missing: sim_eval.train did not make {folder}, or an old version did") from error
    except OSError as error:
        raise SimEvalError(f"{path} cannot be read ({error.strerror}): check the path and permissions") from error
    except (SimEvalError, ValueError) as error:
        raise SimEvalError(f"{path} is damaged ({error}): restore it or train the checkpoint again") from error


def _round(entry: Mapping[str, object]) -> ValidationRound:
    success = cast(Mapping[str, Sequence[int]], entry["success"])
    return ValidationRound(
        step=int(cast(int, entry["step"])),
        minutes=float(cast(float, entry["minutes"])),
        success={task: (int(count), int(total)) for task, (count, total) in success.items()},
    )
