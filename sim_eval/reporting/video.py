"""A video of an episode: every camera's picture beside its depth, with instruction, outcome, step and phase."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sim_eval.core.files import atomic
from sim_eval.core.types import CameraView, EpisodeKey, Recorder, Simulator, Status, WorkspaceBox

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

VideoChoice: TypeAlias = Literal["none", "failures", "all"]
Picture: TypeAlias = NDArray[np.uint8]

PANEL = 256  # pixels a picture is wide in the video
LINE, MARGIN = 24, 8  # pixels: from one line of text to the next, and beside text
INK, PAPER = (235, 235, 235), (24, 24, 27)
GREEN, RED = (34, 139, 74), (190, 48, 48)


def depth_range(view: CameraView, workspace: WorkspaceBox) -> tuple[float, float]:
    """Near and far end of a camera's colour scale in metres: the depths of the workspace's corners, with a margin."""
    lower, upper = np.array(workspace.lower), np.array(workspace.upper)
    corners = np.array([np.where([x, y, z], upper, lower) for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    depths = (corners - view.camera_to_world[:3, 3]) @ view.camera_to_world[:3, 2]
    far = 1.1 * max(float(depths.max()), 0.1)
    return max(0.8 * float(depths.min()), far / 8), far  # a wrist camera starts inside the workspace: no negative near


def colour_depth(depth: NDArray[np.float32], near: float, far: float) -> Picture:
    """Depth [H, W] in metres as uint8 [H, W, 3] in viridis, near bright and far dark."""
    from matplotlib import colormaps

    closeness = (far - np.clip(np.nan_to_num(depth, nan=far), near, far)) / (far - near)
    colours: Picture = colormaps["viridis"](closeness, bytes=True)[..., :3]
    return colours


class VideoRecorder(Recorder):
    """Writes ``<task>_<split>_<index>_<success|failure>.mp4`` with T + 1 frames for T control steps.

    H.264, yuv420p, at the control rate, so that a browser plays it in real time. With ``failures`` only failures are
    written, but the frames of every episode are rendered, since its outcome is known only at its end.
    """

    def __init__(self, folder: Path, policy: str, choice: VideoChoice) -> None:
        self._folder = folder
        self._policy = policy
        self._choice = choice

    def start(self, simulator: Simulator, key: EpisodeKey, instruction: str) -> None:
        self._key, self._instruction = key, instruction
        self._frames: list[tuple[dict[str, Picture], str]] = []
        views = simulator.observe().views
        self._ranges = {name: depth_range(view, simulator.task.workspace) for name, view in views.items()}
        self._keep(views, "none")

    def after_act(self, simulator: Simulator, status: Status) -> None:
        self._keep(simulator.observe().views, simulator.task.phases[status.phase - 1] if status.phase else "none")

    def finish(self, simulator: Simulator, success: bool) -> None:
        if success and self._choice == "failures":
            return
        outcome = "success" if success else "failure"
        title = f"{self._policy}   {self._key.task}   {self._key.split} {self._key.index}"
        steps = len(self._frames) - 1
        sizes = {name: (panel.shape[0], panel.shape[1]) for name, panel in self._frames[0][0].items()}
        layout = Layout(sizes, (f'"{self._instruction}"', title), outcome)
        frames = (
            layout.frame(panels, f"step {step} of {steps}   phase: {phase}")
            for step, (panels, phase) in enumerate(self._frames)
        )
        with atomic(self._folder / f"{self._key.stem}_{outcome}.mp4") as partial:
            write_video(partial, frames, simulator.spec.action.control_hz)

    def _keep(self, views: Mapping[str, CameraView], phase: str) -> None:
        panels = {
            name: np.hstack([view.rgb, colour_depth(view.depth, *self._ranges[name])]) for name, view in views.items()
        }
        self._frames.append((panels, phase))


@cache
def text_font() -> FreeTypeFont | ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size=16)


class Layout:
    """The layout of an episode's frames; everything that does not change from frame to frame is drawn once.

    Lines of text, the outcome, then a row for each camera: RGB beside depth.

    Args:
        sizes: camera name -> (height, width) of its panel of two pictures.
    """

    def __init__(self, sizes: Mapping[str, tuple[int, int]], lines: Sequence[str], outcome: str) -> None:
        from PIL import Image, ImageDraw

        width, font = 2 * PANEL, text_font()
        self._step_at = (MARGIN, MARGIN // 2 + LINE * len(lines))
        self._places: dict[str, tuple[int, int, int]] = {}  # camera name -> top, width, height
        top = LINE * (len(lines) + 1) + MARGIN
        for name, (high, wide) in sizes.items():
            self._places[name] = (top + LINE, width, round(high * width / wide))
            top += LINE + self._places[name][2]
        self._canvas = Image.new("RGB", (width, top + top % 2), PAPER)
        draw = ImageDraw.Draw(self._canvas)
        for number, line in enumerate(lines):
            draw.text((MARGIN, MARGIN // 2 + LINE * number), shorten(line, width - 2 * MARGIN), INK, font)
        middle = self._step_at[1] + LINE // 2
        draw.rectangle((width - 96, middle - 13, width, middle + 13), GREEN if outcome == "success" else RED)
        draw.text((width - 48, middle), outcome.upper(), INK, font, anchor="mm")
        for name, (below, _, _) in self._places.items():
            for left, caption in ((MARGIN, name), (PANEL + MARGIN, f"{name} depth")):
                draw.text((left, below - LINE // 2), caption, INK, font, anchor="lm")

    def frame(self, panels: Mapping[str, Picture], step: str) -> Picture:
        """One frame, uint8 [height, 2 * PANEL, 3] of even height, from panels uint8 [H, 2 W, 3]."""
        from PIL import Image, ImageDraw

        canvas = self._canvas.copy()
        ImageDraw.Draw(canvas).text(self._step_at, step, INK, text_font())
        for name, (top, width, height) in self._places.items():
            picture = Image.fromarray(panels[name]).resize((width, height), Image.Resampling.BILINEAR)
            canvas.paste(picture, (0, top))
        return np.asarray(canvas)


def shorten(line: str, width: int) -> str:
    """The line, cut with an ellipsis to fit into so many pixels."""
    font = text_font()
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"


def write_video(path: Path, frames: Iterator[Picture], fps: float) -> None:
    """Writes uint8 frames [H, W, 3] of one even size as H.264 in yuv420p, with the index in front."""
    import imageio_ffmpeg

    first = next(frames)
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (first.shape[1], first.shape[0]),
        fps=fps,
        codec="libx264",
        pix_fmt_out="yuv420p",
        macro_block_size=2,
        ffmpeg_log_level="error",
        output_params=["-preset", "veryfast", "-crf", "23", "-movflags", "+faststart"],
    )
    with closing(writer):
        writer.send(None)
        for frame in chain([first], frames):
            writer.send(np.ascontiguousarray(frame))
