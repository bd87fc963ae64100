"""Train a policy on demonstrations: ``python -m sim_eval.train --data data/lift_wide --out runs/train/mine``.

``--out`` becomes a checkpoint folder that ``sim_eval.rollout --policy`` takes, with the weights that did best on
rollouts of the ``val`` split. The same command again continues an interrupted training; with more ``--minutes`` or
``--steps`` it lengthens one, finished or not.
"""

from __future__ import annotations

from contextlib import closing

from sim_eval.configs import TrainConfig
from sim_eval.console import make_folder, run

PROGRAM = "python -m sim_eval.train"
DRY_VIEWS = 2  # of a dry run, which has no demonstrations to count them in


def main(config: TrainConfig) -> int:
    """Runs the command; returns the exit code."""
    config = config.checked()
    if not config.dry_run:
        make_folder(config.out)
    import torch

    from sim_eval.envs.tasks import get_task
    from sim_eval.evaluation.jobs import OneSimulator
    from sim_eval.policies.spatialvla.checkpoint import resolve_device
    from sim_eval.policies.spatialvla.configuration_spatialvla import SIZES
    from sim_eval.policies.spatialvla.trainer import Trainer, TrainingConfig, accelerator_for
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
    progress = training.progress
    if not leads:
        return 0
    print(f"{config.out}: {trainer.step} steps in {progress.seconds / 60:.1f} minutes")
    for index, entry in enumerate(progress.rounds):
        kept = " <- kept" if index == progress.best else ""
        print(f"  {entry}{kept}")
    print(f"score it: python -m sim_eval.rollout --policy {config.out}")
    return 0


if __name__ == "__main__":
    run(main, TrainConfig, PROGRAM)
