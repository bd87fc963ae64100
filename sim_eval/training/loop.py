"""A training from start to end: steps, validations, the best weights, and continuing after a break."""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import ExitStack, closing
from typing import cast

import torch
from accelerate.utils import broadcast_object_list
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from sim_eval.configs import TrainConfig
from sim_eval.core.errors import SimEvalError
from sim_eval.core.versions import machine
from sim_eval.datasets.windows import EpisodeWindows, TaskBalancedBatchSampler
from sim_eval.evaluation.jobs import OneSimulator
from sim_eval.policies.spatialvla.adapters import whole_weights
from sim_eval.policies.spatialvla.checkpoint import SpatialVLAPolicy, save_checkpoint
from sim_eval.policies.spatialvla.feature_cache import FeatureCache
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration
from sim_eval.policies.spatialvla.parts import inventory
from sim_eval.policies.spatialvla.processing_spatialvla import SpatialVLAProcessor
from sim_eval.policies.spatialvla.trainer import Trainer
from sim_eval.reporting.model_card import model_card
from sim_eval.training.batches import NumberedBatch, prepared
from sim_eval.training.interrupt import Interrupt
from sim_eval.training.metadata import TrainingMetadata, ValidationRound, write_metadata
from sim_eval.training.preparation import render_config_of
from sim_eval.training.state import Identity, Progress, damaged, read_state, write_state
from sim_eval.training.validation import PROTOCOL, validate, validation_keys

# Shares of the training at which the weights are validated.
ROUNDS = (0.2, 0.4, 0.6, 0.8, 1.0)
CARD_FILE = "README.md"
SAVE_SECONDS = 60.0
LOG_STEPS = 20


