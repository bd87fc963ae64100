from collections.abc import Callable
from dataclasses import replace

import numpy as np

from sim_eval.datasets.episode_file import Episode
from sim_eval.datasets.packing import PackedViews, packed
from sim_eval.envs.contract import CameraView

Make = Callable[..., Episode]

PARTS = ("rgb", "depth", "intrinsics", "camera_to_world")


def _same(mine: CameraView, theirs: CameraView) -> bool:
    pairs = [(getattr(mine, part), getattr(theirs, part)) for part in PARTS]
    return all((a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()) for a, b in pairs)


def test_a_packed_episode_is_the_same_bit_for_bit(make_episode: Make) -> None:
    episode = make_episode(0)
    small = packed(episode)
    for mine, theirs in zip(small.observations, episode.observations, strict=True):
        assert list(mine.views) == list(theirs.views)
        assert all(_same(mine.views[name], view) for name, view in theirs.views.items())
        assert replace(mine, views={}) == replace(theirs, views={})
    assert small.spec == episode.spec
    assert small.actions is episode.actions


def test_odd_bits_layouts_and_sizes_survive(make_episode: Make) -> None:
    view = make_episode(0, height=7, width=5).observations[0].views["agentview"]
    bits = np.array([0.0, -0.0, np.inf, np.nan, 1e-45], dtype=np.float32)
    odd = [
        replace(view, depth=np.tile(bits, (7, 1))),
        replace(view, rgb=view.rgb[::-1, ::-1], depth=view.depth[::-1]),  # views that are not contiguous
        replace(view, rgb=np.asfortranarray(view.rgb), depth=np.asfortranarray(view.depth)),
        replace(view, rgb=view.rgb[:1, :1], depth=view.depth[:1, :1]),
        replace(view, rgb=np.zeros_like(view.rgb), depth=np.ones_like(view.depth)),
    ]
    for number, each in enumerate(odd):
        assert _same(PackedViews({"camera": each})["camera"], each), number


def test_looking_gives_a_picture_of_ones_own(make_episode: Make) -> None:
    seen = packed(make_episode(0)).observations[0]
    before = seen.views["agentview"].rgb.copy()
    seen.views["agentview"].rgb[:] = 0
    assert np.array_equal(seen.views["agentview"].rgb, before)
    assert "agentview" in seen.views
    assert "birdview" not in seen.views


def test_plain_pictures_shrink() -> None:
    # A gradient over a flat wall, as a simulator without texture gives it: what the memory of a training rests on.
    rows, columns = np.mgrid[:128, :128]
    rgb = np.repeat((rows // 8 + columns // 16).astype(np.uint8)[..., np.newaxis], 3, axis=-1)
    depth = (0.5 + 0.01 * rows).astype(np.float32)
    packed_view = PackedViews({"camera": CameraView(rgb, depth, np.eye(3), np.eye(4))})._views["camera"]
    assert len(packed_view.rgb) + len(packed_view.depth) < (rgb.nbytes + depth.nbytes) / 3
