"""The README of a trained checkpoint: what it is, and where its numbers come from."""

from __future__ import annotations

from sim_eval.policies.policy import PolicySpec
from sim_eval.reporting.summary import grouped
from sim_eval.reporting.tables import Table
from sim_eval.training.metadata import LISTED, TrainingMetadata

CARD = """# {name}

{config.expert} action expert ({parameters:.2f} M parameters in all, size `{metadata.size}`), trained from {start} \
by sim_eval.

| what | value |
|---|---|
| sees | RGB-D of {cameras}{render}; proprioception {proprio}; the instruction |
| command | `{config.command}` |
| network | {network} |
| seed | {config.seed} |
| trained | {metadata.minutes:.1f} minutes, {metadata.steps} steps of {config.batch_size} observations with \
{config.optimizer}, on {device}{lengthened} |
| versions | {versions} |

Demonstrations (split `train`; how: docs/results.md), sampled with temperature {config.sampling_temperature:g} \
between tasks:

{demonstrations}

Validation (split `val`, {n_action_steps} actions of each chunk executed); the shipped weights are the round marked \
`best`:

{validation}
"""


def model_card(metadata: TrainingMetadata, spec: PolicySpec, n_action_steps: int) -> str:
    """Markdown of a training's metadata.

    Args:
        spec: of the policy: what it sees.
        n_action_steps: actions of each chunk that validation executed.
    """
    config = metadata.config
    budgets = " and of ".join(f"{budget:g}" for budget in metadata.earlier_budgets)
    threads = f" ({metadata.threads} threads)" if metadata.device == "cpu" else ""
    changes = {name.partition(".")[2]: value for name, value in config.changes().items() if "." in name}
    return CARD.format(
        metadata=metadata,
        config=config,
        name=f"{config.expert}, seed {config.seed}",
        parameters=metadata.parameters / 1e6,
        start="random weights" if config.llava3d is None else f"`{config.llava3d}`",
        cameras=" and ".join(f"{name} ({size[0]}x{size[1]})" for name, size in spec.cameras.items()),
        render=f", rendered `{spec.render}`" if spec.render else "",
        proprio=", ".join(spec.proprio),
        network=", ".join(f"`{name}={value}`" for name, value in changes.items()) or f"`{metadata.size}` unchanged",
        device=metadata.device + threads,
        lengthened=f"; a budget of {budgets} was lengthened" if budgets else "",
        versions=", ".join(f"{name} {version}" for name, version in metadata.versions.items()),
        demonstrations=Table(
            ["task", "episodes", "windows"],
            [[task, str(count), str(metadata.windows[task])] for task, count in metadata.demonstrations.items()],
        ).markdown(),
        n_action_steps=n_action_steps,
        validation=_validation(metadata),
    )


def _validation(metadata: TrainingMetadata) -> str:
    if not metadata.rounds:
        return "none was run; the weights are the last ones."
    tasks = list(metadata.rounds[0].success)
    many = len(tasks) > LISTED
    families = grouped(tasks, lambda task: task.partition("/")[0] if many else task)
    columns = {f"{name}, {len(each)} tasks" if many else name: each for name, each in families.items()}
    rows = [
        [
            str(entry.step),
            f"{entry.minutes:.1f}",
            *(_score([entry.success[task] for task in together]) for together in columns.values()),
            *[f"{entry.rate:.1%}"] * many,
            "best" if index == metadata.best else "",
        ]
        for index, entry in enumerate(metadata.rounds)
    ]
    return Table(["step", "minutes", *columns, *["mean of tasks"] * many, ""], rows).markdown()


def _score(counts: list[tuple[int, int]]) -> str:
    """Successes and episodes of several tasks together."""
    return "/".join(str(sum(each)) for each in zip(*counts, strict=True))
