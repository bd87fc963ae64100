"""Makes ``docs/overview.png``: what the policy sees, and what its network makes of it.

``python docs/make_overview.py`` plays an episode of robosuite/LiftWide with the scripted expert up to a few steps and
draws that observation: both cameras' RGB and depth, their joint point cloud, and the voxel tokens.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mpl_toolkits.mplot3d import Axes3D
from mpl_toolkits.mplot3d.art3d import Line3DCollection, Poly3DCollection

from sim_eval.envs.cameras import unproject
from sim_eval.envs.contract import CameraView, EpisodeKey, FloatArray, Observation, WorkspaceBox
from sim_eval.envs.tasks import get_task
from sim_eval.policies.policy import PolicyRequest
from sim_eval.policies.scripted.expert import ScriptedPolicy
from sim_eval.policies.spatialvla import modeling_llava3d
from sim_eval.policies.spatialvla.configuration_spatialvla import SIZES
from sim_eval.reporting.video import depth_range

OUT = Path(__file__).with_name("overview.png")
KEY, STEPS = EpisodeKey("robosuite/LiftWide", "val", 3), 8
DPI, SIZE = 100, (14.0, 7.0)
INK, FAINT, ACCENT, GRIPPER = "#1f2430", "#8a91a0", "#0b7285", "#f08c00"
GRID, MARGIN = 0.05, 0.01  # metres: of the table's grid, and beyond the cloud


@dataclass(frozen=True)
class Tokens:
    """What the network's front end makes of an observation, before any learnt number.

    Attributes:
        kept: camera name -> bool [rows, columns], which patches reach the encoder.
        points: [K, 3], world, the mean of each voxel's patches.
        colours: [K, 3] in 0 to 1, likewise.
    """

    kept: dict[str, FloatArray]
    points: FloatArray
    colours: FloatArray


def observe() -> Observation:
    """The observation a few control steps into the episode."""
    simulator, policy = get_task(KEY.task).make(), ScriptedPolicy()
    simulator.reset(KEY)
    for step in range(STEPS):
        request = PolicyRequest(simulator.observe(()), KEY, step, simulator.spec.action, simulator.privileged())
        (chunk,) = policy.predict([request])
        simulator.act(chunk.actions[0])
    seen = simulator.observe()
    simulator.close()
    return seen


def tokens(seen: Observation) -> Tokens:
    """Patches and voxels as LLaVA3DModel.embed_scene makes them, carrying positions and colours for features."""
    config = SIZES["tiny"]
    views = list(seen.views.values())
    origin = seen.proprio["eef_pos"]
    poses = np.stack([view.camera_to_world for view in views])
    poses[:, :3, 3] -= origin
    depths = torch.from_numpy(np.stack([view.depth for view in views]))
    depths = depths.masked_fill(depths < config.position.near, 0.0)
    workspace = torch.from_numpy(np.stack([seen.workspace.lower, seen.workspace.upper]) - origin).float()
    intrinsics = torch.from_numpy(np.stack([view.intrinsics for view in views]))
    patch = config.vision.patch_size
    positions, kept = modeling_llava3d.patch_positions(
        modeling_llava3d.unproject(depths, intrinsics, torch.from_numpy(poses)),
        depths,
        workspace.expand(len(views), -1, -1),
        patch,
        config.position.depth_sampling,
    )
    rgb = torch.from_numpy(np.stack([view.rgb for view in views])).float() / 255
    colours = rgb.unfold(1, patch, patch).unfold(2, patch, patch).mean((-1, -2)).flatten(1, 2)
    features = torch.cat([positions[kept], colours[kept]], dim=1)
    assert config.voxel_size is not None
    pooled, _ = modeling_llava3d.pool_voxels(
        features, positions[kept], torch.zeros(len(features), dtype=torch.long), config.voxel_size
    )
    side = config.vision.image_size // patch
    return Tokens(
        {name: mask.view(side, side).numpy() for name, mask in zip(seen.views, kept, strict=True)},
        pooled[:, :3].double().numpy() + origin,
        pooled[:, 3:].double().numpy(),
    )


def cloud(view: CameraView, workspace: WorkspaceBox, near: float) -> tuple[FloatArray, FloatArray]:
    """World points [N, 3] of a camera inside the workspace, and their colours [N, 3] in 0 to 1."""
    points = unproject(view)
    inside = workspace.contains(points) & (view.depth >= near)
    return points[inside], view.rgb[inside] / 255


def draw_rgb(axes: Axes, view: CameraView, kept: FloatArray) -> None:
    """The picture, darkened where the network does not look."""
    height, width = view.depth.shape
    patch = height // len(kept)
    weight = np.kron(kept, np.ones((patch, patch)))[..., None]
    axes.imshow((view.rgb * (0.55 + 0.45 * weight)).astype(np.uint8), extent=(0, width, height, 0))
    for row, column in np.argwhere(kept):
        axes.add_patch(Rectangle((column * patch, row * patch), patch, patch, fill=False, ec=ACCENT, lw=0.8))


def draw_scene(axes: Axes3D, seen: Observation, found: Tokens) -> None:
    """The cloud of both cameras over the table, with tokens and gripper."""
    near = SIZES["tiny"].position.near
    parts = [cloud(view, seen.workspace, near) for view in seen.views.values()]
    points, colours = (np.concatenate(part) for part in zip(*parts, strict=True))
    axes.computed_zorder = False
    floor = seen.workspace.lower[2]
    lower, upper = points.min(0) - MARGIN, points.max(0) + MARGIN
    lower[:2], upper[:2] = np.floor(lower[:2] / GRID) * GRID, np.ceil(upper[:2] / GRID) * GRID
    lower[2] = floor
    corners = [(lower[0], lower[1]), (upper[0], lower[1]), (upper[0], upper[1]), (lower[0], upper[1])]
    axes.add_collection3d(Poly3DCollection([[(*corner, floor) for corner in corners]], fc="#f1f3f5", ec="none"))
    lines = [
        [(*start, floor), (*end, floor)]
        for x in np.arange(lower[0], upper[0] + GRID / 2, GRID)
        for start, end in [((x, lower[1]), (x, upper[1]))]
    ] + [
        [(lower[0], y, floor), (upper[0], y, floor)] for y in np.arange(lower[1], upper[1] + GRID / 2, GRID)
    ]
    axes.add_collection3d(Line3DCollection(lines, colors="#d5d9e0", lw=0.8))
    axes.scatter(*points.T, c=colours, s=11, depthshade=False, lw=0, zorder=2)
    token = {"s": 130, "c": [(*matplotlib.colors.to_rgb(ACCENT), 0.35)], "edgecolors": ACCENT, "lw": 1.5}
    axes.scatter(*found.points.T, **token, depthshade=False, zorder=3)
    eef = seen.proprio["eef_pos"]
    axes.plot(*np.stack([eef, [eef[0], eef[1], floor]]).T, c=GRIPPER, lw=1.5, ls=":", zorder=4)
    axes.scatter(*eef[:, None], marker="*", s=380, c=GRIPPER, edgecolors="white", lw=1, depthshade=False, zorder=5)
    axes.set(xlim=(lower[0], upper[0]), ylim=(lower[1], upper[1]), zlim=(lower[2], upper[2]))
    axes.set_box_aspect(upper - lower, zoom=1.25)
    axes.view_init(elev=22, azim=40)
    axes.set_axis_off()


def draw(seen: Observation, found: Tokens) -> Figure:
    config = SIZES["tiny"]
    figure = Figure(figsize=SIZE, dpi=DPI, facecolor="white")
    left, size, gap = 0.035, 0.2, 0.012
    tall = size * SIZE[0] / SIZE[1]
    for row, (name, view) in enumerate(seen.views.items()):
        bottom = 0.465 - row * (tall + 0.02)
        for column, what in enumerate(("RGB", "depth, metres")):
            axes = figure.add_axes((left + column * (size + gap), bottom, size, tall))
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if row == 0:
                axes.set_title(what, color=INK, fontsize=13, pad=6)
            if column == 0:
                draw_rgb(axes, view, found.kept[name])
                axes.set_ylabel(name, color=INK, fontsize=13, labelpad=6)
                continue
            near, far = depth_range(view, seen.workspace)
            shown = axes.imshow(view.depth, cmap="viridis_r", vmin=near, vmax=far)
            bar = figure.colorbar(shown, cax=figure.add_axes((left + 2 * (size + gap), bottom, 0.008, tall)))
            bar.outline.set_visible(False)
            bar.ax.tick_params(labelsize=10, colors=INK, length=2)
            bar.ax.invert_yaxis()
    draw_scene(figure.add_axes((0.5, 0.0, 0.5, 0.9), projection="3d"), seen, found)
    patches = sum(int(mask.sum()) for mask in found.kept.values())
    centimetres = 100 * (config.voxel_size or 0)
    headings = (
        (left, "Two calibrated RGB-D cameras", f"outlined: the {patches} patches that show something in the workspace"),
        (0.53, f"{len(found.points)} scene tokens", f"patches averaged in voxels of {centimetres:.0f} cm, for the Llama to read"),
    )
    for x, title, line in headings:
        figure.text(x, 0.94, title, color=INK, fontsize=19, weight="bold")
        figure.text(x, 0.9, line, color=FAINT, fontsize=13)
    return figure


def main() -> None:
    seen = observe()
    draw(seen, tokens(seen)).savefig(OUT)
    print(OUT)


if __name__ == "__main__":
    main()
