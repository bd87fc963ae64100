"""How a frame of a video is laid out: a whole episode, or a tile of several beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sim_eval.core.types import CameraView, EpisodeKey, Status, WorkspaceBox

if TYPE_CHECKING:
    from PIL import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

Picture: TypeAlias = NDArray[np.uint8]
Views: TypeAlias = Mapping[str, CameraView]
Box: TypeAlias = tuple[int, int, int, int]  # left, top, right, bottom
Colour: TypeAlias = tuple[int, int, int]

INK, FAINT, PAPER, GROOVE = (238, 238, 238), (160, 160, 168), (24, 24, 27), (52, 52, 58)
GREEN, RED, AMBER, ACCENT = (34, 150, 80), (200, 52, 52), (190, 125, 20), (90, 170, 255)
DESIGN = 512  # the size for which the measures below are meant


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


@dataclass(frozen=True)
class Story:
    """What a video tells besides its pictures.

    Attributes:
        label: names the policy.
        phases: names of the task's phases.
        statuses: after each control step.
        asked: the number of control steps before each call of the policy.
        success: the episode counts as a success.
        max_steps: control steps after which an episode is over.
        control_hz: control steps a second.
    """

    key: EpisodeKey
    label: str
    instruction: str
    workspace: WorkspaceBox
    phases: tuple[str, ...]
    statuses: Sequence[Status]
    asked: Sequence[int]
    success: bool
    max_steps: int
    control_hz: float

    @property
    def steps(self) -> int:
        return len(self.statuses)

    @cached_property
    def first_success(self) -> int | None:
        """The first control step, from 1, after which the rule held; None: it never did."""
        return next((step for step, status in enumerate(self.statuses, start=1) if status.success), None)

    def phase(self, step: int) -> str:
        """The phase that is fulfilled after so many control steps."""
        fulfilled = self.statuses[step - 1].phase if step else 0
        return self.phases[fulfilled - 1] if fulfilled else "none"

    def outcome(self, step: int) -> tuple[str, Colour] | None:
        """What is known of the outcome after so many control steps, and its colour; None: nothing yet."""
        if step == self.steps and not self.success:
            return ("failure: time limit" if step == self.max_steps else "failure: broke off"), RED
        if self.first_success is None or step < self.first_success:
            return None
        reached = f"success at step {self.first_success}"
        if self.statuses[step - 1].success:
            return reached, GREEN
        return f"{reached}, lost at the end" if step == self.steps else f"{reached}, lost again", AMBER


@cache
def text_font(pixels: int, bold: bool = False) -> FreeTypeFont:
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, pixels)


def fit(text: str, width: int, largest: int, smallest: int, bold: bool = False) -> tuple[str, FreeTypeFont]:
    """The text in one line and the largest font, in pixels, in which it fits; cut with an ellipsis where none does."""
    text = " ".join(text.split())
    for pixels in range(largest, smallest - 1, -1):
        font = text_font(pixels, bold)
        if font.getlength(text) <= width:
            return text, font
    font = text_font(smallest, bold)
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…", font


def third_person_size(size: int) -> tuple[int, int]:
    """Height and width, both even, of the large picture: 4:3."""
    return 2 * (size // 2), 2 * round(size * 2 / 3)


class Layout:
    """Draws the frames of one episode; what does not change from frame to frame is drawn once.

    Args:
        views: of the policy's cameras, in the first frame; the colour scale of depth follows from their poses.
        size: height of the large picture in pixels; everything else grows with it.
    """

    CRF = 20  # of the video, for ffmpeg

    def __init__(self, story: Story, views: Views, size: int) -> None:
        self._story = story
        self._unit = size / DESIGN
        self._large = third_person_size(size)
        self._ranges = {name: depth_range(view, story.workspace) for name, view in views.items()}

    def frame(self, step: int, large: Picture, views: Views) -> Picture:
        """The frame, uint8 [H, W, 3] of even sizes, after so many control steps."""
        raise NotImplementedError

    def _px(self, measure: float) -> int:
        return round(measure * self._unit)

    def _depth(self, name: str, view: CameraView) -> Picture:
        return colour_depth(view.depth, *self._ranges[name])

    def _text(
        self, draw: ImageDraw, x: float, y: float, text: str, pixels: int, fill: Colour = INK, anchor: str = "lm"
    ) -> None:
        """Text anchored at a place of the design."""
        draw.text((self._px(x), self._px(y)), text, fill, text_font(self._px(pixels)), anchor=anchor)

    def _progress(self, draw: ImageDraw, box: Box, step: int) -> None:
        """The episode so far as a bar: steps at which the rule held are green."""
        story, (left, top, right, bottom) = self._story, box
        draw.rectangle(box, GROOVE)
        at = np.linspace(left, right, story.steps + 1).round().astype(int).tolist()
        draw.rectangle((left, top, at[step], bottom), FAINT)
        for number in range(step):
            if story.statuses[number].success:
                draw.rectangle((at[number], top, at[number + 1], bottom), GREEN)


def _paste(canvas: Image.Image, picture: Picture, box: Box) -> Box:
    """Pastes a picture into the middle of a box, as large as it fits; returns its place."""
    from PIL import Image

    left, top, right, bottom = box
    height, width = picture.shape[:2]
    scale = min((right - left) / width, (bottom - top) / height)
    width, height = round(scale * width), round(scale * height)
    image = Image.fromarray(picture)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    x, y = left + (right - left - width) // 2, top + (bottom - top - height) // 2
    canvas.paste(image, (x, y))
    return x, y, x + width, y + height


class EpisodeLayout(Layout):
    """A frame of 1280 x 720 for a size of 512: the large picture, each camera's RGB and depth, and a timeline."""

    WIDTH, HEIGHT, MARGIN, TOP, CAPTION = 1280, 720, 20, 88, 24
    INSET = 230  # pixels a side, at most
    SCALE_WIDTH = 12

    def __init__(self, story: Story, views: Views, size: int) -> None:
        super().__init__(story, views, size)
        from PIL import Image, ImageDraw

        self._canvas = Image.new("RGB", (2 * self._px(self.WIDTH / 2), 2 * self._px(self.HEIGHT / 2)), PAPER)
        draw = ImageDraw.Draw(self._canvas)
        width = self._px(self.WIDTH - 2 * self.MARGIN)
        title, font = fit(f"“{story.instruction}”", width, self._px(30), self._px(19), bold=True)
        draw.text((self._px(self.MARGIN), self._px(32)), title, INK, font, anchor="lm")
        key = story.key
        about, font = fit(f"{story.label}   {key.task}   {key.split} {key.index}", width, self._px(17), self._px(12))
        draw.text((self._px(self.MARGIN), self._px(66)), about, FAINT, font, anchor="lm")
        left, top = self._px(self.MARGIN), self._px(self.TOP)
        self._place: Box = (left, top, left + self._large[1], top + self._large[0])
        self._insets = self._lay_insets(draw, views)
        self._text(
            draw, self.WIDTH - self.MARGIN, 704, "each tick: a new chunk of actions", 14, fill=FAINT, anchor="rm"
        )

    def _lay_insets(self, draw: ImageDraw, views: Views) -> dict[str, tuple[Box, Box]]:
        """Places of RGB and depth of each camera; draws captions and colour scales."""
        rows = max(len(views), 1)
        side = min(self.INSET, (DESIGN - 4 * (rows - 1)) // rows - self.CAPTION)
        left = 2 * self.MARGIN + round(self._large[1] / self._unit)
        places = {}
        for row, name in enumerate(views):
            top = self.TOP + row * (side + self.CAPTION + 4)
            below = top + self.CAPTION
            caption, font = fit(f"{name}: RGB", self._px(side), self._px(15), self._px(9))
            draw.text((self._px(left), self._px(top + 11)), caption, INK, font, anchor="lm")
            self._text(draw, left + side + 8, top + 11, "depth in metres", 15)
            self._draw_scale(draw, left + 2 * side + 16, below, side, *self._ranges[name])
            places[name] = self._box(left, below, side), self._box(left + side + 8, below, side)
        return places

    def _box(self, x: float, y: float, side: float) -> Box:
        return self._px(x), self._px(y), self._px(x + side), self._px(y + side)

    def _draw_scale(self, draw: ImageDraw, x: float, top: float, height: float, near: float, far: float) -> None:
        """A colour bar, near at the top, with round numbers of metres."""
        from matplotlib.ticker import MaxNLocator

        left, upper, right, lower = map(self._px, (x, top, x + self.SCALE_WIDTH, top + height))
        rows = np.linspace(near, far, lower - upper, dtype=np.float32)
        for number, (colour,) in enumerate(colour_depth(rows[:, None], near, far).tolist()):
            draw.line((left, upper + number, right, upper + number), tuple(colour))
        for metres in MaxNLocator(4).tick_values(near, far):
            if near <= metres <= far:
                y = top + height * (metres - near) / (far - near)
                draw.line((right, self._px(y), right + self._px(4), self._px(y)), INK)
                self._text(draw, x + self.SCALE_WIDTH + 7, y, f"{metres:.3g}", 13)

    def frame(self, step: int, large: Picture, views: Views) -> Picture:
        from PIL import ImageDraw

        story, canvas = self._story, self._canvas.copy()
        shown = _paste(canvas, large, self._place)
        for name, (rgb, depth) in self._insets.items():
            _paste(canvas, views[name].rgb, rgb)
            _paste(canvas, self._depth(name, views[name]), depth)
        draw = ImageDraw.Draw(canvas)
        self._text(draw, self.MARGIN, 626, f"step {step} of {story.steps}", 18)
        self._text(draw, 220, 626, f"{step / story.control_hz:.1f} s", 18)
        self._text(draw, 310, 626, f"phase: {story.phase(step)}", 18)
        if outcome := story.outcome(step):
            text, colour = outcome
            font = text_font(self._px(18), bold=True)
            right, middle = self._px(self.WIDTH - self.MARGIN), self._px(626)
            left = right - int(font.getlength(text)) - 2 * self._px(14)
            draw.rounded_rectangle((left, middle - self._px(16), right, middle + self._px(16)), self._px(6), colour)
            draw.text(((left + right) / 2, middle), text, INK, font, anchor="mm")
            draw.rectangle(shown, outline=colour, width=self._px(4))
        self._draw_timeline(draw, step)
        return np.asarray(canvas)

    def _draw_timeline(self, draw: ImageDraw, step: int) -> None:
        story = self._story
        left, top, right, bottom = map(self._px, (self.MARGIN, 664, self.WIDTH - self.MARGIN, 684))
        self._progress(draw, (left, top, right, bottom), step)
        per_step = (right - left) / max(story.steps, 1)
        past = [asked for asked in story.asked if asked <= step]
        for asked in story.asked:
            now = bool(past) and asked == past[-1]
            x = left + round(asked * per_step)
            rise, width = self._px(9 if now else 4), max(1, self._px(3 if now else 1.5))
            draw.line((x, top - rise, x, top), ACCENT if asked <= step else FAINT, width)
        self._text(draw, self.MARGIN, 704, f"chunk {len(past)} of {len(story.asked)}", 14, fill=ACCENT)
        x = left + round(step * per_step)
        draw.line((x, top - self._px(3), x, bottom + self._px(3)), INK, max(2, self._px(3)))


class TileLayout(Layout):
    """A tile of a grid: instruction and label above the large picture, a depth inset in it, progress below."""

    CRF = 4  # tiles are compressed once more, in the grid
    BAND, BAR = 88, 10
    INSET_SHARE = 0.3  # of the large picture's height

    def __init__(self, story: Story, views: Views, size: int) -> None:
        super().__init__(story, views, size)
        from PIL import Image, ImageDraw

        high, wide = self._large
        band, bar = 2 * self._px(self.BAND / 2), 2 * self._px(self.BAR / 2)
        self._place: Box = (0, band, wide, band + high)
        self._bar: Box = (0, band + high, wide, band + high + bar - 1)
        self._canvas = Image.new("RGB", (wide, band + high + bar), PAPER)
        draw = ImageDraw.Draw(self._canvas)
        gap = self._px(8)
        for text, y, ink, largest in (
            (f"“{story.instruction}”", 0.32, INK, 33),
            (f"{story.label}   {story.key.task} {story.key.index}", 0.76, FAINT, 25),
        ):
            text, font = fit(text, wide - 2 * gap, self._px(largest), self._px(25), bold=ink == INK)
            draw.text((gap, y * band), text, ink, font, anchor="lm")

    def frame(self, step: int, large: Picture, views: Views) -> Picture:
        from PIL import ImageDraw

        canvas = self._canvas.copy()
        shown = left, top, right, bottom = _paste(canvas, large, self._place)
        draw = ImageDraw.Draw(canvas)
        gap = self._px(8)
        for name in list(views)[:1]:
            side = round(self.INSET_SHARE * (bottom - top))
            inset = _paste(
                canvas,
                self._depth(name, views[name]),
                (right - gap - side, bottom - gap - side, right - gap, bottom - gap),
            )
            draw.rectangle(inset, outline=INK)
            self._label(draw, inset[0], inset[1], "depth", GROOVE)
        if outcome := self._story.outcome(step):
            self._label(draw, left + gap, top + gap, *outcome)
            draw.rectangle(shown, outline=outcome[1], width=max(2, self._px(5)))
        self._progress(draw, self._bar, step)
        return np.asarray(canvas)

    def _label(self, draw: ImageDraw, left: int, top: int, text: str, colour: Colour) -> None:
        font = text_font(self._px(28), bold=True)
        width, height, gap = int(font.getlength(text)), self._px(40), self._px(8)
        draw.rectangle((left, top, left + width + 2 * gap, top + height), colour)
        draw.text((left + gap, top + height / 2), text, INK, font, anchor="lm")