class TrainingLoop:
    """A training in its folder, fresh or continued.

    Args:
        config: with either minutes or steps, see :meth:`TrainConfig.checked`.
        windows: the demonstrations.
        processor: made from them.
        trainer: fresh; it gets the state of an interrupted training of the same configuration.
        simulators: for validation.

    Attributes:
        progress: how far the training is.

    Raises:
        SimEvalError: the folder holds another training, or a damaged one.
    """

    def __init__(
        self,
        config: TrainConfig,
        windows: EpisodeWindows,
        processor: SpatialVLAProcessor,
        trainer: Trainer,
        simulators: OneSimulator,
    ) -> None:
        self._config, self._windows, self._processor = config, windows, processor
        self._trainer, self._simulators = trainer, simulators
        self._leads = trainer.process == 0
        self._keys = validation_keys(processor.spec.tasks, config.val_episodes, config.val_total)
        self._device = next(trainer.model.parameters()).device
        with trainer.accelerator.main_process_first():
            self._features = self._feature_cache()
        episodes = tuple(str(episode.key) for episode in windows.episodes)
        self._identity = Identity(config, episodes, str(render_config_of(windows)), trainer.processes)
        self.progress = self._resume()
        self.progress.due = min(self.progress.due, self._passed())  # rounds of a lengthened training fall due again
        self._interrupt = Interrupt()
        self._began = self._saved = 0.0
        trainer.accelerator.wait_for_everyone()  # before anything is written

    @property
    def share(self) -> float:
        """Share of the whole training that is done, 0 to 1."""
        if self._config.steps is not None:
            return min(1.0, self._trainer.step / self._config.steps)
        return min(1.0, self.progress.seconds / (60 * cast(float, self._config.minutes)))

    def run(self) -> None:
        """Trains to the end of the budget.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed; the training was saved before, and its message says how to go on.
            SimEvalError: the loss is not finite, a file cannot be read or written, or a validation broke off.
        """
        with self._interrupt, ExitStack() as stack:
            self._save()  # from here on the folder is a training's, however it ends
            display = stack.enter_context(closing(_Display(self._config, self._trainer, self.share, self._leads)))
            self._began = time.monotonic() - self.progress.seconds
            for numbered in stack.enter_context(closing(self._batches())):
                self._attend(display)
                if self.share >= 1.0:
                    break
                loss, norm = self._step(numbered)
                display.step(loss, norm, self.share)
            self._finish()

    def metadata(self) -> TrainingMetadata:
        """What there is to say of the training so far."""
        progress = self.progress
        parameters = list(self._trainer.model.parameters())
        return TrainingMetadata(
            config=self._config,
            minutes=progress.seconds / 60,
            steps=self._trainer.step,
            device=self._device.type,
            processes=self._trainer.processes,
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
            earlier_budgets=progress.earlier_budgets,
        )

    def _batches(self) -> Generator[NumberedBatch, None, None]:
        """This process's share of each step's windows, from the trainer's step on."""
        config, trainer = self._config, self._trainer
        own = slice(config.batch_size * trainer.process, config.batch_size * (trainer.process + 1))
        whole = TaskBalancedBatchSampler(
            self._windows,
            config.batch_size * trainer.processes,
            config.seed,
            trainer.step,
            config.sampling_temperature,
        )
        numbers = (batch[own] for batch in whole)
        return prepared(self._windows, self._processor, numbers, self._device, config.loader_workers)

    def _attend(self, display: _Display) -> None:
        """What is done between two steps: clock, validation, saving, and stopping after Ctrl-C."""
        stop = self._agree()
        if self._config.val_episodes and self.progress.due < self._passed():
            entry = self._validate() if self._leads else None
            if entry:
                display.validation(entry)
            stop = self._agree()
            (self.progress.due,) = broadcast_object_list([self._passed() if entry else self.progress.due])
            self._save()
        if stop:
            self._save()
            raise KeyboardInterrupt(
                f"interrupted: {self._trainer.step} steps kept in {self._config.out}; the same command continues"
            )
        if self.progress.seconds - self._saved > SAVE_SECONDS:
            self._save()

    def _agree(self) -> bool:
        """Sets the clock, which the first process reads for all; whether all shall stop."""
        own = [time.monotonic() - self._began, self._interrupt.requested]
        self.progress.seconds, stop = broadcast_object_list(own)
        return bool(stop)

    def _step(self, numbered: NumberedBatch) -> tuple[float, float]:
        batch, trainer = numbered.batch, self._trainer
        context = self._features.context(numbered.windows, batch.inputs) if self._features else None
        loss, norm = trainer.train_step(batch, self.share, context)
        if not math.isfinite(loss):
            raise SimEvalError(f"the loss is {loss} at step {trainer.step}: try a lower --learning-rate")
        return loss, norm

    def _passed(self) -> int:
        """Number of shares at which a validation is due and which are behind."""
        return sum(self.share >= due for due in ROUNDS)

    def _validate(self) -> ValidationRound | None:
        """A round of validation with the averaged weights, which are kept if none did better; None after Ctrl-C."""
        with self._trainer.averaged() as averaged:
            policy = SpatialVLAPolicy(averaged, self._processor, self._device)
            minutes = self.progress.seconds / 60
            success = validate(policy, self._keys, self._simulators, lambda: self._interrupt.requested)
            if success is None:
                return None
            entry = ValidationRound(self._trainer.step, minutes, success)
            rounds = self.progress.rounds = (*self.progress.rounds, entry)
            if entry.rate >= max(each.rate for each in rounds):
                self._keep(averaged)
                self.progress.best = len(rounds) - 1
        return entry

    def _keep(self, model: SpatialVLAForConditionalGeneration) -> None:
        if self._leads:
            self.progress.digest = save_checkpoint(self._config.out, model, self._processor).digest
        else:
            whole_weights(model)  # of which the first process needs this one's part

    def _finish(self) -> None:
        if not self._config.val_episodes:
            with self._trainer.averaged() as averaged:
                self._keep(averaged)
        self._save()
        if self._leads:
            card = model_card(self.metadata(), self._processor.spec, PROTOCOL.n_action_steps)
            (self._config.out / CARD_FILE).write_text(card)

    def _save(self) -> None:
        """Writes the training's state and its metadata, each whole or not at all."""
        self._saved = self.progress.seconds
        state = self._trainer.state_dict()
        if self._leads:
            write_state(self._config.out, self._identity, self.progress, state)
            write_metadata(self._config.out, self.metadata())

    def _resume(self) -> Progress:
        """Puts the trainer where the training in the folder was left."""
        out = self._config.out
        if (state := read_state(out)) is None:
            return Progress()
        identity, progress, trainer = state
        changed = self._identity.differences(identity)
        if len(changed) == 1 and changed[0] in TrainConfig.BUDGETS:
            (unit,) = changed
            earlier, now = getattr(identity.config, unit), getattr(self._config, unit)
            if now < earlier:
                raise SimEvalError(f"{out} holds a training of --{unit} {earlier:g}: it can only be made longer")
            progress.earlier_budgets = (*progress.earlier_budgets, earlier)
        elif changed:
            raise SimEvalError(
                f"{out} holds another training ({', '.join(changed)} differ): choose another --out or the same options"
            )
        try:
            self._trainer.load_state_dict(trainer)
        except Exception as error:  # torch reports damage in many ways
            raise damaged(out, error) from error
        return progress

    def _feature_cache(self) -> FeatureCache | None:
        folder, model = self._config.cache_features, self._trainer.model
        if folder is None:
            return None
        if any(part.trained for part in inventory(model) if part.name != "expert"):
            raise SimEvalError(
                "--cache-features needs a VLM that does not change: add --freeze vision position projector vlm"
            )
        frozen = whole_weights(model)
        digest = hashlib.sha256()
        for name in sorted(name for name in frozen if name.startswith("vlm.")):
            digest.update(frozen[name].flatten().view(torch.uint8).numpy().tobytes())
        identity: dict[str, object] = {
            "weights": digest.hexdigest(),
            "processor": self._processor.to_dict(),
            "network": self._processor.config.to_dict(),
            "episodes": [str(episode.key) for episode in self._windows.episodes],
            "frame_stride": self._config.frame_stride,
            "render": str(render_config_of(self._windows)),
        }
        return FeatureCache(folder, model.vlm, identity)


class _Display:
    """Progress bar and TensorBoard curves, of the first process."""

    def __init__(self, config: TrainConfig, trainer: Trainer, share: float, leads: bool) -> None:
        self._trainer = trainer
        self._writer = SummaryWriter(str(config.out / "tensorboard"), purge_step=trainer.step) if leads else None
        self._bar = tqdm(total=1.0, initial=round(share, 4), file=sys.stderr, dynamic_ncols=True, disable=not leads)
        self._bar.bar_format = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        self._bar.set_description(f"training {config.expert}")

    def close(self) -> None:
        self._bar.close()
        if self._writer:
            self._writer.close()

    def step(self, loss: float, norm: float, share: float) -> None:
        step = self._trainer.step
        if self._writer and step % LOG_STEPS == 0:
            self._writer.add_scalar("train/loss", loss, step)
            self._writer.add_scalar("train/gradient_norm", norm, step)
            self._writer.add_scalar("train/learning_rate", self._trainer.learning_rate(share), step)
            self._bar.set_postfix_str(f"step {step}, loss {loss:.3f}", refresh=False)
        self._bar.update(share - self._bar.n)

    def validation(self, entry: ValidationRound) -> None:
        if self._writer:
            self._writer.add_scalar("val", entry.rate, entry.step)
            for name, (count, total) in entry.success.items():
                self._writer.add_scalar(f"val/{name}", count / total, entry.step)
            self._bar.write(str(entry), file=sys.stderr)
