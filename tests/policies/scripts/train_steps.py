"""Six steps on a batch of eight, by as many processes as were started; the first one writes what came of them.

Arguments: the file to write, the expert, and "shard" or "copy".
"""

import sys

import torch

from sim_eval.policies.spatialvla.adapters import whole_weights
from sim_eval.policies.spatialvla.configuration_spatialvla import (
    ActionExpertType,
    ExpertConfig,
    SpatialVLAConfig,
    TextConfig,
    VisionConfig,
)
from sim_eval.policies.spatialvla.modeling_llava3d import IMAGE_TOKEN, Geometry, SpatialVLAInputs
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration
from sim_eval.policies.spatialvla.processing_spatialvla import TrainingBatch
from sim_eval.policies.spatialvla.trainer import Trainer, TrainingConfig, accelerator_for

BATCH, VIEWS, SIZE, STEPS = 8, 2, 32, 6


def config(expert: ActionExpertType) -> SpatialVLAConfig:
    return SpatialVLAConfig(
        vision=VisionConfig(image_size=SIZE, patch_size=8, width=32, layers=1, heads=2, mlp=48),
        text=TextConfig(width=32, layers=2, heads=4, kv_heads=2, mlp=48, vocab_size=20),
        expert=ExpertConfig(width=24, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=40, chunk_size=4),
        action_expert_type=expert,
    )


def batch() -> TrainingBatch:
    """Eight observations; the first four chunks are cut short, so that halves of the batch count unequally."""
    generator = torch.Generator().manual_seed(0)
    intrinsics = torch.tensor([[40.0, 0, SIZE / 2], [0, 40.0, SIZE / 2], [0, 0, 1]])
    geometry = Geometry(
        depths=0.5 + torch.rand(BATCH, VIEWS, SIZE, SIZE, generator=generator),
        intrinsics=intrinsics.expand(BATCH, VIEWS, 3, 3),
        poses=torch.eye(4).expand(BATCH, VIEWS, 4, 4),
        workspace=torch.tensor([[-1.0, -1.0, 0.0], [1.0, 1.0, 1.2]]).expand(BATCH, 2, 3),
    )
    inputs = SpatialVLAInputs(
        pixel_values=torch.randn(BATCH, VIEWS, 3, SIZE, SIZE, generator=generator),
        geometry=geometry,
        input_ids=torch.tensor([[3, 4, IMAGE_TOKEN, 5]]).expand(BATCH, -1),
        attention_mask=torch.ones(BATCH, 4, dtype=torch.bool),
        state=torch.randn(BATCH, 9, generator=generator),
    )
    length = torch.tensor([1, 2, 1, 3, 4, 4, 4, 4])
    actions = torch.randn(BATCH, 4, 7, generator=generator)
    return TrainingBatch(inputs, actions, torch.arange(4) < length[:, None])


def share(whole: TrainingBatch, process: int, processes: int) -> TrainingBatch:
    size = BATCH // processes
    mine = slice(size * process, size * (process + 1))
    inputs, geometry = whole.inputs, whole.inputs.geometry
    assert geometry is not None
    return TrainingBatch(
        SpatialVLAInputs(
            inputs.pixel_values[mine],
            Geometry(*(value[mine] for value in vars(geometry).values())),
            inputs.input_ids[mine],
            inputs.attention_mask[mine],
            inputs.state[mine],
        ),
        whole.actions[mine],
        whole.valid[mine],
    )


def main(out: str, expert: ActionExpertType, kind: str) -> None:
    torch.set_num_threads(1)
    accelerator = accelerator_for(torch.device("cpu"))
    torch.manual_seed(0)
    model = SpatialVLAForConditionalGeneration(config(expert))
    trainer = Trainer(model, TrainingConfig(batch_size=BATCH, warmup_steps=1), 5, accelerator, kind == "shard")
    mine = share(batch(), trainer.process, trainer.processes)
    curve = [trainer.train_step(mine, step / STEPS) for step in range(STEPS // 2)]
    state = trainer.state_dict()  # of which the first process has the whole
    if trainer.process == 0:
        torch.save(state, f"{out}.state")
    accelerator.wait_for_everyone()
    trainer.load_state_dict(torch.load(f"{out}.state", weights_only=True))
    curve += [trainer.train_step(mine, step / STEPS) for step in range(STEPS // 2, STEPS)]
    with trainer.averaged() as averaged:
        weights = {name: tensor.clone() for name, tensor in whole_weights(averaged).items()}
    if trainer.process == 0:
        divided = any(type(parameter).__name__ == "DTensor" for parameter in trainer.model.parameters())
        torch.save({"curve": curve, "weights": weights, "processes": trainer.processes, "divided": divided}, out)
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3])  # type: ignore[arg-type]
