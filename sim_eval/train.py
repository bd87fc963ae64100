"""Train a policy on demonstrations: ``python -m sim_eval.train --data data/lift_wide --out runs/train/mine``.

``--out`` becomes a checkpoint folder that ``sim_eval.rollout --policy`` takes, with the weights that did best on
rollouts of the ``val`` split. The same command again continues an interrupted training.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import tyro

from sim_eval.console import at_least, run
from sim_eval.envs.contract import EpisodeKey, NormalizationMode, RenderMode, SimEvalError, SimulatorOptions

if TYPE_CHECKING:
    from sim_eval.datasets.windows import EpisodeWindows
    from sim_eval.envs.contract import Simulator
    from sim_eval.policies.spatialvla.processing_spatialvla import SpatialVLAProcessor
    from sim_eval.policies.spatialvla.training import Trainer

PROGRAM = "python -m sim_eval.train"
STATE_FIELDS = ("eef_pos", "eef_rot6d", "gripper_qpos")
DEFAULT_MINUTES = 15.0
# When the weights are tried on the val split, as shares of the training.
ROUNDS = (0.4, 0.55, 0.7, 0.85, 1.0)
STATE, CARD_FILE, SAVE_SECONDS = "training.pt", "README.md", 60.0


@dataclass(frozen=True)
class TrainArguments:
    """Train an action expert on LLaVA-3D from demonstrations.

    Attributes:
        data: folders of episodes that sim_eval.collect filled.
        out: checkpoint folder; one that holds an interrupted training is continued.
        expert: which of the two fusion experts.
        minutes: how long to train on the clock, validation included; without it and --steps: 15.
        steps: how many optimizer steps to train instead.
        seed: of the initial weights, the order of the data and the noise.
        device: auto, cpu, cuda or another of torch's devices.
        size: of the network.
        batch_size: observations a step.
        draws: (time, noise) draws an observation.
        learning_rate: peak of the cosine.
        normalization: mean_std, or quantile (1 % and 99 % to -1 and 1), for states and actions.
        val_episodes: validation rollouts of each task in each round; 0: none, the last weights are kept.
    """

    data: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="DIR [DIR ...]")]
    out: Path
    expert: Annotated[str, tyro.conf.arg(metavar="{deep_llama}")] = "deep_llama"
    minutes: float | None = None
    steps: int | None = None
    seed: int = 0
    device: str = "auto"
    size: Annotated[str, tyro.conf.arg(metavar="{tiny}")] = "tiny"
    batch_size: int = 32
    draws: int = 4
    learning_rate: float = 1e-3
    normalization: NormalizationMode = "mean_std"
    val_episodes: int = 20


@dataclass
class Progress:
    """How far a training is; what a resumed run starts from, besides the trainer's state.

    Attributes:
        seconds: on the clock so far, validation included.
        rounds: what each validation gave: step, minutes, successes by task.
        best: index of the best round, -1 before the first.
    """

    seconds: float
    rounds: list[dict[str, object]]
    best: int = -1

    def share(self, arguments: TrainArguments, step: int) -> float:
        """Of the whole training, 0 to 1."""
        if arguments.steps is not None:
            return min(1.0, step / arguments.steps)
        return min(1.0, self.seconds / (60 * (arguments.minutes or DEFAULT_MINUTES)))


def main(arguments: TrainArguments) -> int:
    """Runs the command; returns the exit code."""
    check(arguments)
    import torch

    from sim_eval.datasets.windows import EpisodeWindows
    from sim_eval.envs.tasks import get_task
    from sim_eval.policies.spatialvla.checkpoint import resolve_device
    from sim_eval.policies.spatialvla.configuration_spatialvla import SIZES
    from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration
    from sim_eval.policies.spatialvla.training import Trainer, TrainingConfig

    torch.set_flush_denormal(True)
    device = resolve_device(arguments.device)
    windows = EpisodeWindows(arguments.data, SIZES[arguments.size].expert.horizon)
    processor = make_processor(windows, arguments)
    torch.manual_seed(arguments.seed)
    model = SpatialVLAForConditionalGeneration(processor.config).to(device)
    config = TrainingConfig(arguments.batch_size, arguments.draws, arguments.learning_rate)
    trainer = Trainer(model, config, arguments.seed)
    progress = resume(arguments, windows, trainer)
    shown = shown_as(windows)
    simulators = {
        name: get_task(name).make(shown)
        for name in processor.spec.tasks
        if arguments.val_episodes
    }
    try:
        train(arguments, windows, processor, trainer, progress, simulators)
    finally:
        for simulator in simulators.values():
            simulator.close()
    print(f"{arguments.out}: {trainer.step} steps in {progress.seconds / 60:.1f} minutes")
    for index, entry in enumerate(progress.rounds):
        print(
            "  "
            + ", ".join(f"{name} {value}" for name, value in entry.items())
            + (" <- kept" * (index == progress.best))
        )
    print(f"score it: python -m sim_eval.rollout --policy {arguments.out}")
    return 0


def check(arguments: TrainArguments) -> None:
    """Refuses arguments that cannot work, before anything is loaded."""
    from sim_eval.policies.spatialvla.configuration_spatialvla import EXPERTS, SIZES

    if arguments.expert not in EXPERTS:
        raise SimEvalError(f"unknown expert '{arguments.expert}': choose one of {', '.join(EXPERTS)}")
    if arguments.size not in SIZES:
        raise SimEvalError(f"unknown size '{arguments.size}': choose one of {', '.join(SIZES)}")
    if arguments.minutes is not None and arguments.steps is not None:
        raise SimEvalError("give --minutes or --steps, not both")
    if not arguments.data:
        raise SimEvalError("--data needs at least one folder of episodes; sim_eval.collect makes one")
    at_least("minutes", DEFAULT_MINUTES if arguments.minutes is None else arguments.minutes, 0.01)
    at_least("steps", 1 if arguments.steps is None else arguments.steps, 1)
    for name in ("batch_size", "draws"):
        at_least(name.replace("_", "-"), getattr(arguments, name), 1)
    for name in ("seed", "val_episodes"):
        at_least(name.replace("_", "-"), getattr(arguments, name), 0)
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SimEvalError(
            f"--out {arguments.out} cannot be written ({error.strerror}): choose another folder"
        ) from error


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
    from sim_eval.datasets.normalization import normalization_stats
    from sim_eval.policies.policy import PolicySpec
    from sim_eval.policies.spatialvla.configuration_spatialvla import SIZES, ActionExpertType
    from sim_eval.policies.spatialvla.processing_spatialvla import SpatialVLAProcessor, train_tokenizer

    if foreign := [str(episode.key) for episode in windows.episodes if episode.key.split != "train"]:
        raise SimEvalError(f"--data holds {foreign[0]}: only episodes of the train split may be trained on")
    proprio = {name: windows.spec.proprio[name] for name in STATE_FIELDS}
    tiny = SIZES[arguments.size]
    side = max(max(size) for size in windows.spec.cameras.values())
    config = replace(
        tiny,
        vision=replace(tiny.vision, image_size=side),
        expert=replace(tiny.expert, state_dim=sum(proprio.values()), action_dim=windows.spec.action.dim),
        action_expert_type=cast(ActionExpertType, arguments.expert),
    )
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


def train(
    arguments: TrainArguments,
    windows: EpisodeWindows,
    processor: SpatialVLAProcessor,
    trainer: Trainer,
    progress: Progress,
    simulators: Mapping[str, Simulator],
) -> None:
    """Trains to the end of the budget; on Ctrl-C it saves and says how to go on."""
    from torch.utils.tensorboard import SummaryWriter
    from tqdm import tqdm

    from sim_eval.datasets.windows import batches

    device = next(trainer.model.parameters()).device
    rounds = ROUNDS if simulators else ()
    writer = SummaryWriter(str(arguments.out / "tensorboard"), purge_step=trainer.step)
    bar = tqdm(
        total=1.0, initial=round(progress.share(arguments, trainer.step), 4), file=sys.stderr, dynamic_ncols=True
    )
    bar.bar_format = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    bar.set_description(f"training {arguments.expert}")
    saved = time.monotonic()
    began = saved - progress.seconds
    try:
        for batch in batches(windows, arguments.batch_size, arguments.seed, trainer.step):
            progress.seconds = time.monotonic() - began
            share = progress.share(arguments, trainer.step)
            if len(progress.rounds) < sum(share >= due for due in rounds):
                validate(arguments, processor, trainer, progress, simulators)
                for name, value in progress.rounds[-1].items():
                    if name in simulators:
                        writer.add_scalar(f"val/{name}", successes(str(value)), trainer.step)
                progress.seconds = time.monotonic() - began
                save(arguments, windows, trainer, progress)
                share = progress.share(arguments, trainer.step)
                bar.write(
                    f"step {trainer.step}: " + ", ".join(f"{k} {v}" for k, v in progress.rounds[-1].items()),
                    file=sys.stderr,
                )
            if share >= 1.0:
                break
            ready = processor.training_batch(batch)
            loss, norm = trainer.train_step(
                ready.inputs.to(device), ready.actions.to(device), ready.valid.to(device), share
            )
            if trainer.step % 20 == 0:
                for name, value in (
                    ("loss", loss),
                    ("gradient_norm", norm),
                    ("learning_rate", trainer.learning_rate(share)),
                ):
                    writer.add_scalar(f"train/{name}", value, trainer.step)
                bar.set_postfix_str(f"step {trainer.step}, loss {loss:.3f}", refresh=False)
            bar.update(share - bar.n)
            if time.monotonic() - saved > SAVE_SECONDS:
                save(arguments, windows, trainer, progress)
                saved = time.monotonic()
        if not rounds:
            keep(arguments, processor, trainer, progress)
        save(arguments, windows, trainer, progress)
        (arguments.out / CARD_FILE).write_text(card(arguments, windows, processor, trainer, progress))
    except KeyboardInterrupt:
        save(arguments, windows, trainer, progress)
        raise KeyboardInterrupt(
            f"interrupted: {trainer.step} steps kept in {arguments.out}; the same command continues"
        ) from None
    finally:
        bar.close()
        writer.close()


def validate(
    arguments: TrainArguments,
    processor: SpatialVLAProcessor,
    trainer: Trainer,
    progress: Progress,
    simulators: Mapping[str, Simulator],
) -> None:
    """One round of rollouts on the val split with the averaged weights, which are kept if none did better before."""
    from sim_eval.evaluation.engine import RolloutProtocol, run_episode
    from sim_eval.policies.spatialvla.checkpoint import SpatialVLAPolicy

    device = next(trainer.ema.parameters()).device
    policy = SpatialVLAPolicy(trainer.ema, processor, device)
    entry: dict[str, object] = {"step": trainer.step, "minutes": f"{progress.seconds / 60:.1f}"}
    for name, simulator in simulators.items():
        keys = [EpisodeKey(name, "val", index) for index in range(arguments.val_episodes)]
        results = [run_episode(simulator, policy, key, RolloutProtocol()) for key in keys]
        if broken := [result.error for result in results if result.error]:
            raise SimEvalError(f"validation on {name} broke off: {broken[0]}")
        entry[name] = f"{sum(result.success for result in results)}/{len(results)}"
    progress.rounds.append(entry)
    scores = [sum(successes(str(each[name])) for name in simulators) for each in progress.rounds]
    if scores[-1] >= max(scores):
        progress.best = len(progress.rounds) - 1
        keep(arguments, processor, trainer, progress)


def successes(fraction: str) -> float:
    """The rate of "17/20"."""
    count, total = fraction.split("/")
    return int(count) / int(total)


def keep(arguments: TrainArguments, processor: SpatialVLAProcessor, trainer: Trainer, progress: Progress) -> None:
    """Makes the averaged weights of this moment the checkpoint."""
    from sim_eval.policies.spatialvla.checkpoint import save_checkpoint

    save_checkpoint(arguments.out, trainer.ema, processor)


def identity(arguments: TrainArguments, windows: EpisodeWindows) -> dict[str, object]:
    """What must be the same for a training to be continued: everything but where its files lie."""
    values = {name: value for name, value in asdict(arguments).items() if name not in ("data", "out", "device")}
    values["episodes"] = [str(episode.key) for episode in windows.episodes]
    return cast(dict[str, object], json.loads(json.dumps(values)))


def save(arguments: TrainArguments, windows: EpisodeWindows, trainer: Trainer, progress: Progress) -> None:
    """Writes the training's state, whole or not at all."""
    import torch

    partial = arguments.out / f".{STATE}.partial"
    try:
        torch.save(
            {"identity": identity(arguments, windows), "progress": asdict(progress), "trainer": trainer.state_dict()},
            partial,
        )
        os.replace(partial, arguments.out / STATE)
    except (OSError, RuntimeError) as error:
        raise SimEvalError(
            f"cannot write {arguments.out / STATE} ({error}): free some space or choose another --out"
        ) from error


