"""One training step of a SpatialVLA: optimizer, schedule, clipping, EMA.

Takes batches; knows no files and no simulator.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from sim_eval.policies.spatialvla import flow_matching
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration
from sim_eval.policies.spatialvla.processing_spatialvla import TrainingBatch


@dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    Attributes:
        batch_size: observations a step.
        draws: (time, noise) draws an observation; they share the VLM's pass.
        learning_rate: AdamW's peak; it warms up over ``warmup_steps`` and falls by a cosine to a hundredth.
        weight_decay: on matrices only.
        clip_norm: largest gradient norm.
        ema_decay: of the weights that are evaluated; reached after a warm-up.
    """

    batch_size: int = 32
    draws: int = 4
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    ema_decay: float = 0.998


class TrainerState(TypedDict):
    """Everything that a resumed run needs, besides the data's order, which follows from the step."""

    step: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, object]


class Trainer:
    """Trains a model in place and keeps the moving average of its weights in ``ema``.

    Args:
        model: on its device, float32.
        config: how.
        seed: of the (time, noise) draws; step k's draws are a function of (seed, k).
    """

    def __init__(self, model: SpatialVLAForConditionalGeneration, config: TrainingConfig, seed: int) -> None:
        self.model, self.config, self.step = model, config, 0
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)
        self._seed = seed
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._trainable = trainable
        self._optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in trainable if p.dim() > 1], "weight_decay": config.weight_decay},
                {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(0.9, 0.95),
            fused=True,
        )

    def train_step(self, batch: TrainingBatch, progress: float) -> tuple[float, float]:
        """One step on a batch, which is on the model's device.

        Args:
            progress: share of the training that is behind, 0 to 1; decides the learning rate.

        Returns:
            The loss and the gradient's norm before clipping.
        """
        noise, time = self._draw(batch.actions)
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate(progress)
        self.model.train()
        loss: Tensor = self.model(batch.inputs, batch.actions, batch.valid, noise, time)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self._trainable, self.config.clip_norm)
        self._optimizer.step()
        self.step += 1
        self._update_ema()
        return float(loss.detach()), float(norm)

    def learning_rate(self, progress: float) -> float:
        """Warm-up by steps, then a cosine over the progress."""
        warm = min(1.0, (self.step + 1) / self.config.warmup_steps)
        cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
        return self.config.learning_rate * warm * cosine

    def state_dict(self) -> TrainerState:
        return TrainerState(
            step=self.step,
            model=self.model.state_dict(),
            ema=self.ema.state_dict(),
            optimizer=self._optimizer.state_dict(),
        )

    def load_state_dict(self, state: TrainerState) -> None:
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self._optimizer.load_state_dict(state["optimizer"])

    def _draw(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        # On the CPU, so that the draws do not depend on the device.
        generator = torch.Generator().manual_seed((self._seed << 32) + self.step)
        batch, horizon, dim = actions.shape
        noise = torch.randn((batch, self.config.draws, horizon, dim), generator=generator)
        time = flow_matching.sample_time((batch, self.config.draws), generator)
        return noise.to(actions.device), time.to(actions.device)

    @torch.no_grad()
    def _update_ema(self) -> None:
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        averages, values = zip(*zip(self.ema.parameters(), self.model.parameters(), strict=True), strict=True)
        torch._foreach_lerp_(averages, values, 1 - decay)
