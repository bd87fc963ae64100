"""The README of a trained checkpoint: what it is, and where its numbers come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

CARD = """# {name}

{expert} action expert ({parameters:.2f} M parameters in all, size `{size}`), trained from random weights by sim_eval.

| what | value |
|---|---|
| tasks | {tasks} |
| sees | RGB-D of {cameras}; proprioception {proprio}; the instruction |
| demonstrations | {episodes} episodes, {windows} control steps, split `train`; how: docs/results.md |
| command | `{command}` |
| seed | {seed} |
| trained | {minutes:.1f} minutes, {steps} steps of {batch_size} observations, on {device} |
| versions | {versions} |

Validation (split `val`, replanning every {replan} control steps); the shipped weights are the round marked `best`:

{validation}
"""


def model_card(facts: Mapping[str, object], rounds: Sequence[Mapping[str, object]], best: int) -> str:
    """Markdown from the facts that ``CARD`` names and the validation rounds, of which ``best`` was kept."""
    if not rounds:
        return CARD.format(**facts, validation="none was run; the weights are the last ones.")
    columns = list(rounds[0])
    lines = ["| " + " | ".join([*columns, ""]) + " |", "|---" * (len(columns) + 1) + "|"]
    for index, entry in enumerate(rounds):
        lines.append(
            "| " + " | ".join([*(str(entry[name]) for name in columns), "best" if index == best else ""]) + " |"
        )
    return CARD.format(**facts, validation="\n".join(lines))