def resume(arguments: TrainArguments, windows: EpisodeWindows, trainer: Trainer) -> Progress:
    """Puts the trainer where an interrupted training of the same kind left it; a fresh start if there is none.

    Raises:
        SimEvalError: the folder holds another training, or a damaged one.
    """
    import torch

    path = arguments.out / STATE
    if not path.exists():
        if any(arguments.out.iterdir()):
            raise SimEvalError(f"{arguments.out} holds other files and no training: choose another --out")
        return Progress(0.0, [])
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        there, now = state["identity"], identity(arguments, windows)
        if changed := [name for name in now if there.get(name) != now[name]]:
            raise SimEvalError(
                f"{arguments.out} holds another training ({', '.join(changed)} differ): "
                "choose another --out or the same options"
            )
        trainer.load_state_dict(state["trainer"])
        return Progress(**state["progress"])
    except SimEvalError:
        raise
    except Exception as error:  # torch.load reports damage in many ways
        raise SimEvalError(
            f"{path} is damaged ({type(error).__name__}): delete {arguments.out} and train again"
        ) from error


def card(
    arguments: TrainArguments,
    windows: EpisodeWindows,
    processor: SpatialVLAProcessor,
    trainer: Trainer,
    progress: Progress,
) -> str:
    """The model card of a finished training."""
    import torch

    from sim_eval.evaluation.engine import RolloutProtocol
    from sim_eval.evaluation.run_folder import machine
    from sim_eval.reporting.model_card import model_card

    versions = cast(Mapping[str, str], machine()["versions"])
    device = next(trainer.model.parameters()).device.type
    facts = {
        "name": f"{arguments.expert}, seed {arguments.seed}",
        "expert": arguments.expert,
        "size": arguments.size,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()) / 1e6,
        "tasks": ", ".join(processor.spec.tasks),
        "cameras": " and ".join(f"{name} ({size[0]}x{size[1]})" for name, size in processor.spec.cameras.items()),
        "proprio": ", ".join(processor.spec.proprio),
        "episodes": len(windows.episodes),
        "windows": len(windows),
        "command": shlex.join([*PROGRAM.split(), *sys.argv[1:]]),
        "seed": arguments.seed,
        "minutes": progress.seconds / 60,
        "steps": trainer.step,
        "batch_size": arguments.batch_size,
        "device": f"{device} ({torch.get_num_threads()} threads)" if device == "cpu" else device,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "replan": RolloutProtocol().replan,
    }
    return model_card(facts, progress.rounds, progress.best)


if __name__ == "__main__":
    run(main, TrainArguments, PROGRAM)
