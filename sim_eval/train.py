"""Train a policy on demonstrations: ``python -m sim_eval.train --data data/lift_wide --out runs/train/mine``.

``--out`` becomes a checkpoint folder that ``sim_eval.rollout --policy`` takes, with the weights that did best on
rollouts of the ``val`` split. The same command again continues an interrupted training; with more ``--minutes`` or
``--steps`` it lengthens one, finished or not.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import tyro

from sim_eval.console import at_least, make_folder, run
from sim_eval.core.errors import SimEvalError
from sim_eval.core.normalization import NormalizationMode
from sim_eval.policies.spatialvla.configuration_spatialvla import ACTION_EXPERTS, SIZES

PROGRAM = "python -m sim_eval.train"
DEFAULT_MINUTES = 10.0
DRY_VIEWS = 2  # of a dry run, which has no demonstrations to count them in
SEEDS = 2**31  # a step's draws are seeded by seed and step together, in 64 bits

Precision: TypeAlias = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class TrainArguments:
    """Train an action expert on LLaVA-3D from demonstrations.

    Attributes:
        data: folders of episodes that sim_eval.collect filled.
        out: checkpoint folder; one that holds an interrupted training is continued, and with more minutes or
            steps than it was to take it is lengthened.
        expert: which of the two fusion experts.
        minutes: how long to train on the clock, validation included; without it and --steps: 10.
        steps: how many optimizer steps to train instead.
        seed: of the initial weights, the order of the data and the noise.
        device: auto, cpu, cuda or another of torch's devices.
        size: of a network from random weights.
        llava3d: published LLaVA-3D to start from, a folder or a repository such as ChaimZhu/LLaVA-3D-7B.
        gemma: published Gemma that late_gemma's decoder starts from then, such as google/gemma-2b.
        batch_size: observations a step, of each process.
        draws: (time, noise) draws an observation.
        every: train on what was seen at every so many steps of a demonstration; the actions keep their rate.
        demonstrations: so many of each task, the first by key; default: all.
        cameras: which of the recorded cameras the policy sees; default: all.
        balance: 1 draws every task equally often, 0 every control step of the data; 0.5 lies between.
        learning_rate: peak of the cosine.
        optimizer: adamw, or muon for the layers' matrices, which learns in fewer steps from random weights.
        normalization: mean_std, or quantile (1 % and 99 % to -1 and 1), for states and actions.
        overrides: fields of the network to set otherwise, such as frame=world or position.kind=2d.
        threads: torch's threads on the CPU; default: all.
        val_episodes: validation rollouts of each task in each round; 0: none, the last weights are kept.
        val_total: rollouts a round at most, spread evenly over the tasks; default: no limit.
        freeze: parts that are not trained: vision, position, projector, vlm, expert.
        lora: parts that get adapters in the place of training: vision, vlm, expert.
        lora_rank: of the adapters.
        precision: bfloat16 computes in it and keeps frozen parts in it; what is trained stays float32.
        checkpointing: keep only each layer's input and run it again for the gradient: less memory, more time.
        shard: divide the network among the processes that accelerate or torchrun has started (FSDP).
        cache_features: folder for what a frozen VLM makes of each window, so that it runs once on each.
        dry_run: print parts, what is trained and the memory that it takes, and stop; needs no --data.
    """

    data: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="DIR [DIR ...]")] = ()
    out: Path = Path("runs/train/mine")
    expert: Annotated[str, tyro.conf.arg(metavar=f"{{{','.join(ACTION_EXPERTS)}}}")] = "deep_llama"
    minutes: float | None = None
    steps: int | None = None
    seed: int = 0
    device: str = "auto"
    size: Annotated[str, tyro.conf.arg(metavar=f"{{{','.join(SIZES)}}}")] = "tiny"
    llava3d: str | None = None
    gemma: str | None = None
    batch_size: int = 32
    flow_samples: int = 4
    frame_stride: int = 1
    demonstrations: int | None = None
    cameras: Annotated[tuple[str, ...], tyro.conf.arg(metavar="C [...]")] = ()
    balance: float = 0.5
    learning_rate: float = 1e-3
    optimizer: Literal["adamw", "muon"] = "adamw"
    normalization: NormalizationMode = "mean_std"
    val_episodes: int = 20
    val_total: int | None = None
    overrides: Annotated[tuple[str, ...], tyro.conf.arg(name="set", metavar="FIELD=VALUE [...]")] = ()
    threads: int | None = None
    freeze: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PART [...]")] = ()
    lora: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PART [...]")] = ()
    lora_rank: int = 16
    precision: Precision = "float32"
    checkpointing: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    shard: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    cache_features: Path | None = None
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


def main(arguments: TrainArguments) -> int:
    """Runs the command; returns the exit code."""
    check(arguments)
    import torch

    from sim_eval.datasets.windows import EpisodeWindows
    from sim_eval.envs.tasks import get_task
    from sim_eval.evaluation.jobs import OneSimulator
    from sim_eval.policies.spatialvla.checkpoint import resolve_device
    from sim_eval.policies.spatialvla.trainer import Trainer, TrainingConfig, accelerator_for
    from sim_eval.training.loop import (
        Training,
        check_memory,
        describe,
        first_model,
        make_processor,
        network,
        plan,
        render_config_of,
    )

    torch.set_flush_denormal(True)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    minutes = DEFAULT_MINUTES if arguments.minutes is None and arguments.steps is None else arguments.minutes
    device = resolve_device(arguments.device)
    if arguments.dry_run:
        parts, memory = plan(network(arguments), arguments, DRY_VIEWS)
        print(describe(parts, memory))
        check_memory(memory, device)
        return 0
    accelerator = accelerator_for(device)
    share, leads = accelerator.num_processes, accelerator.process_index == 0
    device = device if share == 1 else accelerator.device
    windows = EpisodeWindows(
        arguments.data,
        network(arguments).expert.chunk_size,
        frame_stride=arguments.frame_stride,
        demonstrations=arguments.demonstrations,
    )
    processor = make_processor(windows, arguments)
    _, memory = plan(processor.config, arguments, len(processor.spec.cameras))
    check_memory(memory, device, share if arguments.shard else 1)
    torch.manual_seed(arguments.seed)
    model = first_model(processor.config, arguments).to(device)
    config = TrainingConfig(
        arguments.batch_size,
        arguments.flow_samples,
        arguments.learning_rate,
        optimizer=arguments.optimizer,
        bfloat16=arguments.precision == "bfloat16",
    )
    trainer = Trainer(model, config, arguments.seed, accelerator, arguments.shard)
    with closing(OneSimulator(render_config_of(windows))) as simulators:
        if arguments.val_episodes and leads:  # what is missing for validation is told before the first step
            for name in processor.spec.tasks:
                get_task(name)
            simulators.of(processor.spec.tasks[0])
        training = Training(replace(arguments, minutes=minutes), windows, processor, trainer, simulators)
        training.run()
    progress = training.progress
    if not leads:
        return 0
    print(f"{arguments.out}: {trainer.step} steps in {progress.seconds / 60:.1f} minutes")
    for index, entry in enumerate(progress.rounds):
        kept = " <- kept" if index == progress.best else ""
        print(f"  {entry}{kept}")
    print(f"score it: python -m sim_eval.rollout --policy {arguments.out}")
    return 0


def check(arguments: TrainArguments) -> None:
    """Refuses arguments that cannot work, before anything is loaded."""
    if arguments.expert not in ACTION_EXPERTS:
        raise SimEvalError(f"unknown expert '{arguments.expert}': choose one of {', '.join(ACTION_EXPERTS)}")
    if arguments.size not in SIZES:
        raise SimEvalError(f"unknown size '{arguments.size}': choose one of {', '.join(SIZES)}")
    if arguments.minutes is not None and arguments.steps is not None:
        raise SimEvalError("give --minutes or --steps, not both")
    if arguments.size != "tiny" and not arguments.dry_run:
        raise SimEvalError(
            f"--size {arguments.size} would start from random weights: start from published ones, "
            "--llava3d ChaimZhu/LLaVA-3D-7B, or look with --dry-run"
        )
    if arguments.shard and arguments.val_episodes:
        raise SimEvalError("--shard leaves no process the whole network: use --val-episodes 0 and score with rollout")
    if arguments.shard and arguments.optimizer == "muon":
        raise SimEvalError("--shard leaves no process a whole matrix, and muon needs them: use --optimizer adamw")
    at_least("lora-rank", arguments.lora_rank, 1)
    if both := set(arguments.freeze) & set(arguments.lora):
        raise SimEvalError(f"part '{min(both)}' is in --freeze and in --lora: --lora freezes it too")
    if not arguments.data and not arguments.dry_run:
        raise SimEvalError("--data needs at least one folder of episodes; sim_eval.collect makes one")
    at_least("minutes", DEFAULT_MINUTES if arguments.minutes is None else arguments.minutes, 0.01)
    at_least("steps", 1 if arguments.steps is None else arguments.steps, 1)
    at_least("threads", 1 if arguments.threads is None else arguments.threads, 1)
    if not 0 <= arguments.balance <= 1:
        raise SimEvalError(f"--balance must lie between 0 and 1, not {arguments.balance}")
    at_least("learning-rate", arguments.learning_rate, 1e-9)
    for name in ("demonstrations", "val_total"):
        if (number := getattr(arguments, name)) is not None:
            at_least(name.replace("_", "-"), number, 1)
    for name in ("batch_size", "flow_samples", "frame_stride"):
        at_least(name.replace("_", "-"), getattr(arguments, name), 1)
    for name in ("seed", "val_episodes"):
        at_least(name.replace("_", "-"), getattr(arguments, name), 0)
    if arguments.seed >= SEEDS:
        raise SimEvalError(f"--seed must be below {SEEDS}, not {arguments.seed}")
    if not arguments.dry_run:
        make_folder(arguments.out)


if __name__ == "__main__":
    run(main, TrainArguments, PROGRAM)
