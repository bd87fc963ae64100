"""The network's options say what is wrong, and old files are read by new code."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sim_eval.configs import TrainConfig
from sim_eval.console import parse
from sim_eval.core.errors import SimEvalError
from sim_eval.policies.registry import CHECKPOINTS
from sim_eval.policies.spatialvla.configuration_spatialvla import (
    SIZES,
    ActionExpertType,
    ExpertConfig,
    PositionConfig,
    SpatialVLAConfig,
    TextConfig,
    VisionConfig,
)

TINY = SIZES["tiny"]["deep_llama"]
OPEN = replace(TINY, vision=replace(TINY.vision, image_size=0), expert=replace(TINY.expert, state_dim=0, action_dim=0))


def network(*options: str, expert: ActionExpertType = "deep_llama") -> SpatialVLAConfig:
    """Of the training with these options, "frame world"; the order of the options does not matter."""
    orders = [[word for each in order for word in f"--network.{each}".split()] for order in (options, options[::-1])]
    forwards, backwards = (parse(TrainConfig, "train", ["--expert", expert, *words]).network for words in orders)
    assert forwards == backwards
    return forwards


def test_options_set_fields_by_their_types() -> None:
    found = network(
        "frame world",
        "position.kind 2d",
        "expert.context-projection expert",
        "voxel-size None",
        "vision.prune False",
        "text.norm-eps 1e-5",
        "expert.chunk-size 16",
    )
    assert found == replace(
        OPEN,
        frame="world",
        voxel_size=None,
        vision=replace(OPEN.vision, prune=False),
        text=replace(OPEN.text, norm_eps=1e-5),
        position=replace(OPEN.position, kind="2d"),
        expert=replace(OPEN.expert, context_projection="expert", chunk_size=16),
    )
    assert network() == OPEN
    assert network("voxel-size 0.04").voxel_size == 0.04


def test_only_the_result_has_to_fit() -> None:
    assert network("text.layers 3", "expert.layers 3").expert.layers == 3
    late = network("expert.layers 4", expert="late_gemma")
    assert (late.expert.layers, late.text.layers, late.action_expert_type) == (4, 2, "late_gemma")


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("frmae world", ["--network.frmae", "similar: --network.frame"]),
        ("position.king 2d", ["--network.position.king", "similar: --network.position.kind"]),
        ("position 2d", ["--network.position"]),
        ("frame.x 2d", ["--network.frame.x"]),
        ("text.head-dim 8", ["--network.text.head-dim", "--network.expert.head-dim"]),
        ("frame elbow", ["--network.frame", "gripper", "world", "elbow"]),
        ("position.kind 2D", ["--network.position.kind", "{3d,2d}"]),
        ("action-expert-type gemma", ["--network.action-expert-type", "{deep_llama,late_gemma}"]),
        ("vision.prune 1", ["--network.vision.prune", "{True,False}"]),
        ("expert.chunk-size 8.5", ["--network.expert.chunk-size N", "not '8.5'"]),
        ("expert.chunk-size None", ["--network.expert.chunk-size N", "not 'None'"]),
        ("expert.chunk-size 0", ["expert: 'chunk_size'", "greater than or equal to 1"]),
        ("expert.width 0", ["expert: 'width'", "greater than or equal to 1"]),
        ("expert.heads 0", ["expert: 'heads'", "greater than or equal to 1"]),
        ("voxel-size fine", ["--network.voxel-size X", "not 'fine'"]),
        ("voxel-size -1", ["--network.voxel-size", "greater than 0"]),
        ("position.scale nan", ["position: 'scale'", "finite"]),
        ("position.scale None", ["--network.position.scale X", "not 'None'"]),
        ("expert.layers 3", ["expert.layers", "text.layers"]),
        ("position.points 0", ["position: 'points'", "greater than or equal to 1"]),
        ("position.points 2", ["position.points", "square"]),
        ("position.points 9", ["position.points 9", "3 x 3", "vision.patch_size 8"]),
        ("voxel-size", ["--network.voxel-size", "Missing value"]),
        ("", ["--network."]),
    ],
)
def test_bad_options_are_named_in_one_line(option: str, says: list[str]) -> None:
    with pytest.raises(SimEvalError) as caught:
        network(option)
    message = str(caught.value)
    assert "\n" not in message
    for part in says:
        assert part in message, message


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"frmae": "world"}, "unknown field 'frmae': the fields are vision, text"),
        ({"position": {"king": "2d"}}, "unknown field 'position.king': the fields are depth_sampling, frequencies"),
        ({"text": 3}, "'text': input should be an object, not 3"),
        ({"frame": "elbow"}, "'frame': input should be 'gripper' or 'world', not 'elbow'"),
        ({"text": {"layers": "2"}}, "'text.layers': input should be a valid integer, not '2'"),
        ({"text": {"heads": 0}}, "'text.heads': input should be greater than or equal to 1, not 0"),
        ({"vision": {"prune": 1}}, "'vision.prune': input should be a valid boolean, not 1"),
        ({"vision": {"feature_layer": 0}}, "vision.feature_layer 0 must lie between -2 and -1"),
        ({"voxel_size": 0}, "'voxel_size': input should be greater than 0, not 0"),
    ],
)
def test_a_bad_file_is_named_in_one_line(table: dict[str, object], says: str) -> None:
    with pytest.raises(SimEvalError) as caught:
        SpatialVLAConfig.from_dict(table)
    assert str(caught.value).startswith(f"network: {says}")
    assert "\n" not in str(caught.value)


def test_a_bound_holds_however_a_part_was_made() -> None:
    for part in (
        {"text": TextConfig(heads=0)},
        {"vision": VisionConfig(patch_size=0)},
        {"expert": ExpertConfig(width=-2)},
        {"position": PositionConfig(near=float("inf"))},
    ):
        (name,) = part
        with pytest.raises(SimEvalError, match=f"^{name}: '.*': input should be "):
            SpatialVLAConfig(**part)  # type: ignore[arg-type]


def test_an_option_without_effect_is_refused() -> None:
    with pytest.raises(SimEvalError, match="late_gemma"):
        network("expert.context-projection expert", expert="late_gemma")


def test_a_file_from_before_a_field_existed_means_its_default() -> None:
    data = json.loads(json.dumps(TINY.to_dict()))
    del data["position"]["kind"], data["frame"]
    assert SpatialVLAConfig.from_dict(data) == TINY
    shipped = json.loads((CHECKPOINTS / "deep_llama" / "config.json").read_text())
    assert SpatialVLAConfig.from_dict(shipped["network"]).position.kind == "3d"


@pytest.mark.parametrize("other", ["position.kind 2d", "position.depth-sampling center"])
def test_several_points_are_cells_in_space(other: str) -> None:
    assert network("position.points 4").position.points_a_side == 2
    with pytest.raises(SimEvalError, match=other.split()[0].replace("-", "_")):
        network("position.points 4", other)
