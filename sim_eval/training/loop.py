"""One training from start to end: batches, validation rollouts, the best weights, and how it goes on after a break."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, cast

import psutil
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from sim_eval.core.errors import SimEvalError
from sim_eval.core.normalization import normalization_stats
from sim_eval.core.types import EpisodeKey, RenderConfig
from sim_eval.core.versions import machine
from sim_eval.datasets.windows import EpisodeWindows, TaskBalancedBatchSampler
from sim_eval.evaluation.engine import RolloutProtocol, run_episode
from sim_eval.evaluation.jobs import OneSimulator
from sim_eval.policies.policy import PolicySpec
from sim_eval.policies.spatialvla.adapters import add_adapters, whole_weights
from sim_eval.policies.spatialvla.checkpoint import SpatialVLAPolicy, save_checkpoint
from sim_eval.policies.spatialvla.configuration_spatialvla import (
    SIZES,
    ActionExpertType,
    SpatialVLAConfig,
    with_overrides,
)
from sim_eval.policies.spatialvla.feature_cache import FeatureCache
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration
from sim_eval.policies.spatialvla.parts import (
    Load,
    Memory,
    Part,
    convert,
    freeze,
    inventory,
    training_memory,
)
from sim_eval.policies.spatialvla.pretrained import from_llava3d, llava3d_config
from sim_eval.policies.spatialvla.pretrained_processing import llava3d_processor
from sim_eval.policies.spatialvla.processing_spatialvla import SpatialVLAProcessor, train_tokenizer
from sim_eval.policies.spatialvla.trainer import Trainer
from sim_eval.reporting.model_card import model_card
from sim_eval.reporting.tables import terminal
from sim_eval.training.metadata import TrainingMetadata, ValidationRound, write_metadata

if TYPE_CHECKING:
    from sim_eval.train import TrainArguments

GIGABYTE = 1e9
STATE_FIELDS = ("eef_pos", "eef_rot6d", "gripper_qpos", "gripper_opening")  # those that a robot has
# When the weights are tried on the val split, as shares of the training.
ROUNDS = (0.2, 0.4, 0.6, 0.8, 1.0)
# Options that change no result.
FREE = ("data", "out", "device", "threads", "cache_features", "dry_run")
BUDGETS = ("minutes", "steps")
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
        earlier_budgets: minutes or steps that it was first to take, if it was lengthened.
    """

    seconds: float = 0.0
    due: int = 0
    rounds: tuple[ValidationRound, ...] = ()
    best: int | None = None
    digest: str = ""
    earlier_budgets: tuple[float, ...] = ()


def network(arguments: TrainArguments) -> SpatialVLAConfig:
    """The network's configuration before the demonstrations are known.

    Raises:
        SimEvalError: an override that it cannot take.
    """
    expert = cast(ActionExpertType, arguments.expert)
    if arguments.llava3d is None:
        base = SIZES[arguments.size][expert]
    else:
        base = llava3d_config(arguments.llava3d, expert, gemma=arguments.gemma)
    config = with_overrides(base, arguments.overrides)
    if config.action_expert_type != arguments.expert:
        raise SimEvalError("--set cannot change action_expert_type: use --expert")
    return config


def render_config_of(windows: EpisodeWindows) -> RenderConfig:
    """How the demonstrations were rendered; validation shows its episodes alike.

    Raises:
        SimEvalError: some were rendered otherwise than others.
    """
    configs = {episode.header.render_config for episode in windows.episodes}
    if len(configs) > 1:
        raise SimEvalError(
            f"--data mixes episodes rendered {' and '.join(sorted(map(str, configs)))}: train on one kind"
        )
    return configs.pop()


