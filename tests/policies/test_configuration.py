"""Overrides name what is wrong, and old files are read by new code."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sim_eval.core.errors import SimEvalError
from sim_eval.policies.registry import CHECKPOINTS
from sim_eval.policies.spatialvla.configuration_spatialvla import SIZES, SpatialVLAConfig, with_overrides

TINY = SIZES["tiny"]["deep_llama"]


def test_overrides_set_fields_by_their_types() -> None:
    found = with_overrides(
        TINY,
        [
            "frame=world",
            "position.kind=2d",
            "expert.context_projection=expert",
            "voxel_size=null",
            "vision.prune=false",
            "text.norm_eps=1e-5",
            " expert.chunk_size = 16 ",
        ],
    )
    assert found == replace(
        TINY,
        frame="world",
        voxel_size=None,
        vision=replace(TINY.vision, prune=False),
        text=replace(TINY.text, norm_eps=1e-5),
        position=replace(TINY.position, kind="2d"),
        expert=replace(TINY.expert, context_projection="expert", chunk_size=16),
    )
    assert with_overrides(TINY, []) == TINY
    assert with_overrides(found, ["voxel_size=0.04"]).voxel_size == 0.04


def test_only_the_result_has_to_fit() -> None:
    deeper = ["text.layers=3", "expert.layers=3"]
    assert with_overrides(TINY, deeper) == with_overrides(TINY, reversed(deeper))
    assert with_overrides(TINY, ["expert.layers=4", "action_expert_type=late_gemma"]).expert.layers == 4


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("frmae=world", ["'frmae'", "frame", "position.kind"]),
        ("position.king=2d", ["'position.king'", "position.kind", "position.scale"]),
        ("position=2d", ["'position'", "position.kind"]),
        ("frame.x=2d", ["'frame.x'", "frame,"]),
        ("text.head_dim=8", ["'text.head_dim'", "text.width"]),
        ("frame=elbow", ["frame must", "gripper", "world", "elbow"]),
        ("position.kind=2D", ["position.kind", "3d, 2d"]),
        ("action_expert_type=gemma", ["action_expert_type", "deep_llama, late_gemma"]),
        ("vision.prune=1", ["vision.prune", "true or false"]),
        ("expert.chunk_size=8.5", ["expert.chunk_size", "whole number"]),
        ("expert.chunk_size=null", ["expert.chunk_size", "whole number"]),
        ("expert.chunk_size=0", ["expert.chunk_size", "at least 1"]),
        ("expert.width=0", ["expert.width", "at least 1"]),
        ("voxel_size=fine", ["voxel_size", "number or null"]),
        ("voxel_size=-1", ["voxel_size", "positive"]),
        ("position.scale=nan", ["position.scale", "finite"]),
        ("position.scale=null", ["position.scale", "a number"]),
        ("expert.layers=3", ["expert.layers", "text.layers"]),
        ("position.points=0", ["position.points", "square"]),
        ("position.points=2", ["position.points", "square"]),
        ("position.points=9", ["position.points 9", "3 x 3", "vision.patch_size 8"]),
        ("voxel_size", ["'voxel_size'", "field=value"]),
        ("", ["field=value"]),
    ],
)
def test_bad_overrides_are_named_in_one_line(assignment: str, told: list[str]) -> None:
    with pytest.raises(SimEvalError) as caught:
        with_overrides(TINY, [assignment])
    message = str(caught.value)
    assert "\n" not in message
    for part in told:
        assert part in message, message


def test_an_override_without_effect_is_refused() -> None:
    with pytest.raises(SimEvalError, match="late_gemma"):
        with_overrides(TINY, ["action_expert_type=late_gemma", "expert.context_projection=expert"])


def test_a_file_from_before_a_field_existed_means_its_default() -> None:
    data = json.loads(json.dumps(TINY.to_dict()))
    del data["position"]["kind"], data["frame"]
    assert SpatialVLAConfig.from_dict(data) == TINY
    shipped = json.loads((CHECKPOINTS / "deep_llama" / "config.json").read_text())
    assert SpatialVLAConfig.from_dict(shipped["network"]).position.kind == "3d"


@pytest.mark.parametrize("other", ["position.kind=2d", "position.depth_sampling=center"])
def test_several_points_are_cells_in_space(other: str) -> None:
    assert with_overrides(TINY, ["position.points=4"]).position.points_a_side == 2
    with pytest.raises(SimEvalError, match=other.split("=")[0]):
        with_overrides(TINY, ["position.points=4", other])
