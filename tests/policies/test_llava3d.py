"""Geometry, pruning, pooling and splicing, against brute force and against transformers' own towers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from sim_eval.core import cameras
from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import Observation
from sim_eval.policies.spatialvla.configuration_spatialvla import DepthSampling, SpatialVLAConfig
from sim_eval.policies.spatialvla.modeling_llava3d import (
    IMAGE_TOKEN,
    Geometry,
    SpatialVLAInputs,
    patch_positions,
    picture_places,
    pool_voxels,
    thin_out,
    unproject,
)
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration

Make = Callable[[SpatialVLAConfig], SpatialVLAForConditionalGeneration]
WIDE = torch.tensor([[[-9.0] * 3, [9.0] * 3]])


def row(inputs: SpatialVLAInputs, index: int) -> SpatialVLAInputs:
    """One observation, its prompt without padding."""
    part = slice(index, index + 1)
    keep = inputs.attention_mask[index]
    return SpatialVLAInputs(
        inputs.pixel_values[part],
        inputs.geometry and Geometry(**{name: value[part] for name, value in vars(inputs.geometry).items()}),
        inputs.input_ids[part, keep],
        inputs.attention_mask[part, keep],
        inputs.state[part],
    )


def standing(inputs: SpatialVLAInputs, **changes: torch.Tensor) -> SpatialVLAInputs:
    """The same pictures with another geometry."""
    assert inputs.geometry is not None
    return replace(inputs, geometry=replace(inputs.geometry, **changes))


def kept_patches(inputs: SpatialVLAInputs) -> torch.Tensor:
    """bool [B * V, P]."""
    seen = inputs.geometry
    assert seen is not None
    depths = seen.depths.flatten(0, 1)
    points = unproject(depths, seen.intrinsics.flatten(0, 1), seen.poses.flatten(0, 1))
    return patch_positions(points, depths, seen.workspace.repeat_interleave(2, 0), 8, "mean")[1]


def test_unprojection_agrees_with_the_cameras_module(observe: Callable[[int], Observation]) -> None:
    for view in observe(0).views.values():
        rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
        pose = view.camera_to_world.copy()
        pose[:3, :3] = rotation
        view = replace(view, camera_to_world=pose)
        found = unproject(torch.tensor(view.depth)[None], torch.tensor(view.intrinsics)[None], torch.tensor(pose)[None])
        expected = torch.tensor(cameras.unproject(view)).permute(2, 0, 1)[None]
        torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("sampling", ["mean", "center", "corner"])
def test_patch_stands_where_depth_sampling_says(sampling: str) -> None:
    points = torch.randn(1, 3, 16, 16)
    depths = torch.ones(1, 16, 16)
    positions, kept = patch_positions(points, depths, WIDE, 8, sampling)  # type: ignore[arg-type]
    second = points[0, :, 0:8, 8:16]
    expected = {"mean": second.mean((1, 2)), "center": second[:, 4, 4], "corner": second[:, 0, 0]}[sampling]
    torch.testing.assert_close(positions[0, 1], expected)
    assert kept.all()


def test_mean_reads_valid_pixels_only() -> None:
    points = torch.randn(1, 3, 16, 16)
    depths = torch.ones(1, 16, 16)
    depths[0, 0, 0], depths[0, 0, 1], depths[0, 0, 2], depths[0, 0, 3] = 0, -1, torch.nan, torch.inf
    points[0, :, 0, :4] = torch.nan
    points[0, 0, 1:8, :8] = 100.0  # outside the workspace
    depths[0, 8:, 8:] = 0
    positions, kept = patch_positions(points, depths, WIDE, 8, "mean")
    torch.testing.assert_close(positions[0, 0], points[0, :, 0, 4:8].mean(1))
    assert kept.tolist() == [[True, True, True, False]]


def test_voxel_mean_equals_brute_force() -> None:
    torch.manual_seed(0)
    features, positions = torch.randn(200, 5), torch.rand(200, 3) * 0.1 - 0.05
    owner = torch.randint(0, 3, (200,)).sort().values
    found, owners = pool_voxels(features, positions, owner, 0.02)
    groups: dict[tuple[int, ...], list[int]] = {}
    for index in range(200):
        key = (int(owner[index]), *torch.round(positions[index] / 0.02).long().tolist())
        groups.setdefault(key, []).append(index)
    expected = torch.stack([features[groups[key]].mean(0) for key in sorted(groups)])  # x-major
    torch.testing.assert_close(found, expected)
    assert owners.tolist() == [key[0] for key in sorted(groups)]


def test_tower_with_every_patch_kept_equals_clip(config: SpatialVLAConfig, make_model: Make) -> None:
    vlm = make_model(config).vlm
    pixels = torch.randn(5, 3, 32, 32)
    expected = vlm.vision_tower(pixels).last_hidden_state[:, 1:]
    found = vlm.encode_patches(pixels, torch.ones(5, 16, dtype=torch.bool))
    torch.testing.assert_close(found, expected.flatten(0, 1), atol=1e-5, rtol=1e-5)


def test_unpruned_tower_reads_the_kept_patches_of_clip(config: SpatialVLAConfig, make_model: Make) -> None:
    vlm = make_model(replace(config, vision=replace(config.vision, prune=False))).vlm
    pixels, kept = torch.randn(5, 3, 32, 32), torch.rand(5, 16) < 0.5
    expected = vlm.vision_tower(pixels).last_hidden_state[:, 1:][kept]
    torch.testing.assert_close(vlm.encode_patches(pixels, kept), expected, atol=1e-5, rtol=1e-5)


def test_feature_layer_builds_only_what_it_reads(config: SpatialVLAConfig, make_model: Make) -> None:
    vision = replace(config.vision, layers=3, feature_layer=-2)
    assert len(make_model(replace(config, vision=vision)).vlm.vision_tower.encoder.layers) == 2


def test_pruned_views_do_not_depend_on_each_other(config: SpatialVLAConfig, make_model: Make) -> None:
    vlm = make_model(config).vlm
    pixels = torch.randn(40, 3, 32, 32)  # more than run together
    kept = torch.rand(40, 16) < torch.rand(40, 1)
    kept[3] = False
    together = vlm.encode_patches(pixels, kept)
    alone = torch.cat([vlm.encode_patches(pixels[i : i + 1], kept[i : i + 1]) for i in range(40)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_pixels_outside_the_workspace_change_nothing(
    model: SpatialVLAForConditionalGeneration, inputs: SpatialVLAInputs
) -> None:
    before = model.vlm(inputs).hidden_states[-1]
    kept = kept_patches(inputs)
    seen = kept.view(3, 2, 1, 4, 1, 4, 1).expand(-1, -1, 3, -1, 8, -1, 8).reshape(3, 2, 3, 32, 32)
    assert not seen.all()
    assert seen.any()
    hidden = replace(inputs, pixel_values=torch.where(seen, inputs.pixel_values, 7.0))
    assert torch.equal(model.vlm(hidden).hidden_states[-1], before)
    shown = replace(inputs, pixel_values=torch.where(seen, 7.0, inputs.pixel_values))
    assert not torch.allclose(model.vlm(shown).hidden_states[-1], before)


def test_position_reaches_the_tokens(config: SpatialVLAConfig, make_model: Make, inputs: SpatialVLAInputs) -> None:
    vlm = make_model(replace(config, voxel_size=None)).vlm
    assert inputs.geometry is not None
    poses = inputs.geometry.poses.clone()
    poses[..., :3, 3] += 0.25  # the same patches are kept, elsewhere
    moved = standing(inputs, poses=poses, workspace=inputs.geometry.workspace + 0.25)
    before, after = vlm.embed_scene(inputs)[0], vlm.embed_scene(moved)[0]
    assert before.shape == after.shape
    assert ((before - after).abs().amax(1) > 1e-3).all()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("depths", lambda tensor: tensor[:, :1]),
        ("depths", lambda tensor: tensor[..., :16]),
        ("intrinsics", lambda tensor: tensor[:, :1]),
        ("poses", lambda tensor: torch.cat([tensor, tensor[:, :1]], 1)),
        ("workspace", lambda tensor: tensor[:2]),
    ],
)
def test_views_that_do_not_go_together_are_refused(
    inputs: SpatialVLAInputs, name: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    with pytest.raises(SimEvalError, match=rf"{name} of shape .* 3 observations with 2 views of 32x32") as caught:
        standing(inputs, **{name: change(getattr(inputs.geometry, name))})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["pixel_values", "input_ids", "attention_mask", "state"])
def test_rows_that_do_not_go_together_are_refused(inputs: SpatialVLAInputs, name: str) -> None:
    with pytest.raises(SimEvalError, match="do not go with pixel_values"):
        replace(inputs, **{name: getattr(inputs, name)[:2]})


def test_splice_puts_scene_tokens_in_the_placeholders_stead(model: SpatialVLAForConditionalGeneration) -> None:
    vlm = model.vlm
    ids = torch.tensor([[5, 6, IMAGE_TOKEN, 7, 0], [0, 8, IMAGE_TOKEN, 9, 9], [IMAGE_TOKEN, 4, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()  # one is padded on the left
    scene = torch.randn(5, 32)
    ((order, embeddings, valid),) = vlm.splice(scene, torch.tensor([0, 0, 0, 2, 2]), ids, mask, 3)
    word = vlm.language_model.embed_tokens.weight
    rows = [
        [word[5], word[6], scene[0], scene[1], scene[2], word[7]],
        [word[8], word[9], word[9]],
        [scene[3], scene[4], word[4]],
    ]
    assert order.tolist() == [0, 1, 2]
    assert valid.sum(1).tolist() == [6, 3, 3]
    for index, expected in enumerate(rows):
        assert torch.equal(embeddings[index][valid[index]], torch.stack(expected))
        assert valid[index, : len(expected)].all()
        assert not embeddings[index][~valid[index]].any()
    # Two by two, the shorter ones first; nothing is padded here.
    short, long = vlm.splice(scene, torch.tensor([0, 0, 0, 2, 2]), ids, mask, 2)
    assert [group[0].tolist() for group in (short, long)] == [[1, 2], [0]]
    assert [group[2].tolist() for group in (short, long)] == [[[True] * 3] * 2, [[True] * 6]]
    assert torch.equal(short[1], torch.stack([torch.stack(rows[1]), torch.stack(rows[2])]))
    assert torch.equal(long[1][0], torch.stack(rows[0]))


def test_hidden_states_equal_the_stock_llama(
    each_model: SpatialVLAForConditionalGeneration, inputs: SpatialVLAInputs
) -> None:
    context = each_model.vlm(inputs)
    llama = each_model.vlm.language_model
    stock = llama(
        inputs_embeds=context.hidden_states[0],
        attention_mask=context.valid.long(),
        position_ids=context.position_ids,
        output_hidden_states=True,
    )
    late = each_model.network.action_expert_type == "late_gemma"
    assert len(context.hidden_states) == len(llama.layers) + late
    for found, expected in zip(context.hidden_states, stock.hidden_states, strict=late):
        torch.testing.assert_close(found[context.valid], expected[context.valid], atol=1e-5, rtol=1e-5)
    if late:
        last = stock.last_hidden_state[context.valid]
        torch.testing.assert_close(context.hidden_states[-1][context.valid], last, atol=1e-5, rtol=1e-5)


def test_llama_stays_causal(model: SpatialVLAForConditionalGeneration, inputs: SpatialVLAInputs) -> None:
    one = row(inputs, 0)
    changed = replace(one, input_ids=one.input_ids.clone())
    changed.input_ids[0, -1] = 3
    before, after = model.vlm(one).hidden_states[-1], model.vlm(changed).hidden_states[-1]
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert not torch.equal(before[:, -1], after[:, -1])


def test_padded_batch_equals_singles(model: SpatialVLAForConditionalGeneration, inputs: SpatialVLAInputs) -> None:
    context = model.vlm(inputs)
    assert not context.valid.all(), "the fixture must need padding"
    for index in range(3):
        alone = model.vlm(row(inputs, index))
        assert alone.valid.all()
        for together, single in zip(context.hidden_states, alone.hidden_states, strict=True):
            torch.testing.assert_close(together[index][context.valid[index]], single[0], atol=1e-5, rtol=1e-5)


def test_a_scene_without_anything_in_the_workspace_is_text_only(
    model: SpatialVLAForConditionalGeneration, inputs: SpatialVLAInputs
) -> None:
    assert inputs.geometry is not None
    blind = standing(inputs, depths=torch.zeros_like(inputs.geometry.depths))
    context = model.vlm(blind)
    assert context.valid.sum(1).tolist() == (inputs.attention_mask.sum(1) - 1).tolist()
    assert context.hidden_states[-1].isfinite().all()


def test_without_voxels_every_kept_patch_is_a_token(
    config: SpatialVLAConfig, make_model: Make, inputs: SpatialVLAInputs
) -> None:
    kept = kept_patches(inputs)
    _, owner = make_model(replace(config, voxel_size=None)).vlm.embed_scene(inputs)
    assert torch.bincount(owner, minlength=3).tolist() == kept.view(3, -1).sum(1).tolist()
    _, coarse = make_model(replace(config, voxel_size=0.5)).vlm.embed_scene(inputs)
    assert len(coarse) < len(owner)


def test_picture_places_are_cells_of_each_view_row_by_row() -> None:
    places = picture_places(2, 2, 4)
    assert places.shape == (2, 8, 3)
    assert places[0, :5].tolist() == [
        [-0.75, -0.5, -0.5],
        [-0.25, -0.5, -0.5],
        [0.25, -0.5, -0.5],
        [0.75, -0.5, -0.5],
        [-0.75, 0.5, -0.5],
    ]
    assert places[1, 7].tolist() == [0.75, 0.5, 0.5]
    assert picture_places(1, 1, 1).tolist() == [[[0.0, 0.0, 0.0]]]


def test_2d_positions_ignore_depth_but_for_what_is_kept(
    config: SpatialVLAConfig, make_model: Make, inputs: SpatialVLAInputs
) -> None:
    assert inputs.geometry is not None
    depths = inputs.geometry.depths
    box = depths < depths.amax((2, 3), keepdim=True) - 0.05
    moved = standing(inputs, depths=depths - box * 0.03 * torch.rand_like(depths))  # still above the table
    hidden = standing(inputs, depths=depths.masked_fill(box & (torch.arange(32) < 16), 0.0))
    flat = replace(config, voxel_size=0.5, position=replace(config.position, kind="2d"))
    for kind, same in ((flat, True), (replace(config, voxel_size=None), False)):
        vlm = make_model(kind).vlm
        (before, owner), (after, still) = vlm.embed_scene(inputs), vlm.embed_scene(moved)
        assert torch.equal(owner, still)
        assert torch.equal(before, after) == same
        assert len(vlm.embed_scene(hidden)[1]) < len(owner)
    assert len(owner) == len(make_model(flat).vlm.embed_scene(inputs)[1]), "no voxels, as many tokens as patches"


def test_2d_embeds_each_kept_patchs_own_place(
    config: SpatialVLAConfig, make_model: Make, inputs: SpatialVLAInputs
) -> None:
    vlm = make_model(replace(config, position=replace(config.position, kind="2d", scale=3.0))).vlm
    kept = kept_patches(inputs)
    embedded: list[torch.Tensor] = []
    vlm.position_embedding.register_forward_hook(lambda _, args, __: embedded.append(args[0]))
    vlm.embed_scene(inputs)
    places = picture_places(2, 4, 4).flatten(0, 1)
    assert torch.equal(embedded[0], torch.cat([places[row.flatten()] for row in kept.view(3, -1)]))
    assert vlm.position_embedding.scale == 1.0, "a picture is not measured in metres"
    distance = torch.cdist(*[vlm.position_embedding(places)] * 2) + torch.eye(32)
    assert distance.min() > 1e-2, "patches and views can be told apart"


@pytest.mark.parametrize(("counts", "limit"), [((7, 3, 5), 4), ((4, 4), 4), ((9,), 1), ((0, 10, 0, 3), 3)])
def test_too_many_tokens_are_thinned_out_evenly_and_always_the_same(counts: tuple[int, ...], limit: int) -> None:
    owner = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    stays = thin_out(owner, limit)
    assert torch.equal(stays, thin_out(owner, limit))
    assert torch.equal(stays, stays.sort().values)
    assert torch.bincount(owner[stays], minlength=len(counts)).tolist() == [min(count, limit) for count in counts]
    start = 0
    for count in counts:
        own = stays[(stays >= start) & (stays < start + count)] - start
        if count > limit:  # no gap is more than one longer than another
            gaps = torch.diff(own)
            assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1
        start += count


def test_no_more_tokens_than_asked_for(config: SpatialVLAConfig, make_model: Make, inputs: SpatialVLAInputs) -> None:
    everything, owner = make_model(config).vlm.embed_scene(inputs)
    few, whose = make_model(replace(config, max_tokens=5)).vlm.embed_scene(inputs)
    assert torch.bincount(owner).min() > 5
    assert torch.bincount(whose).tolist() == [5, 5, 5]
    assert all(any(torch.equal(token, other) for other in everything) for token in few)


def test_a_policy_without_scene_tokens_is_blind(
    each_config: SpatialVLAConfig, make_model: Make, inputs: SpatialVLAInputs
) -> None:
    assert inputs.geometry is not None
    model = make_model(replace(each_config, max_tokens=0))
    noise = torch.randn(3, 1, each_config.expert.chunk_size, each_config.expert.action_dim)
    others = replace(
        inputs,
        pixel_values=torch.rand_like(inputs.pixel_values),
        geometry=replace(inputs.geometry, depths=1 + torch.rand_like(inputs.geometry.depths)),
    )
    chunk = model.predict_action(inputs, noise[:, 0])
    assert torch.equal(chunk, model.predict_action(others, noise[:, 0]))
    elsewhere = replace(inputs, state=inputs.state + 1)
    assert not torch.equal(chunk, model.predict_action(elsewhere, noise[:, 0]))


def test_without_crop_and_mask_every_patch_is_kept_where_its_depth_says(
    config: SpatialVLAConfig, make_model: Make, inputs: SpatialVLAInputs
) -> None:
    assert inputs.geometry is not None
    holes = inputs.geometry.depths.clone()
    holes[0, 0] = 0.0
    geometry = replace(inputs.geometry, depths=holes)
    plain = replace(config.position, depth_sampling="center", near=0.0)
    found = {}
    for crop, mask in itertools.product((True, False), repeat=2):
        vlm = make_model(replace(config, position=replace(plain, crop=crop, mask_depth=mask))).vlm
        found[crop, mask] = vlm.locate_patches(geometry)
    everything, kept = found[False, False]
    assert kept.all()
    # A pixel of no depth stands in the camera, as it does in LLaVA-3D.
    torch.testing.assert_close(everything[0], inputs.geometry.poses[0, 0, :3, 3].expand_as(everything[0]))
    assert not found[False, True][1][0].any()
    assert found[False, True][1][1:].all()
    assert torch.equal(found[True, True][1], found[True, False][1]), "the camera stands outside the workspace"
    assert found[True, True][1].sum() < kept.sum()


@pytest.mark.parametrize("sampling", ["mean", "center"])
@pytest.mark.parametrize("hole", [math.inf, -math.inf, math.nan])
def test_without_crop_and_mask_pixels_that_are_infinitely_far_never_count(
    config: SpatialVLAConfig, make_model: Make, inputs: SpatialVLAInputs, hole: float, sampling: DepthSampling
) -> None:
    """As published, LLaVA-3D neither crops nor masks; a far plane at infinity must not break its voxels."""
    assert inputs.geometry is not None
    depths = inputs.geometry.depths.clone()
    depths[0, 0, 8:16, 8:24] = hole  # two whole patches
    depths[1, 1, ::2] = hole  # half of each patch; the other half and the centres stay
    open_config = replace(
        config, position=replace(config.position, depth_sampling=sampling, near=0.0, crop=False, mask_depth=False)
    )
    vlm = make_model(open_config).vlm
    pitted = standing(inputs, depths=depths)
    positions, kept = vlm.locate_patches(pitted.geometry)  # type: ignore[arg-type]
    expected = torch.ones_like(kept)
    expected[0, 5:7] = False
    if sampling == "center":  # the fourth of eight rows is among those that are missing
        expected[3] = False
    assert torch.equal(kept, expected)
    assert positions.isfinite().all()
    if sampling == "mean":
        points = vlm.locate_pixels(inputs.geometry)[0][3]
        torch.testing.assert_close(positions[3, 0], points[:, 1:8:2, :8].mean((1, 2)))
    tokens, _ = vlm.embed_scene(pitted)
    assert tokens.isfinite().all()
    assert vlm(pitted).hidden_states[-1].isfinite().all()


def embedded_points(
    geometry: Geometry, patch_size: int, side: int, near: float
) -> tuple[list[list[float]], list[list[float]]]:
    """Pixel by pixel: what a kept patch's cells say of where they stand, one after the other, and where it stands."""
    rows, centres = [], []
    batch, views, height, width = geometry.depths.shape
    for b, v in itertools.product(range(batch), range(views)):
        k, pose, depth = (part[b, v].double() for part in (geometry.intrinsics, geometry.poses, geometry.depths))
        lower, upper = geometry.workspace[b].double()
        for top, left in itertools.product(range(0, height, patch_size), range(0, width, patch_size)):
            cells: list[list[torch.Tensor]] = [[] for _ in range(side**2)]
            for i, j in itertools.product(range(patch_size), repeat=2):
                z = depth[top + i, left + j]
                x, y = (left + j + 0.5 - k[0, 2]) / k[0, 0] * z, (top + i + 0.5 - k[1, 2]) / k[1, 1] * z
                point = pose[:3, :3] @ torch.stack([x, y, z]) + pose[:3, 3]
                if z.isfinite() and z > 0 and z >= near and (point >= lower).all() and (point <= upper).all():
                    cells[i * side // patch_size * side + j * side // patch_size].append(point)
            if seen := [point for cell in cells for point in cell]:
                centre = torch.stack(seen).mean(0)
                centres.append(centre.tolist())
                rows.append(torch.cat([torch.stack(cell).mean(0) if cell else centre for cell in cells]).tolist())
    return rows, centres


@pytest.mark.parametrize(("points", "frequencies"), [(4, 0), (4, 3), (16, 2)])
def test_several_points_of_a_patch_are_embedded_together(
    config: SpatialVLAConfig, make_model: Make, inputs: SpatialVLAInputs, points: int, frequencies: int
) -> None:
    assert inputs.geometry is not None
    depths = inputs.geometry.depths.clone()
    depths[torch.rand(depths.shape) < 0.3] = 0.0
    depths[..., 6:14, 6:22] = torch.nan  # whole cells of patches that are kept
    pitted = standing(inputs, depths=depths)
    position = replace(config.position, points=points, frequencies=frequencies)
    vlm = make_model(replace(config, position=position, voxel_size=None)).vlm
    seen: list[torch.Tensor] = []
    vlm.position_embedding.register_forward_hook(lambda _, args, output: seen.extend((args[0], output)))
    vlm.embed_scene(pitted)
    rows, centres = embedded_points(pitted.geometry, 8, position.points_a_side, position.near)  # type: ignore[arg-type]
    expected = torch.tensor(rows)
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=0)
    filled = (expected.view(len(rows), points, 3) == torch.tensor(centres)[:, None]).all(-1)
    assert filled.any(), "some cell must be empty"
    waves = [math.pi * 2.0**band * number for row in seen[0].tolist() for number in row for band in range(frequencies)]
    angles = torch.tensor(waves).view(len(rows), -1)
    first, norm, _, last = vlm.position_embedding.position_embedding_head
    hidden = torch.cat([seen[0], angles.sin(), angles.cos()], 1) @ first.weight.T + first.bias
    hidden = (hidden - hidden.mean(1, keepdim=True)) / (hidden.var(1, correction=0, keepdim=True) + norm.eps).sqrt()
    hidden = (hidden * norm.weight + norm.bias).clamp(min=0) @ last.weight.T + last.bias
    torch.testing.assert_close(seen[1], hidden, atol=1e-4, rtol=1e-4)


def test_several_points_change_neither_which_patches_are_kept_nor_their_voxels(
    config: SpatialVLAConfig, make_model: Make, inputs: SpatialVLAInputs
) -> None:
    several = replace(config, position=replace(config.position, points=4))
    one, four = make_model(config).vlm, make_model(several).vlm
    four.load_state_dict({**one.state_dict(), **four.position_embedding.state_dict(prefix="position_embedding.")})
    for vlm in (one, four):  # wherever a patch stands, its embedding is nothing
        for parameter in vlm.position_embedding.position_embedding_head[3].parameters():
            torch.nn.init.zeros_(parameter)
    (found, owner), (expected, whose) = four.embed_scene(inputs), one.embed_scene(inputs)
    assert torch.equal(owner, whose)
    assert torch.equal(found, expected)


def test_one_point_has_the_parameters_it_always_had(config: SpatialVLAConfig, make_model: Make) -> None:
    first = make_model(config).vlm.position_embedding.position_embedding_head[0]
    assert first.weight.shape == (32, 3 + 6 * config.position.frequencies)