def make_processor(windows: EpisodeWindows, arguments: TrainArguments) -> SpatialVLAProcessor:
    """Processor and network configuration that fit the demonstrations.

    Raises:
        SimEvalError: the data holds episodes that are not of the train split, or not square pictures.
    """
    if foreign := [str(episode.key) for episode in windows.episodes if episode.key.split != "train"]:
        raise SimEvalError(f"--data holds {foreign[0]}: only episodes of the train split may be trained on")
    proprio = {name: windows.spec.proprio[name] for name in STATE_FIELDS if name in windows.spec.proprio}
    if unknown := [name for name in arguments.cameras if name not in windows.spec.cameras]:
        raise SimEvalError(
            f"--cameras: the data has no camera '{unknown[0]}', it has {', '.join(windows.spec.cameras)}"
        )
    cameras = {name: windows.spec.cameras[name] for name in arguments.cameras or windows.spec.cameras}
    base = network(arguments)
    # A tower from scratch takes the cameras' size; one that is published has its own, and pictures are made to fit it.
    side = max(max(size) for size in cameras.values())
    fitted = replace(
        base,
        vision=replace(base.vision, image_size=side) if arguments.llava3d is None else base.vision,
        expert=replace(base.expert, state_dim=sum(proprio.values()), action_dim=windows.spec.action.dim),
    )
    config = with_overrides(fitted, arguments.overrides)
    spec = PolicySpec(
        name=arguments.expert,
        robot=windows.spec.robot,
        cameras=cameras,
        proprio=proprio,
        action=windows.spec.action,
        tasks=tuple(sorted({episode.key.task for episode in windows.episodes})),
        render=render_config_of(windows).mode,
    )
    stats = normalization_stats(windows.episodes, arguments.normalization)
    if arguments.llava3d is not None:
        return llava3d_processor(arguments.llava3d, spec, stats, config)
    tokenizer = train_tokenizer({episode.header.instruction for episode in windows.episodes}, config.text.vocab_size)
    return SpatialVLAProcessor(config, spec, stats, tokenizer)


def first_model(config: SpatialVLAConfig, arguments: TrainArguments) -> SpatialVLAForConditionalGeneration:
    """The network before its first step, from random weights or published ones.

    Raises:
        SimEvalError: published weights that do not fit, or a part that cannot be frozen or adapted.
    """
    if arguments.llava3d is None:
        model = SpatialVLAForConditionalGeneration(config)
    else:
        model = from_llava3d(arguments.llava3d, config.action_expert_type, gemma=arguments.gemma, config=config)
    prepare_model(model, arguments)
    return model


def prepare_model(model: SpatialVLAForConditionalGeneration, arguments: TrainArguments) -> None:
    """What of the network is frozen or adapted, and how it is kept.

    Raises:
        SimEvalError: a part cannot be frozen or adapted.
    """
    freeze(model, arguments.freeze)
    add_adapters(model, arguments.lora, arguments.lora_rank)
    if arguments.precision == "bfloat16":
        convert(model, torch.bfloat16, frozen_only=True)
    if arguments.checkpointing:
        model.activation_checkpointing_enable()


def plan(config: SpatialVLAConfig, arguments: TrainArguments, views: int) -> tuple[tuple[Part, ...], Memory]:
    """The parts of the network that would be trained, and what that takes; no weight is made."""
    with torch.device("meta"):
        model = SpatialVLAForConditionalGeneration(config)
        prepare_model(model, arguments)
    parts = inventory(model)
    load = Load.at_most(config, views, arguments.batch_size, arguments.flow_samples)
    activation = torch.bfloat16 if arguments.precision == "bfloat16" else torch.float32
    return parts, training_memory(model, load, activation, arguments.checkpointing)


def describe(parts: Sequence[Part], memory: Memory) -> str:
    """Both as tables for the terminal."""
    total, trained = (sum(numbers) for numbers in zip(*((p.parameters, p.trained) for p in parts), strict=True))
    rows = [(part.name, f"{part.parameters:,}", f"{part.trained:,}") for part in parts]
    rows.append(("all", f"{total:,}", f"{trained:,} ({trained / total:.1%})"))
    needs = [(entry.name, f"{getattr(memory, entry.name) / GIGABYTE:.2f}") for entry in fields(memory)]
    needs.append(("all", f"{memory.total / GIGABYTE:.2f}"))
    return f"{terminal(('part', 'parameters', 'trained'), rows)}\n\n{terminal(('memory', 'GB'), needs)}"


def check_memory(memory: Memory, device: torch.device, share: int = 1) -> None:
    """Refuses a training that the device cannot hold.

    Args:
        share: into how many equal parts all but the activations are divided.

    Raises:
        SimEvalError: it cannot.
    """
    needed = (memory.total - memory.activations) / share + memory.activations
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        raise SimEvalError(
            f"training needs {needed / GIGABYTE:.1f} GB and {device} has {free / GIGABYTE:.1f} GB free: use a smaller "
            "--batch-size, --checkpointing, --precision bfloat16, --freeze or --lora, or --shard on several devices"
        )


