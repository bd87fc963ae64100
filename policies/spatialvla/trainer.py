"""One training step of a SpatialVLA: optimizer, schedule, clipping, moving average; on one device or on many.

Takes batches; knows no files and no simulator.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypedDict

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    OptimizerStateType,
    StateDictOptions,
    ValueType,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from sim_eval.policies.spatialvla import flow_matching
from sim_eval.policies.spatialvla.adapters import whole
from sim_eval.policies.spatialvla.modeling_llava3d import Context
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration
from sim_eval.policies.spatialvla.processing_spatialvla import TrainingBatch

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
OptimizerName: TypeAlias = Literal["adamw", "muon"]
# torch scales Muon's updates to a root mean square of 0.2 of its rate; here they have that of the learning rate.
MUON_RATE = 5.0


@dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    Attributes:
        batch_size: observations a step, of each process.
        flow_samples: (time, noise) samples an observation; they share the VLM's pass.
        learning_rate: AdamW's peak; it warms up over ``warmup_steps`` and falls by a cosine to a hundredth.
        weight_decay: on matrices only.
        clip_norm: largest gradient norm.
        ema_decay: of the weights that are evaluated; reached after a warm-up.
        optimizer: of the layers' matrices; "muon" (Jordan et al. 2024) makes each update orthogonal, which from random
            weights takes fewer steps, and each a little longer. All else is AdamW's.
        bfloat16: layers compute in bfloat16; weights that are trained, position embedding and loss stay float32.
    """

    batch_size: int = 32
    flow_samples: int = 4
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    ema_decay: float = 0.998
    optimizer: OptimizerName = "adamw"
    bfloat16: bool = False


class TrainerState(TypedDict):
    """Everything that a resumed run needs, besides the data's order, which follows from the step."""

    step: int
    model: dict[str, ValueType]
    averages: dict[str, Tensor]
    optimizer: OptimizerStateType


def accelerator_for(device: torch.device) -> Accelerator:
    """Of this process: alone on ``device``, or one of those that accelerate or torchrun has started.

    With several processes only the device's kind counts; each has the one of its number.
    """
    return Accelerator(cpu=device.type == "cpu", device_placement=False)


