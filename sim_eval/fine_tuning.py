"""One training from start to end: batches, validation rollouts, the best weights, and how it goes on after a break."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, cast

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from sim_eval.datasets.normalization import normalization_stats
from sim_eval.datasets.windows import EpisodeWindows, batches
from sim_eval.envs.contract import EpisodeKey, RenderMode, SimEvalError, Simulator, SimulatorOptions, TrainingWindow
from sim_eval.evaluation.engine import RolloutProtocol, run_episode
from sim_eval.evaluation.run_folder import machine
from sim_eval.policies.policy import PolicySpec
from sim_eval.policies.spatialvla.checkpoint import SpatialVLAPolicy, save_checkpoint
from sim_eval.policies.spatialvla.configuration_spatialvla import (
    SIZES,
    ActionExpertType,
    SpatialVLAConfig,
    with_overrides,
)
from sim_eval.policies.spatialvla.processing_spatialvla import SpatialVLAProcessor, train_tokenizer
from sim_eval.policies.spatialvla.training import Trainer
from sim_eval.reporting.model_card import model_card
from sim_eval.reporting.training_record import Round, TrainingRecord, write_record

if TYPE_CHECKING:
    from sim_eval.train import TrainArguments

STATE_FIELDS = ("eef_pos", "eef_rot6d", "gripper_qpos")
# When the weights are tried on the val split, as shares of the training.
ROUNDS = (0.2, 0.4, 0.6, 0.8, 1.0)
STATE, CARD_FILE = "training.pt", "README.md"
SAVE_SECONDS = 60.0
LOG_STEPS = 20


@dataclass
class Progress:
    """How far a training is; what a resumed run starts from, besides the trainer's state.

    Attributes:
        seconds: on the clock so far, validation included.
        due: how many of ``ROUNDS`` are behind; one validation stands for all that fall due at once.
        rounds: what each validation gave.
        best: index of the best round, None before the first.
        digest: of the kept weights, empty before the first.
    """

    seconds: float = 0.0
    due: int = 0
    rounds: tuple[Round, ...] = ()
    best: int | None = None
    digest: str = ""


def network(arguments: TrainArguments) -> SpatialVLAConfig:
    """The network's configuration before the demonstrations are known.

    Raises:
        SimEvalError: an override that it cannot take.
    """
    base = replace(SIZES[arguments.size], action_expert_type=cast(ActionExpertType, arguments.expert))
    config = with_overrides(base, arguments.overrides)
    if config.action_expert_type != arguments.expert:
        raise SimEvalError("--set cannot change action_expert_type: use --expert")
    return config


def shown_as(windows: EpisodeWindows) -> SimulatorOptions:
    """How the demonstrations were rendered; validation shows its episodes alike.

    Raises:
        SimEvalError: some were rendered otherwise than others.
    """
    looks = {json.loads(episode.provenance["env_args"]).get("render", "fast") for episode in windows.episodes}
    if len(looks) > 1:
        raise SimEvalError(f"--data mixes episodes rendered {' and '.join(sorted(looks))}: train on one look")
    (height, width), *_ = windows.spec.cameras.values()
    return SimulatorOptions(cast(RenderMode, looks.pop()), height, width)


def make_processor(windows: EpisodeWindows, arguments: TrainArguments) -> SpatialVLAProcessor:
    """Processor and network configuration that fit the demonstrations.

    Raises:
        SimEvalError: the data holds episodes that are not of the train split, or not square pictures.
    """
    if foreign := [str(episode.key) for episode in windows.episodes if episode.key.split != "train"]:
        raise SimEvalError(f"--data holds {foreign[0]}: only episodes of the train split may be trained on")
    proprio = {name: windows.spec.proprio[name] for name in STATE_FIELDS}
    base = network(arguments)
    side = max(max(size) for size in windows.spec.cameras.values())
    fitted = replace(
        base,
        vision=replace(base.vision, image_size=side),
        expert=replace(base.expert, state_dim=sum(proprio.values()), action_dim=windows.spec.action.dim),
    )
    config = with_overrides(fitted, arguments.overrides)
    spec = PolicySpec(
        name=arguments.expert,
        robot=windows.spec.robot,
        cameras=windows.spec.cameras,
        proprio=proprio,
        action=windows.spec.action,
        tasks=tuple(sorted({episode.key.task for episode in windows.episodes})),
    )
    stats = normalization_stats(windows.episodes, arguments.normalization)
    tokenizer = train_tokenizer({episode.instruction for episode in windows.episodes}, config.text.vocab_size)
    return SpatialVLAProcessor(config, spec, stats, tokenizer)


class Training:
    """A training in its folder, fresh or taken up where it was left.

    Args:
        arguments: of the command line, with either minutes or steps.
        windows: the demonstrations.
        processor: made from them.
        trainer: fresh; put where an interrupted training of the same kind left it.
        simulators: task name -> where validation happens; empty: none does, and the last weights are kept.

    Raises:
        SimEvalError: the folder holds another training, or a damaged one.
    """

    def __init__(
        self,
        arguments: TrainArguments,
        windows: EpisodeWindows,
        processor: SpatialVLAProcessor,
        trainer: Trainer,
        simulators: Mapping[str, Simulator],
    ) -> None:
        self._arguments, self._windows, self._processor = arguments, windows, processor
        self._trainer, self._simulators = trainer, simulators
        self._out = arguments.out
        self._device = next(trainer.model.parameters()).device
        self.progress = self._resume()

    @property
    def share(self) -> float:
        """Of the whole training that is behind, 0 to 1."""
        if self._arguments.steps is not None:
            return min(1.0, self._trainer.step / self._arguments.steps)
        return min(1.0, self.progress.seconds / (60 * cast(float, self._arguments.minutes)))

    def run(self) -> None:
        """Trains to the end of the budget; on Ctrl-C it saves and says how to go on."""
        trainer = self._trainer
        self._save()  # from here on the folder is a training's, however it ends
        writer = SummaryWriter(str(self._out / "tensorboard"), purge_step=trainer.step)
        bar = tqdm(total=1.0, initial=round(self.share, 4), file=sys.stderr, dynamic_ncols=True)
        bar.bar_format = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        bar.set_description(f"training {self._arguments.expert}")
        saved = time.monotonic()
        began = saved - self.progress.seconds
        try:
            for batch in self._batches():
                self.progress.seconds = time.monotonic() - began
                if self._simulators and self.progress.due < self._passed():
                    entry = self._validate()
                    for name, (count, total) in entry.success.items():
                        writer.add_scalar(f"val/{name}", count / total, trainer.step)
                    bar.write(str(entry), file=sys.stderr)
                    self.progress.seconds = time.monotonic() - began
                    self.progress.due = self._passed()
                    self._save()
                if self.share >= 1.0:
                    break
                ready = self._processor.training_batch(batch).to(self._device)
                loss, norm = trainer.train_step(ready, self.share)
                if not math.isfinite(loss):
                    raise SimEvalError(f"the loss is {loss} at step {trainer.step}: try a lower --learning-rate")
                if trainer.step % LOG_STEPS == 0:
                    writer.add_scalar("train/loss", loss, trainer.step)
                    writer.add_scalar("train/gradient_norm", norm, trainer.step)
                    writer.add_scalar("train/learning_rate", trainer.learning_rate(self.share), trainer.step)
                    bar.set_postfix_str(f"step {trainer.step}, loss {loss:.3f}", refresh=False)
                bar.update(self.share - bar.n)
                if time.monotonic() - saved > SAVE_SECONDS:
                    self._save()
                    saved = time.monotonic()
            if not self._simulators:
                self.progress.digest = save_checkpoint(self._out, trainer.ema, self._processor).digest
            self._save()
            card = model_card(self.record(), self._processor.spec, RolloutProtocol().replan)
            (self._out / CARD_FILE).write_text(card)
        except KeyboardInterrupt:
            self._save()
            raise KeyboardInterrupt(
                f"interrupted: {trainer.step} steps kept in {self._out}; the same command continues"
            ) from None
        finally:
            bar.close()
            writer.close()

    def record(self) -> TrainingRecord:
        """What there is to say of the training so far."""
        arguments, progress = self._arguments, self.progress
        parameters = list(self._trainer.model.parameters())
        return TrainingRecord(
            expert=arguments.expert,
            size=arguments.size,
            seed=arguments.seed,
            batch_size=arguments.batch_size,
            draws=arguments.draws,
            balance=arguments.balance,
            command=shlex.join(["python", "-m", "sim_eval.train", *sys.argv[1:]]),
            overrides=arguments.overrides,
            minutes=progress.seconds / 60,
            steps=self._trainer.step,
            device=self._device.type,
            threads=torch.get_num_threads(),
            demonstrations=dict(Counter(episode.key.task for episode in self._windows.episodes)),
            windows=dict(Counter(self._windows.tasks)),
            parameters=sum(parameter.numel() for parameter in parameters),
            trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
            versions=cast(Mapping[str, str], machine()["versions"]),
            rounds=progress.rounds,
            best=progress.best,
            digest=progress.digest,
            finished=self.share >= 1.0,
        )

    def _batches(self) -> Iterator[list[TrainingWindow]]:
        """From the trainer's step on."""
        arguments = self._arguments
        return batches(self._windows, arguments.batch_size, arguments.seed, self._trainer.step, arguments.balance)

    def _passed(self) -> int:
        """How many of the shares at which a validation is due are behind."""
        return sum(self.share >= due for due in ROUNDS)

    def _validate(self) -> Round:
        """One round of rollouts on the val split with the averaged weights, kept if none did better before."""
        policy = SpatialVLAPolicy(self._trainer.ema, self._processor, self._device)
        success: dict[str, tuple[int, int]] = {}
        minutes = self.progress.seconds / 60
        for name, simulator in self._simulators.items():
            keys = [EpisodeKey(name, "val", index) for index in range(self._arguments.val_episodes)]
            results = [run_episode(simulator, policy, key, RolloutProtocol()) for key in keys]
            if broken := [result.error for result in results if result.error]:
                raise SimEvalError(f"validation on {name} broke off: {broken[0]}")
            success[name] = sum(result.success for result in results), len(results)
        entry = Round(self._trainer.step, minutes, success)
        rounds = self.progress.rounds = (*self.progress.rounds, entry)
        if entry.rate >= max(each.rate for each in rounds):
            self.progress.digest = save_checkpoint(self._out, self._trainer.ema, self._processor).digest
            self.progress.best = len(rounds) - 1
        return entry

    def _identity(self) -> dict[str, object]:
        """What must be the same for a training to be continued: everything but files and speed."""
        values = {k: v for k, v in asdict(self._arguments).items() if k not in ("data", "out", "device", "threads")}
        return {**values, "episodes": [str(episode.key) for episode in self._windows.episodes]}

    def _save(self) -> None:
        """Writes the training's state and its record, each whole or not at all."""
        state = {
            "identity": self._identity(),
            "progress": asdict(self.progress),
            "trainer": self._trainer.state_dict(),
        }
        partial = self._out / f".{STATE}.partial"
        try:
            torch.save(state, partial)
            os.replace(partial, self._out / STATE)
        except (OSError, RuntimeError) as error:
            raise SimEvalError(
                f"cannot write {self._out / STATE} ({error}): free some space or choose another --out"
            ) from error
        write_record(self._out, self.record())

    def _resume(self) -> Progress:
        path = self._out / STATE
        if not path.exists():
            if any(self._out.iterdir()):
                raise SimEvalError(f"{self._out} holds other files and no training: choose another --out")
            return Progress()
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            there, now = state["identity"], self._identity()
            if changed := [name for name in now if there.get(name) != now[name]]:
                raise SimEvalError(
                    f"{self._out} holds another training ({', '.join(changed)} differ): "
                    "choose another --out or the same options"
                )
            self._trainer.load_state_dict(state["trainer"])
            progress = state["progress"]
            return Progress(**{**progress, "rounds": tuple(Round(**entry) for entry in progress["rounds"])})
        except SimEvalError:
            raise
        except Exception as error:  # torch.load reports damage in many ways
            raise SimEvalError(
                f"{path} is damaged ({type(error).__name__}): delete {self._out} and train again"
            ) from error