def validation_keys(tasks: Sequence[str], episodes: int, total: int | None) -> list[EpisodeKey]:
    """The episodes of a round of validation, the same in every round, so that rounds can be compared.

    Args:
        episodes: of each task.
        total: of all tasks together at most, spread evenly over them; some may get none.
    """
    count = len(tasks)
    wanted = episodes * count if total is None else min(total, episodes * count)
    shares = [wanted * (number + 1) // count - wanted * number // count for number in range(count)]
    return [EpisodeKey(task, "val", index) for task, share in zip(tasks, shares, strict=True) for index in range(share)]


class Training:
    """A training in its folder, fresh or taken up where it was left.

    Args:
        arguments: of the command line, with either minutes or steps.
        windows: the demonstrations.
        processor: made from them.
        trainer: fresh; put where an interrupted training of the same kind left it.
        simulators: where validation happens, if the arguments want any.

    Raises:
        SimEvalError: the folder holds another training, or a damaged one.
    """

    def __init__(
        self,
        arguments: TrainArguments,
        windows: EpisodeWindows,
        processor: SpatialVLAProcessor,
        trainer: Trainer,
        simulators: OneSimulator,
    ) -> None:
        self._arguments, self._windows, self._processor = arguments, windows, processor
        self._trainer, self._simulators = trainer, simulators
        self._out, self._leads = arguments.out, trainer.process == 0
        self._keys = validation_keys(processor.spec.tasks, arguments.val_episodes, arguments.val_total)
        self._device = next(trainer.model.parameters()).device
        self._features = self._feature_cache()
        self.progress = self._resume()
        self.progress.due = min(self.progress.due, self._passed())  # rounds of a lengthened training fall due again
        trainer.meet()  # before anything is written

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
        writer = SummaryWriter(str(self._out / "tensorboard"), purge_step=trainer.step) if self._leads else None
        bar = tqdm(
            total=1.0, initial=round(self.share, 4), file=sys.stderr, dynamic_ncols=True, disable=not self._leads
        )
        bar.bar_format = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        bar.set_description(f"training {self._arguments.expert}")
        saved = self.progress.seconds
        began = time.monotonic() - saved
        try:
            for batch in self._batches():
                self.progress.seconds = trainer.agree(time.monotonic() - began)
                if self._arguments.val_episodes and self.progress.due < self._passed():
                    if writer:
                        entry = self._validate()
                        writer.add_scalar("val", entry.rate, trainer.step)
                        for name, (count, total) in entry.success.items():
                            writer.add_scalar(f"val/{name}", count / total, trainer.step)
                        bar.write(str(entry), file=sys.stderr)
                    self.progress.seconds = trainer.agree(time.monotonic() - began)
                    self.progress.due = self._passed()
                    self._save()
                    saved = self.progress.seconds
                if self.share >= 1.0:
                    break
                ready = self._processor.training_batch([self._windows[index] for index in batch]).to(self._device)
                context = self._features.context(batch, ready.inputs) if self._features else None
                loss, norm = trainer.train_step(ready, self.share, context)
                if not math.isfinite(loss):
                    raise SimEvalError(f"the loss is {loss} at step {trainer.step}: try a lower --learning-rate")
                if writer and trainer.step % LOG_STEPS == 0:
                    writer.add_scalar("train/loss", loss, trainer.step)
                    writer.add_scalar("train/gradient_norm", norm, trainer.step)
                    writer.add_scalar("train/learning_rate", trainer.learning_rate(self.share), trainer.step)
                    bar.set_postfix_str(f"step {trainer.step}, loss {loss:.3f}", refresh=False)
                bar.update(self.share - bar.n)
                if self.progress.seconds - saved > SAVE_SECONDS:
                    self._save()
                    saved = self.progress.seconds
            if not self._arguments.val_episodes:
                with trainer.averaged() as averaged:
                    self._keep(averaged)
            self._save()
            if self._leads:
                card = model_card(self.record(), self._processor.spec, RolloutProtocol().n_action_steps)
                (self._out / CARD_FILE).write_text(card)
        except KeyboardInterrupt:
            self._save()
            raise KeyboardInterrupt(
                f"interrupted: {trainer.step} steps kept in {self._out}; the same command continues"
            ) from None
        finally:
            bar.close()
            if writer:
                writer.close()

    def record(self) -> TrainingMetadata:
        """What there is to say of the training so far."""
        arguments, progress = self._arguments, self.progress
        parameters = list(self._trainer.model.parameters())
        return TrainingMetadata(
            expert=arguments.expert,
            size=arguments.size if arguments.llava3d is None else "published",
            seed=arguments.seed,
            batch_size=arguments.batch_size,
            flow_samples=arguments.flow_samples,
            balance=arguments.balance,
            frame_stride=arguments.frame_stride,
            optimizer=arguments.optimizer,
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
            earlier_budgets=progress.earlier_budgets,
        )

    def _batches(self) -> Iterator[list[int]]:
        """This process's share of the windows of each step, from the trainer's step on."""
        arguments, trainer = self._arguments, self._trainer
        share = arguments.batch_size
        temperature = 1 / (1 - arguments.balance) if arguments.balance < 1 else math.inf
        whole = TaskBalancedBatchSampler(
            self._windows, share * trainer.processes, arguments.seed, trainer.step, temperature
        )
        return (batch[share * trainer.process : share * (trainer.process + 1)] for batch in whole)

    def _feature_cache(self) -> FeatureCache | None:
        arguments, model = self._arguments, self._trainer.model
        if arguments.cache_features is None:
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
            "every": self._arguments.frame_stride,
            "shown": str(render_config_of(self._windows)),
        }
        return FeatureCache(arguments.cache_features, model.vlm, identity)

    def _passed(self) -> int:
        """How many of the shares at which a validation is due are behind."""
        return sum(self.share >= due for due in ROUNDS)

    def _validate(self) -> ValidationRound:
        """One round of rollouts on the val split with the averaged weights, kept if none did better before."""
        with self._trainer.averaged() as averaged:
            entry = self._round(SpatialVLAPolicy(averaged, self._processor, self._device))
            rounds = self.progress.rounds = (*self.progress.rounds, entry)
            if entry.rate >= max(each.rate for each in rounds):
                self._keep(averaged)
                self.progress.best = len(rounds) - 1
        return entry

    def _keep(self, model: SpatialVLAForConditionalGeneration) -> None:
        if self._leads:
            self.progress.digest = save_checkpoint(self._out, model, self._processor).digest
        else:
            whole_weights(model)  # of which the first process needs this one's part

    def _round(self, policy: SpatialVLAPolicy) -> ValidationRound:
        success: dict[str, tuple[int, int]] = {}
        minutes = self.progress.seconds / 60
        for name, keys in itertools.groupby(self._keys, key=lambda key: key.task):
            simulator = self._simulators.of(name)
            results = [run_episode(simulator, policy, key, RolloutProtocol()) for key in keys]
            if broken := [result.error for result in results if result.error]:
                raise SimEvalError(f"validation on {name} broke off: {broken[0]}")
            success[name] = sum(result.success for result in results), len(results)
        return ValidationRound(self._trainer.step, minutes, success)

    def _identity(self) -> dict[str, object]:
        """What must be the same for a training to be continued: everything but files and speed."""
        values = {k: v for k, v in asdict(self._arguments).items() if k not in FREE}
        episodes = [str(episode.key) for episode in self._windows.episodes]
        render = str(render_config_of(self._windows))
        return {**values, "episodes": episodes, "shown": render, "processes": self._trainer.processes}

    def _save(self) -> None:
        """Writes the training's state and its record, each whole or not at all."""
        trainer = self._trainer.state_dict()
        if not self._leads:
            return
        state = {"identity": self._identity(), "progress": asdict(self.progress), "trainer": trainer}
        partial = self._out / f".{STATE}.partial"
        try:
            torch.save(state, partial)
            os.replace(partial, self._out / STATE)
        except (OSError, RuntimeError) as error:
            raise SimEvalError(
                f"cannot write {self._out / STATE} ({error}): free some space or choose another --out"
            ) from error
        write_metadata(self._out, self.record())

    def _resume(self) -> Progress:
        path = self._out / STATE
        if not path.exists():
            if any(self._out.iterdir()):
                raise SimEvalError(f"{self._out} holds other files and no training: choose another --out")
            return Progress()
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            there, now = state["identity"], self._identity()
            progress = state["progress"]
            progress = Progress(
                **{**progress, "rounds": tuple(ValidationRound(**entry) for entry in progress["rounds"])}
            )
            changed = [name for name in now if there.get(name) != now[name]]
            if len(changed) == 1 and changed[0] in BUDGETS:
                (unit,) = changed
                if now[unit] < there[unit]:
                    raise SimEvalError(
                        f"{self._out} holds a training of --{unit} {there[unit]:g}: it can only be made longer"
                    )
                progress.earlier_budgets = (*progress.earlier_budgets, there[unit])
            elif changed:
                raise SimEvalError(
                    f"{self._out} holds another training ({', '.join(changed)} differ): "
                    "choose another --out or the same options"
                )
            self._trainer.load_state_dict(state["trainer"])
            return progress
        except SimEvalError:
            raise
        except Exception as error:  # torch.load reports damage in many ways
            raise SimEvalError(
                f"{path} is damaged ({type(error).__name__}): delete {self._out} and train again"
            ) from error
