"""Run folders as reports read them: which of them count, and how a run's policy and protocol are named."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from sim_eval.core.errors import SimEvalError
from sim_eval.evaluation.engine import RolloutProtocol
from sim_eval.evaluation.run_folder import Run, read_run


class LeftOut(NamedTuple):
    """A folder that a report does not count, and why."""

    folder: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.folder}: {self.reason}"


def folders_with(name: str, paths: Iterable[Path], kind: str) -> list[Path]:
    """The folders at or beneath the paths that hold a file of this name, each once.

    Raises:
        SimEvalError: a path holds none; says that it should name a folder of this kind.
    """
    folders: dict[Path, Path] = {}
    for path in paths:
        beneath = sorted(file.parent for file in path.rglob(name))
        if not beneath:
            raise SimEvalError(f"{path} holds no {name}: name {kind} folders, or folders that hold some")
        for folder in beneath:
            folders.setdefault(folder.resolve(), folder)
    return list(folders.values())


def complete_runs(folders: Sequence[Path]) -> tuple[list[Run], list[LeftOut]]:
    """Reads run folders; partial and damaged ones are left out."""
    runs, left_out = [], []
    for folder in folders:
        try:
            run = read_run(folder)
        except SimEvalError as error:
            left_out.append(LeftOut(folder, str(error)))
            continue
        if run.complete:
            runs.append(run)
        else:
            left_out.append(LeftOut(folder, partial(run)))
    return runs, left_out


def partial(run: Run) -> str:
    """How many episodes a partial run has, and how it is resumed."""
    return f"{len(run.episodes)} of {len(run.manifest.keys)} episodes: resume it by rollout --out {run.folder}"


def policy_label(run: Run) -> str:
    """The policy's name, its weights, the settings that override its checkpoint's, and whether it is privileged."""
    spec = run.spec
    weights, variant = f"@{spec.digest[:8]}" * bool(spec.digest), f", {spec.variant}" * bool(spec.variant)
    return f"{spec.name}{weights}{variant}{' (privileged)' * spec.privileged}"


def protocol_fields(protocol: RolloutProtocol) -> dict[str, object]:
    """The protocol's fields by name; those of its rendering as ``render.mode`` and so on."""
    values = asdict(protocol)
    render = values.pop("render")
    return {**values, **{f"render.{name}": value for name, value in render.items()}}


def describe(protocol: RolloutProtocol) -> tuple[str, ...]:
    """The protocol in words, one field each; the correct instruction and the trained robot go without saying."""
    condition = protocol.instruction_condition
    return (
        f"n_action_steps {protocol.n_action_steps}",
        f"post_success_steps {protocol.post_success_steps}",
        *[f"instruction_condition {condition}"] * (condition != "correct"),
        f"rendering {protocol.render}",
        *["other robot than trained for"] * protocol.other_robot,
    )
