"""A checkpoint against its own documents: ``training.json`` and the card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from sim_eval.core.errors import SimEvalError
from sim_eval.core.normalization import NormalizationStats
from sim_eval.datasets.episode_file import EpisodeHeader
from sim_eval.diagnosis.findings import Finding, graded
from sim_eval.evaluation.engine import RolloutProtocol
from sim_eval.policies.policy import PolicySpec
from sim_eval.reporting.model_card import model_card
from sim_eval.training.metadata import METADATA, read_metadata

CARD = "README.md"


def record_findings(folder: Path, spec: PolicySpec, stats: NormalizationStats) -> Iterator[Finding]:
    """Whether weights, statistics and card belong to the training that ``training.json`` describes."""
    if not (folder / METADATA).exists():
        yield Finding("record", "warning", f"{folder} has no {METADATA}", "train with sim_eval.train, which writes one")
        return
    metadata = read_metadata(folder)
    stale = metadata.digest != spec.digest
    yield graded(
        "weights",
        "fault" if stale else "ok",
        f"SHA-256 {spec.digest[:12]}" + (f", {METADATA} describes {metadata.digest[:12] or 'none'}" if stale else ""),
        f"stale: copy model.safetensors and {METADATA} from one training",
    )
    mode = metadata.config.normalization
    yield graded(
        "normalisation mode",
        "fault" if mode != stats.mode else "ok",
        f"{stats.mode}, trained with {mode}",
        "restore processor.json of the training",
    )
    card = folder / CARD
    same = card.is_file() and card.read_text() == model_card(metadata, spec, RolloutProtocol().n_action_steps)
    yield graded(
        "card",
        "ok" if same else "warning",
        f"{CARD} is {'' if same else 'not '}the one that {METADATA} makes",
        f"stale, or changed by hand: numbers in {CARD} may be another training's",
    )


def was_trained_on(folder: Path | None, headers: Sequence[EpisodeHeader]) -> bool:
    """Whether demonstrations are, by task and number, those that a checkpoint was trained on."""
    if folder is None or any(header.key.split != "train" for header in headers):
        return False
    try:
        return read_metadata(folder).demonstrations == Counter(header.key.task for header in headers)
    except SimEvalError:
        return False
