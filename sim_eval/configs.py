"""What each program is asked: frozen dataclasses, saved as JSON and read from there."""

# A stand-in of branch R, for its tests: branch T's file replaces it.

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sim_eval.core.normalization import NormalizationMode
from sim_eval.policies.spatialvla.configuration_spatialvla import ActionExpertType, SpatialVLAConfig

DEFAULT_MINUTES = 10.0


@dataclass(frozen=True)
class TrainConfig:
    """Train an action expert on LLaVA-3D from demonstrations."""

    data: tuple[Path, ...] = ()
    out: Path = Path("runs/train/mine")
    expert: ActionExpertType = "deep_llama"
    minutes: float | None = None
    steps: int | None = None
    seed: int = 0
    device: str = "auto"
    size: str = "tiny"
    llava3d: str | None = None
    gemma: str | None = None
    batch_size: int = 32
    flow_samples: int = 4
    frame_stride: int = 1
    demonstrations: int | None = None
    cameras: tuple[str, ...] = ()
    cache: Path | None = None
    workers: int = 1
    sampling_temperature: float = 2.0
    learning_rate: float = 1e-3
    optimizer: Literal["adamw", "muon"] = "adamw"
    normalization: NormalizationMode = "mean_std"
    network: SpatialVLAConfig = field(default_factory=SpatialVLAConfig)
    val_episodes: int = 20
    val_total: int | None = None
    threads: int | None = None
    freeze: tuple[str, ...] = ()
    lora: tuple[str, ...] = ()
    lora_rank: int = 16
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpointing: bool = False
    shard: bool = False
    cache_features: Path | None = None