def divide(model: nn.Module, processes: int) -> None:
    """Divides weights, and with them gradients and optimizer, among the processes (FSDP).

    The units that are gathered together are matrices, not layers: deep fusion reads single projections of a layer.
    """
    mesh = init_device_mesh(next(model.parameters()).device.type, (processes,))
    for module in list(model.modules()):
        if isinstance(module, nn.Linear):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def make_optimizers(
    model: SpatialVLAForConditionalGeneration, config: TrainingConfig
) -> tuple[torch.optim.Optimizer, ...]:
    """One for everything, or Muon for the layers' matrices and AdamW for the rest."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    layers = {parameter for stack in model.stacks for parameter in stack.parameters() if parameter.dim() == 2}
    muons = [parameter for parameter in trained if parameter in layers] if config.optimizer == "muon" else []
    rest = [parameter for parameter in trained if parameter not in set(muons)]
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in rest if p.dim() > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    if not muons:
        return (adamw,)
    return adamw, torch.optim.Muon(muons, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")


class Trainer:
    """Trains a model in place and keeps the moving average of what is trained.

    With several processes each takes its share of a batch, and all together take the steps that one process would take
    with the whole.

    Args:
        model: on its device.
        config: how.
        seed: of the flow samples; those of step k are a function of (seed, k).
        accelerator: None: this process trains alone.
        shard: divide the network among the processes; otherwise each has all of it.

    Attributes:
        accelerator: through which the processes meet.
        process, processes: the number of this one, and of all.
        step: number of optimizer steps done.
    """

    def __init__(
        self,
        model: SpatialVLAForConditionalGeneration,
        config: TrainingConfig,
        seed: int,
        accelerator: Accelerator | None = None,
        shard: bool = False,
    ) -> None:
        self.config, self.step = config, 0
        self._seed = seed
        device = next(model.parameters()).device
        self.accelerator = accelerator or accelerator_for(device)
        self.process, self.processes = int(self.accelerator.process_index), int(self.accelerator.num_processes)
        shard = shard and self.processes > 1
        if shard:
            divide(model, self.processes)
        self._optimizers = make_optimizers(model, config)
        self.model = model
        self._wrapped: nn.Module = model if shard or self.processes == 1 else self.accelerator.prepare_model(model)
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._averages = {name: parameter.detach().clone() for name, parameter in self._trained.items()}

    @contextmanager
    def averaged(self) -> Iterator[SpatialVLAForConditionalGeneration]:
        """The model with the averages in the place of its weights, for as long as the context lasts."""
        self._exchange()
        device = next(iter(self._trained.values())).device.type
        try:
            with torch.autocast(device, torch.bfloat16, enabled=self.config.bfloat16):
                yield self.model.eval()
        finally:
            self._exchange()

    def train_step(self, batch: TrainingBatch, progress: float, context: Context | None = None) -> tuple[float, float]:
        """One step.

        Args:
            batch: this process's share, on its device.
            progress: share of the training that is behind, 0 to 1; decides the learning rate.
            context: what the VLM makes of the batch, where it is known.

        Returns:
            The loss of all processes' shares and the gradient's norm before clipping.
        """
        noise, time = self._draw(batch.actions)
        for optimizer in self._optimizers:
            share = MUON_RATE if isinstance(optimizer, torch.optim.Muon) else 1.0
            for group in optimizer.param_groups:
                group["lr"] = share * self.learning_rate(progress)
        self._wrapped.train()
        with torch.autocast(batch.actions.device.type, torch.bfloat16, enabled=self.config.bfloat16):
            loss: Tensor = self._wrapped(batch.inputs, batch.actions, batch.valid, noise, time, context)
        if self.processes > 1:
            # Each share's loss is a mean over its own valid steps; together they make the mean over all.
            count = batch.valid.sum()
            loss = loss * (count * self.processes / self.accelerator.reduce(count))
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(self._trained.values(), self.config.clip_norm)
        for optimizer in self._optimizers:
            optimizer.step()
        self.step += 1
        self._update_averages()
        return float(self.accelerator.reduce(loss.detach(), "mean")), float(whole(norm))

    def learning_rate(self, progress: float) -> float:
        """Warm-up by steps, then a cosine over the progress."""
        warm = min(1.0, (self.step + 1) / self.config.warmup_steps)
        cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
        return self.config.learning_rate * warm * cosine

    def state_dict(self) -> TrainerState:
        """Whole, however it is divided among processes; all of them must ask."""
        return TrainerState(
            step=self.step,
            model=get_model_state_dict(self.model, options=WHOLE),
            averages={name: whole(average).cpu() for name, average in self._averages.items()},
            optimizer=get_optimizer_state_dict(self.model, self._optimizers, options=WHOLE),
        )

    def load_state_dict(self, state: TrainerState) -> None:
        self.step = state["step"]
        set_model_state_dict(self.model, state["model"], options=WHOLE)
        set_optimizer_state_dict(self.model, self._optimizers, state["optimizer"], options=WHOLE)
        for name, average in self._averages.items():
            saved = state["averages"][name]
            if isinstance(average, DTensor):
                saved = distribute_tensor(saved.to(average.device), average.device_mesh, average.placements)
            average.copy_(saved)

    def _draw(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        # On the CPU, so that they do not depend on the device; of all shares, so that they do not depend on the number
        # of processes.
        generator = torch.Generator().manual_seed((self._seed << 32) + self.step)
        share, chunk_size, dim = actions.shape
        batch = share * self.processes
        noise = torch.randn((batch, self.config.flow_samples, chunk_size, dim), generator=generator)
        time = flow_matching.sample_time((batch, self.config.flow_samples), generator)
        mine = slice(share * self.process, share * (self.process + 1))
        return noise[mine].to(actions.device), time[mine].to(actions.device)

    @torch.no_grad()
    def _update_averages(self) -> None:
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self._averages.values()), list(self._trained.values()), 1 - decay)

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self._trained.items():
            average = self._averages[name]
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)
