"""Makes ``docs/overview.png``: an observation, and the tokens that the network makes of it.

``python docs/make_overview.py`` runs a few steps of a robosuite/LiftWide episode with the scripted demonstrator and
draws that observation: both cameras' RGB and depth, their joint point cloud, and the voxel tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d import Axes3D
from mpl_toolkits.mplot3d.art3d import Line3DCollection, Poly3DCollection
from numpy.typing import NDArray

from sim_eval.core.cameras import unproject
from sim_eval.core.types import CameraView, EpisodeKey, FloatArray, Observation, WorkspaceBox, observe_task
from sim_eval.envs.tasks import get_task
from sim_eval.policies.policy import PolicyRequest
from sim_eval.policies.scripted.scripted_policy import ScriptedPolicy
from sim_eval.policies.spatialvla import modeling_llava3d
from sim_eval.policies.spatialvla.configuration_spatialvla import SIZES
from sim_eval.reporting.video_layout import depth_range

OUT = Path(__file__).with_name("overview.png")
KEY, STEPS = EpisodeKey("robosuite/LiftWide", "val", 3), 8
DPI, SIZE = 100, (14.0, 7.2)
INK, FAINT, ACCENT, GRIPPER = "#1f2430", "#5c6370", "#0b7285", "#f08c00"
GRID = 0.05  # metres between the table's lines
POINTS_PER_METRE = 1350  # so that neighbouring pixels touch


@dataclass(frozen=True)
class Tokens:
    """The patches and voxels of an observation, before anything learnt.

    Attributes:
        kept: camera name -> bool [rows, columns], which patches reach the encoder.
        points: [K, 3], world, the mean of each voxel's patches.
        colours: [K, 3] in 0 to 1, likewise.
    """

    kept: dict[str, NDArray[np.bool_]]
    points: FloatArray
    colours: FloatArray


def observe() -> Observation:
    """The observation a few control steps into the episode."""
    simulator, policy = get_task(KEY.task).make(), ScriptedPolicy()
    instruction = simulator.task.instruction(KEY)
    simulator.reset(KEY)
    for step in range(STEPS):
        seen = observe_task(simulator, instruction, ())
        request = PolicyRequest(seen, KEY, step, simulator.spec.action, simulator.privileged())
        (chunk,) = policy.predict([request])
        simulator.act(chunk.actions[0])
    seen = observe_task(simulator, instruction)
    simulator.close()
    return seen


def tokens(seen: Observation) -> Tokens:
    """Patches and voxels as LLaVA3DModel.embed_scene makes them, carrying positions and colours for features."""
    config = SIZES["tiny"]["deep_llama"]
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


def cloud(view: CameraView, workspace: WorkspaceBox, near: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """World points [N, 3] of a camera inside the workspace, colours [N, 3] in 0 to 1, metres that a pixel spans [N]."""
    points = unproject(view)
    inside = workspace.contains(points) & (view.depth >= near)
    return points[inside], view.rgb[inside] / 255, view.depth[inside] / view.intrinsics[0, 0]


def draw_rgb(axes: Axes, view: CameraView, kept: NDArray[np.bool_]) -> None:
    """The picture, darkened where patches do not reach the network."""
    height, width = view.depth.shape
    patch = height // len(kept)
    weight = np.kron(kept, np.ones((patch, patch)))[..., None]
    axes.imshow((view.rgb * (0.75 + 0.25 * weight)).astype(np.uint8), extent=(0, width, height, 0))
    for row, column in np.argwhere(kept):
        axes.add_patch(Rectangle((column * patch, row * patch), patch, patch, fill=False, ec=ACCENT, lw=0.8))


def draw_scene(axes: Axes3D, seen: Observation, found: Tokens) -> None:
    """The cloud of both cameras over the table, with tokens and gripper."""
    near = SIZES["tiny"]["deep_llama"].position.near
    parts = [cloud(view, seen.workspace, near) for view in seen.views.values()]
    points, colours, spans = (np.concatenate(part) for part in zip(*parts, strict=True))
    axes.computed_zorder = False
    floor = seen.workspace.lower[2]
    lower, upper = points.min(0), points.max(0)
    lower[:2], upper[:2] = np.floor(lower[:2] / GRID) * GRID, np.ceil(upper[:2] / GRID) * GRID
    lower[2] = floor
    corners = [(lower[0], lower[1]), (upper[0], lower[1]), (upper[0], upper[1]), (lower[0], upper[1])]
    axes.add_collection3d(Poly3DCollection([[(*corner, floor) for corner in corners]], fc="#f1f3f5", ec="none"))
    across, along = (np.arange(lower[i], upper[i] + GRID / 2, GRID) for i in (0, 1))
    lines = [[(x, lower[1], floor), (x, upper[1], floor)] for x in across]
    lines += [[(lower[0], y, floor), (upper[0], y, floor)] for y in along]
    axes.add_collection3d(Line3DCollection(lines, colors="#d5d9e0", lw=0.8))
    axes.scatter(*points.T, c=colours, s=(POINTS_PER_METRE * spans) ** 2, depthshade=False, lw=0, zorder=2)
    fill = matplotlib.colors.to_rgba(ACCENT, 0.45)
    token = axes.scatter(*found.points.T, s=160, c=[fill], edgecolors=ACCENT, lw=1.5, depthshade=False, zorder=3)
    eef = seen.proprio["eef_pos"]
    axes.plot(*np.stack([eef, [eef[0], eef[1], floor]]).T, c=GRIPPER, lw=1.5, ls=":", zorder=4)
    star = axes.scatter(
        *eef[:, None], marker="*", s=330, c=GRIPPER, edgecolors="white", lw=1, depthshade=False, zorder=5
    )
    axes.set(xlim=(lower[0], upper[0]), ylim=(lower[1], upper[1]), zlim=(lower[2], upper[2]))
    axes.set_box_aspect(upper - lower, zoom=1.08)
    axes.view_init(elev=22, azim=40)
    axes.set_axis_off()
    axes.text2D(
        0.03, 0.14, f"table, lines {100 * GRID:.0f} cm apart", transform=axes.transAxes, color=FAINT, fontsize=11
    )
    pixel = Line2D([], [], ls="", marker="o", ms=5, c="#555555")
    axes.figure.legend(
        [pixel, token, star],
        ["pixel of either camera", "scene token", "gripper, the origin"],
        loc="upper right",
        bbox_to_anchor=(0.995, 0.87),
        frameon=False,
        fontsize=12,
        labelcolor=INK,
        handletextpad=0.3,
        labelspacing=0.7,
    )


def draw(seen: Observation, found: Tokens) -> Figure:
    config = SIZES["tiny"]["deep_llama"]
    figure = Figure(figsize=SIZE, dpi=DPI, facecolor="white")
    left, size, gap = 0.035, 0.2, 0.012
    tall = size * SIZE[0] / SIZE[1]
    for row, (name, view) in enumerate(seen.views.items()):
        bottom = 0.44 - row * (tall + 0.02)
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
            bar.locator = MaxNLocator(4)
    draw_scene(figure.add_axes((0.5, 0.02, 0.5, 0.9), projection="3d"), seen, found)
    patches = sum(int(mask.sum()) for mask in found.kept.values())
    tokens_line = (
        f"patches averaged in voxels of {100 * (config.voxel_size or 0):.0f} cm, read with “{seen.instruction}”"
    )
    for x, title, line in (
        (left, "Two calibrated RGB-D cameras", f"outlined: the {patches} patches that show something of the workspace"),
        (0.535, f"{len(found.points)} scene tokens", tokens_line),
    ):
        figure.text(x, 0.935, title, color=INK, fontsize=19, weight="bold")
        figure.text(x, 0.893, line, color=FAINT, fontsize=12.5)
    return figure


def main() -> None:
    seen = observe()
    draw(seen, tokens(seen)).savefig(OUT)
    print(OUT)


if __name__ == "__main__":
    main()
