"""Train a policy on demonstrations: ``python -m sim_eval.train --data data/lift_wide --out runs/train/mine``.

``--out`` becomes a checkpoint folder that ``sim_eval.rollout --policy`` takes, with the weights that did best on
rollouts of the ``val`` split. The same command again continues an interrupted training; with more ``--minutes`` or
``--steps`` it lengthens one, finished or not.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from sim_eval.configs import TrainConfig
from sim_eval.console import make_folder, run
from sim_eval.core.programs import command

if TYPE_CHECKING:
    from sim_eval.training.metadata import TrainingMetadata

PROGRAM = command("train")
DRY_VIEWS = 2  # of a dry run, which has no demonstrations to count them in


def main(config: TrainConfig) -> int:
    """Runs the command; returns the exit code."""
    config = config.checked()
    if not config.dry_run:
        make_folder(config.out)
    import torch

    from sim_eval.envs.tasks import get_task
    from sim_eval.evaluation.jobs import OneSimulator
    from sim_eval.policies.devices import resolve_device
    from sim_eval.policies.spatialvla.configuration_spatialvla import SIZES
    from sim_eval.policies.spatialvla.trainer import Trainer, TrainingConfig, accelerator_for
    from sim_eval.reporting.records import print_records
    from sim_eval.training.loop import TrainingLoop
    from sim_eval.training.memory import check_memory, describe, plan
    from sim_eval.training.preparation import first_model, fitted, make_processor, open_windows, render_config_of

    torch.set_flush_denormal(True)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = resolve_device(config.device)
    if config.dry_run:
        usual = SIZES[config.size][config.expert].vision.image_size
        parts, memory = plan(fitted(config.network, usual), config, DRY_VIEWS)
        needs = {**asdict(memory), "total": memory.total}
        if not print_records(config, lambda: {"parts": parts, "memory": needs}, lambda: map(asdict, parts)):
            print(describe(parts, memory))
        check_memory(memory, device)
        return 0
    accelerator = accelerator_for(device)
    processes, leads = accelerator.num_processes, accelerator.is_main_process
    device = device if processes == 1 else accelerator.device
    with accelerator.main_process_first():  # which writes what is not on the disk yet
        windows = open_windows(config)
        processor = make_processor(windows, config)
        _, memory = plan(processor.config, config, len(processor.spec.cameras))
        check_memory(memory, device, processes if config.shard else 1)
        torch.manual_seed(config.seed)
        model = first_model(processor.config, config).to(device)
    step_config = TrainingConfig(
        config.batch_size,
        config.flow_samples,
        config.learning_rate,
        optimizer=config.optimizer,
        bfloat16=config.precision == "bfloat16",
    )
    trainer = Trainer(model, step_config, config.seed, accelerator, config.shard)
    with closing(OneSimulator(render_config_of(windows))) as simulators:
        if config.val_episodes and leads:  # what validation lacks is said before the first step
            for name in processor.spec.tasks:
                get_task(name)
            simulators.of(processor.spec.tasks[0])
        training = TrainingLoop(config, windows, processor, trainer, simulators)
        training.run()
    if leads:
        report(training.metadata(), config)
    return 0


def report(training: TrainingMetadata, config: TrainConfig) -> None:
    """Prints the rounds of validation, and what to do next."""
    from sim_eval.reporting.records import print_records

    rounds = [
        {
            "step": each.step,
            "minutes": each.minutes,
            "rate": each.rate,
            "kept": number == training.best,
            "tasks": {task: {"successes": count, "episodes": total} for task, (count, total) in each.success.items()},
        }
        for number, each in enumerate(training.rounds)
    ]
    values = {"out": config.out, "steps": training.steps, "minutes": training.minutes, "passes": training.passes}
    if print_records(config, lambda: {**values, "rounds": rounds}, lambda: rounds or [values]):
        return
    print(f"{config.out}: {training.steps} steps in {training.minutes:.1f} minutes")
    for entry, each in zip(rounds, training.rounds, strict=True):
        print(f"  {each}{' <- kept' if entry['kept'] else ''}")
    if training.rounds and not any(each.rate for each in training.rounds):
        print(
            f"It has not learnt the task yet: no validation episode succeeded after {training.steps} steps, which are "
            f"{training.passes:.1f} passes over the data. Train it longer; this goes on where it stopped:\n"
            f"  {command('train')} {lengthened(config).options}"
        )
    else:
        print(f"score it: {command('rollout')} --policy {config.out}")


def lengthened(config: TrainConfig) -> TrainConfig:
    """The configuration with a budget that teaches more: an hour, or four times what it had if that is more."""
    if config.steps is not None:
        return replace(config, steps=4 * config.steps)
    return replace(config, minutes=max(60.0, 4 * (config.minutes or 0)))


if __name__ == "__main__":
    run(main, TrainConfig, PROGRAM)
