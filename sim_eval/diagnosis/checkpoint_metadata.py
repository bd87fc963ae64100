"""A checkpoint against its own papers: ``training.json`` and the card."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sim_eval.core.errors import SimEvalError
from sim_eval.core.normalization import NormalizationMode
from sim_eval.diagnosis.findings import Finding, graded
from sim_eval.evaluation.engine import RolloutProtocol
from sim_eval.policies.policy import PolicySpec
from sim_eval.reporting.model_card import model_card
from sim_eval.training.metadata import METADATA, TrainingMetadata, read_metadata

if TYPE_CHECKING:
    from sim_eval.core.normalization import NormalizationStats
    from sim_eval.datasets.episode_file import EpisodeHeader

CARD = "README.md"


def record_findings(folder: Path, spec: PolicySpec, stats: NormalizationStats) -> Iterator[Finding]:
    """Whether weights, statistics and card are those of the training that the record tells of."""
    if not (folder / METADATA).exists():
        yield Finding("record", "warning", f"{folder} has no {METADATA}", "train with sim_eval.train, which writes one")
        return
    record = read_metadata(folder)
    stale = record.digest != spec.digest
    yield graded(
        "weights",
        "fault" if stale else "ok",
        f"SHA-256 {spec.digest[:12]}" + (f", {METADATA} tells of {record.digest[:12] or 'none'}" if stale else ""),
        f"stale: copy model.safetensors and {METADATA} from one training",
    )
    mode = recorded_mode(record)
    yield graded(
        "normalisation mode",
        "fault" if mode not in (None, stats.mode) else "ok",
        f"{stats.mode}" + (f", trained with {mode}" if mode else ", the training's is not recorded"),
        "restore processor.json of the training",
    )
    card = folder / CARD
    same = card.is_file() and card.read_text() == model_card(record, spec, RolloutProtocol().n_action_steps)
    yield graded(
        "card",
        "ok" if same else "warning",
        f"{CARD} is {'' if same else 'not '}the one that {METADATA} makes",
        f"stale, or changed by hand: numbers in {CARD} may be another training's",
    )


def recorded_mode(record: TrainingMetadata) -> NormalizationMode | None:
    """The normalisation mode that the training's command asked for; None: the command does not tell."""
    words = [part for word in shlex.split(record.command) for part in word.split("=", 1)]
    if "--data" not in words:  # somebody's program called it
        return None
    if "--normalization" not in words:
        from sim_eval.train import TrainArguments

        return TrainArguments.normalization
    asked = words[words.index("--normalization") + 1 :][:1]
    return next((mode for mode in ("mean_std", "quantile") if [mode] == asked), None)


def was_trained_on(folder: Path | None, headers: Sequence[EpisodeHeader]) -> bool:
    """Whether demonstrations are, by task and number, those that a checkpoint's record names."""
    if folder is None or any(header.key.split != "train" for header in headers):
        return False
    try:
        return read_metadata(folder).demonstrations == Counter(header.key.task for header in headers)
    except SimEvalError:
        return False
