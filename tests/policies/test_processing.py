"""The processor: frames, order, normalisation and prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessor

from sim_eval.core import cameras
from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import Observation, TrainingWindow
from sim_eval.policies.spatialvla.modeling_llava3d import IMAGE_TOKEN, unproject
from sim_eval.policies.spatialvla.processing_spatialvla import SpatialVLAProcessor, train_tokenizer

Observe = Callable[[int], Observation]


def test_gripper_frame_is_the_world_moved_not_turned(processor: SpatialVLAProcessor, observe: Observe) -> None:
    seen = observe(0)
    inputs = processor([seen])
    points = unproject(inputs.geometry.depths[0], inputs.geometry.intrinsics[0], inputs.geometry.poses[0])
    world = cameras.unproject(seen.views["wrist"]) - seen.proprio["eef_pos"]
    np.testing.assert_allclose(points[1].permute(1, 2, 0), world, atol=1e-6)
    corners = np.array([seen.workspace.lower, seen.workspace.upper]) - seen.proprio["eef_pos"]
    np.testing.assert_allclose(inputs.geometry.workspace[0], corners, atol=1e-6)
    assert np.array_equal(seen.views["wrist"].camera_to_world[:3, 3], observe(0).views["wrist"].camera_to_world[:3, 3])


def test_world_frame_leaves_positions_alone(processor: SpatialVLAProcessor, observe: Observe) -> None:
    config = replace(processor.config, frame="world")
    world = SpatialVLAProcessor(config, processor.spec, processor.stats, processor.tokenizer)
    seen = observe(0)
    inputs = world([seen])
    np.testing.assert_allclose(inputs.geometry.poses[0, 0], seen.views["agentview"].camera_to_world, atol=1e-6)
    np.testing.assert_allclose(inputs.geometry.workspace[0, 0], seen.workspace.lower, atol=1e-6)


def test_pixels_are_normalised_as_clip_does(processor: SpatialVLAProcessor, observe: Observe) -> None:
    seen = observe(0)
    expected = CLIPImageProcessor(do_resize=False, do_center_crop=False, do_convert_rgb=False)(
        seen.views["agentview"].rgb, return_tensors="pt"
    ).pixel_values
    torch.testing.assert_close(processor([seen]).pixel_values[0, :1], expected, atol=1e-5, rtol=1e-5)


def test_views_follow_the_specs_order_not_the_observations(processor: SpatialVLAProcessor, observe: Observe) -> None:
    seen = observe(0)
    turned = replace(seen, views=dict(reversed(seen.views.items())))
    assert torch.equal(processor([seen]).geometry.depths, processor([turned]).geometry.depths)


def test_one_and_many_get_the_same_numbers(processor: SpatialVLAProcessor, observe: Observe) -> None:
    many = processor([observe(seed) for seed in range(4)])
    for seed in range(4):
        one = processor([observe(seed)])
        tensors, others = ({**vars(made), **vars(made.geometry)} for made in (one, many))
        del tensors["geometry"]
        for name, value in tensors.items():
            batched = others[name][seed : seed + 1]
            if name in ("input_ids", "attention_mask"):
                batched = batched[:, : value.shape[1]]
            assert batched.dtype == value.dtype
            assert torch.equal(batched, value), name
        assert not many.attention_mask[seed, one.input_ids.shape[1] :].any()


def test_prompt_holds_the_instruction_and_one_placeholder(processor: SpatialVLAProcessor, observe: Observe) -> None:
    ids = processor([observe(1)]).input_ids[0]
    place = ids.tolist().index(IMAGE_TOKEN)
    decode = processor.tokenizer.decode
    assert (ids == IMAGE_TOKEN).sum() == 1
    assert decode(ids[:place].tolist()) == f"USER: {observe(1).instruction}\n"
    assert decode(ids[place + 1 :].tolist()) == " ASSISTANT:"


def test_the_same_words_in_another_order_are_other_tokens() -> None:
    sentences = ("stack the red cube on the green cube", "stack the green cube on the red cube")
    tokenizer = train_tokenizer(sentences)
    first, second = (tokenizer.encode(f"USER: {sentence}\n").ids for sentence in sentences)
    assert sorted(first) != sorted(second)
    assert len(first) > 1  # a sentence is not one token: its parts can be met in other sentences
    assert len(second) > 1


def test_tokenizer_takes_any_text_and_ignores_the_order_of_sentences(processor: SpatialVLAProcessor) -> None:
    text = "schiebe den Würfel \N{ROBOT FACE}"
    assert processor.tokenizer.decode(processor.tokenizer.encode(text).ids) == text
    forward, backward = train_tokenizer(["a cube", "b block"]), train_tokenizer(["b block", "a cube", "a cube"])
    assert forward.to_str() == backward.to_str()


def test_state_and_actions_go_through_the_statistics(processor: SpatialVLAProcessor, observe: Observe) -> None:
    seen = observe(0)
    actions = np.random.default_rng(0).uniform(-0.9, 0.9, (4, 7))
    valid = np.array([True, True, True, False])
    batch = processor.training_batch([TrainingWindow(seen, actions, valid)])
    np.testing.assert_allclose(batch.actions[0], (actions - 0.1) / 0.5, atol=1e-6)
    np.testing.assert_allclose(batch.inputs.state[0, :3], (seen.proprio["eef_pos"] - 0.1) / 0.5, atol=1e-6)
    np.testing.assert_allclose(batch.inputs.state[0, 7:], (seen.proprio["gripper_qpos"] - 0.1) / 0.5, atol=1e-6)
    assert batch.valid.tolist() == [valid.tolist()]
    back = processor.actions(batch.actions)
    assert back.dtype == np.float64
    np.testing.assert_allclose(back[0], actions, atol=1e-6)
    assert processor.actions(torch.full((1, 4, 7), 50.0)).max() == 1.0


@pytest.mark.parametrize(("hole", "far"), [(None, None), (0.0, None), (np.nan, None), (np.inf, 300.0), (0.0, 5000.0)])
def test_millimetres_are_refused_and_far_planes_are_not(
    processor: SpatialVLAProcessor, observe: Observe, hole: float | None, far: float | None
) -> None:
    """Where nothing is known or nothing stands, even in most of the picture, the rest still tells the unit."""

    def seen_through(scale: float) -> Observation:
        seen = observe(0)
        depth = seen.views["wrist"].depth * np.float32(scale)
        depth[0, 0] = 0.02 * scale  # the smallest number tells nothing: a hand may stand before the lens
        if hole is not None:
            depth[2:8] = hole
        if far is not None:
            depth[:, :20] = far * scale
        return replace(seen, views={**seen.views, "wrist": replace(seen.views["wrist"], depth=depth)})

    assert processor([seen_through(1.0)]).state.isfinite().all()
    with pytest.raises(SimEvalError, match=r"camera 'wrist' .* metres expected") as caught:
        processor([observe(1), seen_through(1000.0)])
    assert "\n" not in str(caught.value)


def test_a_picture_of_nothing_is_taken(processor: SpatialVLAProcessor, observe: Observe) -> None:
    seen = observe(0)
    blind = replace(seen.views["wrist"], depth=np.zeros_like(seen.views["wrist"].depth))
    assert not processor([replace(seen, views={**seen.views, "wrist": blind})]).geometry.depths[0, 1].any()


def test_one_flat_wall_in_millimetres_is_refused(processor: SpatialVLAProcessor, observe: Observe) -> None:
    seen = observe(0)
    wall = replace(seen.views["wrist"], depth=np.full_like(seen.views["wrist"].depth, 800.0))
    with pytest.raises(SimEvalError, match="metres expected"):
        processor([replace(seen, views={**seen.views, "wrist": wall})])


def test_observations_of_other_cameras_than_the_rest_are_named(
    processor: SpatialVLAProcessor, observe: Observe
) -> None:
    fewer = replace(observe(1), views={"agentview": observe(1).views["agentview"]})
    with pytest.raises(SimEvalError, match="camera 'wrist' is needed, the observation has agentview"):
        processor([observe(0), fewer])


def test_what_does_not_fit_is_named(processor: SpatialVLAProcessor, observe: Observe) -> None:
    seen = observe(0)
    with pytest.raises(SimEvalError, match="camera 'wrist'"):
        processor([replace(seen, views={"agentview": seen.views["agentview"]})])
    with pytest.raises(SimEvalError, match="proprio gripper_qpos"):
        processor([replace(seen, proprio={k: v for k, v in seen.proprio.items() if k != "gripper_qpos"})])
    spec, stats, tokenizer = processor.spec, processor.stats, processor.tokenizer
    larger = SpatialVLAProcessor(processor.config, replace(spec, cameras={"agentview": (64, 64)}), stats, tokenizer)
    with pytest.raises(SimEvalError, match="camera 'agentview' must be 64x64 pixels, not 32x32"):
        larger([seen])

    def build(**changes: object) -> None:
        SpatialVLAProcessor(processor.config, replace(spec, **changes), stats, tokenizer)  # type: ignore[arg-type]

    for changes, named in (
        ({"cameras": {}}, "camera"),
        ({"proprio": {"eef_pos": 3}}, "state_dim"),
        ({"proprio": {"eef_pos": 4, "eef_quat": 5}}, "'eef_pos'"),
        ({"action": None}, "action"),
    ):
        with pytest.raises(SimEvalError, match=named):
            build(**changes)
    with pytest.raises(SimEvalError, match="prompt"):
        SpatialVLAProcessor(processor.config, spec, stats, tokenizer, "no picture {instruction}")
    with pytest.raises(SimEvalError, match="vocab_size"):
        SpatialVLAProcessor(processor.config, spec, stats, train_tokenizer([f"{i**5:x}" for i in range(99)], 600))
