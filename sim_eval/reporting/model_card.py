"""The README of a trained checkpoint: what it is, and where its numbers come from."""

from __future__ import annotations

from sim_eval.policies.policy import PolicySpec
from sim_eval.training.metadata import LISTED, TrainingMetadata

CARD = """# {name}

{record.expert} action expert ({parameters:.2f} M parameters in all, size `{record.size}`), trained from random \
weights by sim_eval.

| what | value |
|---|---|
| sees | RGB-D of {cameras}{look}; proprioception {proprio}; the instruction |
| command | `{record.command}` |
| network | {overrides} |
| seed | {record.seed} |
| trained | {record.minutes:.1f} minutes, {record.steps} steps of {record.batch_size} observations with \
{record.optimizer}, on {device}{lengthened} |
| versions | {versions} |

Demonstrations (split `train`; how: docs/results.md), drawn with balance {record.balance:g} between tasks:

{demonstrations}

Validation (split `val`, replanning every {n_action_steps} control steps); the weights kept are those of the round \
marked `best`:

{validation}
"""


def model_card(record: TrainingMetadata, spec: PolicySpec, n_action_steps: int) -> str:
    """Markdown of a training's record.

    Args:
        spec: what the policy sees.
        replan: control steps between two validation answers.
    """
    budgets = " and of ".join(f"{budget:g}" for budget in record.earlier_budgets)
    threads = f" ({record.threads} threads)" if record.device == "cpu" else ""
    return CARD.format(
        record=record,
        name=f"{record.expert}, seed {record.seed}",
        parameters=record.parameters / 1e6,
        cameras=" and ".join(f"{name} ({size[0]}x{size[1]})" for name, size in spec.cameras.items()),
        look=f", drawn `{spec.render}`" if spec.render else "",
        proprio=", ".join(spec.proprio),
        overrides=", ".join(f"`{change}`" for change in record.overrides) or f"`{record.size}` unchanged",
        device=record.device + threads,
        lengthened=f"; a budget of {budgets} was lengthened" if budgets else "",
        versions=", ".join(f"{name} {version}" for name, version in record.versions.items()),
        demonstrations=_table(
            ["task", "episodes", "windows"],
            [[task, str(count), str(record.windows[task])] for task, count in record.demonstrations.items()],
        ),
        n_action_steps=n_action_steps,
        validation=_validation(record),
    )


def _validation(record: TrainingMetadata) -> str:
    if not record.rounds:
        return "none was run; the weights are the last ones."
    tasks = list(record.rounds[0].success)
    many = len(tasks) > LISTED
    columns = _families(tasks) if many else {task: [task] for task in tasks}
    rows = [
        [
            str(entry.step),
            f"{entry.minutes:.1f}",
            *(_score([entry.success[task] for task in together]) for together in columns.values()),
            *([f"{entry.rate:.1%}"] if many else []),
            "best" if index == record.best else "",
        ]
        for index, entry in enumerate(record.rounds)
    ]
    return _table(["step", "minutes", *columns, *(["mean of tasks"] if many else []), ""], rows)


def _families(tasks: list[str]) -> dict[str, list[str]]:
    """The tasks of each family, by its heading."""
    families: dict[str, list[str]] = {}
    for task in tasks:
        families.setdefault(task.partition("/")[0], []).append(task)
    return {f"{family}, {len(members)} tasks": members for family, members in families.items()}


def _score(counts: list[tuple[int, int]]) -> str:
    """Successes and episodes of several tasks together."""
    return "/".join(str(sum(each)) for each in zip(*counts, strict=True))


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
