"""A small real network and hand-made scenes whose geometry is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from sim_eval.core.normalization import FieldStats, NormalizationStats
from sim_eval.core.types import ActionSpec, CameraView, Observation, WorkspaceBox
from sim_eval.policies.policy import PolicySpec
from sim_eval.policies.spatialvla import flow_matching
from sim_eval.policies.spatialvla.configuration_spatialvla import (
    ExpertConfig,
    PositionConfig,
    SpatialVLAConfig,
    TextConfig,
    VisionConfig,
)
from sim_eval.policies.spatialvla.modeling_llava3d import Context, SpatialVLAInputs
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration
from sim_eval.policies.spatialvla.processing_spatialvla import SpatialVLAProcessor, train_tokenizer

SIZE = 32
INSTRUCTIONS = ("lift the cube", "pick up the red block and raise it")
CONFIG = SpatialVLAConfig(
    vision=VisionConfig(image_size=SIZE, patch_size=8, width=32, layers=2, heads=2, mlp=48),
    text=TextConfig(width=32, layers=3, heads=4, kv_heads=2, mlp=48, vocab_size=320),
    expert=ExpertConfig(width=24, layers=3, heads=4, kv_heads=2, head_dim=8, mlp=40, chunk_size=4, action_dim=7),
    position=PositionConfig(),
    voxel_size=0.02,
)
# Late fusion asks for nothing of the VLM's in its expert: neither depth nor heads nor rope agree here.
LATE = replace(
    CONFIG,
    expert=replace(CONFIG.expert, layers=2, kv_heads=1, head_dim=10, rope_theta=5e3),
    action_expert_type="late_gemma",
)
CONFIGS = {
    "deep_llama": CONFIG,
    "late_gemma": LATE,
    "late_gemma, cross-attention": replace(LATE, conditioning="cross_attention"),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)  # loading a checkpoint sets it for the whole process


@pytest.fixture
def config() -> SpatialVLAConfig:
    return CONFIG


@pytest.fixture
def late_config() -> SpatialVLAConfig:
    return LATE


@pytest.fixture(params=CONFIGS)
def each_config(request: pytest.FixtureRequest) -> SpatialVLAConfig:
    """Runs the test for both experts."""
    return CONFIGS[request.param]


@pytest.fixture
def make_model() -> Callable[[SpatialVLAConfig], SpatialVLAForConditionalGeneration]:
    def make(config: SpatialVLAConfig) -> SpatialVLAForConditionalGeneration:
        torch.manual_seed(1)
        return SpatialVLAForConditionalGeneration(config)

    return make


@pytest.fixture
def model(
    make_model: Callable[[SpatialVLAConfig], SpatialVLAForConditionalGeneration],
) -> SpatialVLAForConditionalGeneration:
    return make_model(CONFIG)


@pytest.fixture
def each_model(
    make_model: Callable[[SpatialVLAConfig], SpatialVLAForConditionalGeneration], each_config: SpatialVLAConfig
) -> SpatialVLAForConditionalGeneration:
    return make_model(each_config)


@pytest.fixture
def loss_of() -> Callable[[SpatialVLAForConditionalGeneration, SpatialVLAInputs], Tensor]:
    """The loss on actions, noise and times that are always the same, two draws an observation."""

    def loss(model: SpatialVLAForConditionalGeneration, inputs: SpatialVLAInputs) -> Tensor:
        torch.manual_seed(3)
        batch, horizon = len(inputs.state), model.network.expert.chunk_size
        noise, time = torch.randn(batch, 2, horizon, 7), flow_matching.sample_time((batch, 2))
        valid = torch.ones(batch, horizon, dtype=torch.bool)
        found: Tensor = model(inputs, torch.randn(batch, horizon, 7), valid, noise, time)
        return found

    return loss


@pytest.fixture
def velocity_of() -> Callable[[SpatialVLAForConditionalGeneration, Context, Tensor, Tensor, Tensor], Tensor]:
    """The velocity at (context, state, x, time), everything made anew."""

    def velocity(
        model: SpatialVLAForConditionalGeneration, context: Context, state: Tensor, x: Tensor, time: Tensor
    ) -> Tensor:
        expert = model.action_expert
        return expert.velocity(expert.prepare(context, model.vlm.language_model.layers, x.shape[1]), state, x, time)

    return velocity


@pytest.fixture
def observe() -> Callable[[int], Observation]:
    """Two cameras above a table at z = 0, looking straight down on one box of their own each."""

    def make(seed: int) -> Observation:
        rng = np.random.default_rng(seed)
        intrinsics = np.array([[40.0, 0, SIZE / 2], [0, 40.0, SIZE / 2], [0, 0, 1]])
        views = {}
        for name, height in (("agentview", 1.0), ("wrist", 0.4)):
            depth = np.full((SIZE, SIZE), height, np.float32)
            row, column = rng.integers(0, SIZE - 12, 2)
            depth[row : row + 12, column : column + 12] = height - 0.1
            pose = np.diag([1.0, -1.0, -1.0, 1.0])
            pose[:3, 3] = 0.01 * rng.standard_normal(2).tolist()[0], 0.0, height
            rgb = rng.integers(0, 255, (SIZE, SIZE, 3)).astype(np.uint8)
            views[name] = CameraView(rgb, depth, intrinsics, pose)
        proprio = {
            "eef_pos": rng.uniform(-0.1, 0.1, 3),
            "eef_quat": np.array([0.0, 0.0, 0.0, 1.0]),
            "gripper_qpos": rng.uniform(-0.02, 0.02, 2),
        }
        box = WorkspaceBox((-0.5, -0.5, 0.02), (0.5, 0.5, 0.5))
        return Observation(views, proprio, INSTRUCTIONS[seed % 2], box)

    return make


@pytest.fixture
def processor() -> SpatialVLAProcessor:
    names = tuple(f"a{i}" for i in range(7))
    spec = PolicySpec(
        name="deep_llama",
        robot="Panda",
        cameras={"agentview": (SIZE, SIZE), "wrist": (SIZE, SIZE)},
        proprio={"eef_pos": 3, "eef_quat": 4, "gripper_qpos": 2},
        action=ActionSpec(names, (-1.0,) * 7, (1.0,) * 7, "ee_delta_pose", 20.0),
        tasks=("robosuite/Lift",),
    )
    fields = {
        name: FieldStats((0.1,) * n, (0.5,) * n, (-0.8,) * n, (0.9,) * n)
        for name, n in {**spec.proprio, "action": 7}.items()
    }
    return SpatialVLAProcessor(CONFIG, spec, NormalizationStats("mean_std", fields), train_tokenizer(INSTRUCTIONS, 320))


@pytest.fixture
def inputs(processor: SpatialVLAProcessor, observe: Callable[[int], Observation]) -> SpatialVLAInputs:
    """Three observations whose prompts and numbers of scene tokens differ."""
    return processor([observe(seed) for seed in range(3)])
