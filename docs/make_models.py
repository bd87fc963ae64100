"""Makes the drawings of ``docs/models.md``: what feeds what in each expert, and who sees whom.

``python docs/make_models.py`` writes ``docs/figures/deep_llama.png`` and ``late_gemma.png``. Boxes and arrows are drawn
by hand; the matrices are the masks with which the layers of a tiny network of that kind were called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from numpy.typing import NDArray
from torch import nn

from sim_eval.policies.spatialvla.configuration_spatialvla import SIZES, ActionExpertType
from sim_eval.policies.spatialvla.modeling_spatialvla import SpatialVLAForConditionalGeneration

OUT = Path(__file__).with_name("figures")
DPI, WIDTH = 200, 9.6  # the drawings' unit is the inch
LEFT, WIDE, RIGHT, NARROW, MATRIX = 0.2, 2.55, 3.65, 2.1, 6.75  # where the columns begin, and how wide they are
INK, FAINT, BLANK = "#1f2430", "#5c6370", "#f1f3f5"
ONCE, EACH = "#0b7285", "#e8890c"  # what runs once an observation, and in every Euler step
PALE = {ONCE: "#d7eaee", EACH: "#fdebd0"}
SMALL, TEXT = 8.5, 9.5  # points


@dataclass(frozen=True)
class Group:
    """Tokens that stand together.

    Attributes:
        label: on a matrix; ``below``: under the tokens, where lines may break.
        count: how many are drawn.
        shade: how dark, 0 to 1.
    """

    label: str
    below: str
    count: int
    shade: float


# As in `USER: {instruction}\n<image> ASSISTANT:`.
CONTEXT = (
    Group("instruction", "instruction\nwords", 3, 0.45),
    Group("scene", "scene\nvoxels", 5, 1.0),
    Group("rest", "rest of\nprompt", 2, 0.2),
)
ACTIONS = 4
SUFFIX = (Group("state", "state", 1, 0.2), Group("time", "time", 1, 0.45), Group("actions", "actions", ACTIONS, 1.0))
TOKENS = sum(group.count for group in CONTEXT)

Seen = NDArray[np.bool_]


def masks(expert: ActionExpertType) -> tuple[Seen, Seen]:
    """Who sees whom in the VLM, [T, T], and in the expert, [T + S, T + S]: queries by keys, as the layers were called.

    In deep fusion the expert's first T rows are the VLM's own: its layer L makes the keys that the expert's reads.
    """
    config = SIZES["tiny"][expert]
    config = replace(config, expert=replace(config.expert, chunk_size=ACTIONS))
    model = SpatialVLAForConditionalGeneration(config)
    vlm, decoder = model.vlm.language_model.layers, model.action_expert.model.layers
    handed: dict[nn.Module, list[Seen]] = {layer: [] for layer in (*vlm, *decoder)}

    def record(layer: nn.Module, inputs: tuple[torch.Tensor], options: dict[str, torch.Tensor]) -> None:
        mask = options["attention_mask"].expand(-1, -1, inputs[0].shape[1], -1)[0, 0]
        handed[layer].append((mask == 0).numpy())

    for layer in handed:
        layer.register_forward_pre_hook(record, with_kwargs=True)
    with torch.no_grad():
        context = model.vlm.read(torch.randn(1, TOKENS, config.text.width), torch.ones(1, TOKENS, dtype=torch.bool))
        prepared = model.action_expert.prepare(context, vlm)
        state, noisy = torch.zeros(1, config.expert.state_dim), torch.zeros(1, 1, ACTIONS, config.expert.action_dim)
        model.action_expert.velocity(prepared, state, noisy, torch.ones(1, 1))
    causal = same([seen for layer in vlm for seen in handed[layer]])
    suffix = same([handed[layer][-1] for layer in decoder])
    before = [seen for layer in decoder for seen in handed[layer][:-1]]
    context_rows = same(before) if before else causal
    # The calls for the context hold no keys of the suffix.
    never = np.zeros((TOKENS, len(suffix)), dtype=bool)
    return causal, np.vstack([np.hstack([context_rows, never]), suffix])


def same(found: list[Seen]) -> Seen:
    """The one matrix with which all layers were called."""
    first, *others = found
    assert all(np.array_equal(first, other) for other in others)
    return first


def shade(colour: str, strength: float) -> tuple[float, float, float]:
    """The colour thinned with white."""
    red, green, blue = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return (1 - strength * (1 - red), 1 - strength * (1 - green), 1 - strength * (1 - blue))


def say(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    axes.text(x, y, text, **{"ha": "center", "va": "center", "color": INK, "fontsize": SMALL, **style})


def box(
    axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str, dashed: bool = False
) -> None:
    """A part of the network; dashed: not all of it runs."""
    style = {"ls": (0, (4, 2)), "fc": "white"} if dashed else {"fc": PALE[colour]}
    axes.add_patch(Rectangle((x, y), width, height, ec=colour, lw=1.1, zorder=2, **style))
    say(axes, x + width / 2, y + height / 2, text, zorder=3, linespacing=1.25)


def arrow(axes: Axes, *points: tuple[float, float], colour: str = FAINT) -> None:
    """Straight pieces through the points, with a head at the last."""
    *_, start, end = points
    axes.plot(*zip(*points[:-1], strict=True), color=colour, lw=1.2, solid_joinstyle="miter", zorder=1)
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, shrinkA=0, shrinkB=0, color=colour, lw=1.2)
    )


def tokens(axes: Axes, groups: tuple[Group, ...], x: float, y: float, width: float, colour: str, named: bool) -> None:
    """A row of tokens [x, x + width], the groups' names below."""
    each = width / sum(group.count for group in groups)
    for group in groups:
        for place in range(group.count):
            axes.add_patch(
                Rectangle((x + place * each, y), each, 0.24, fc=shade(colour, group.shade), ec="white", lw=1.5)
            )
        if named:
            for number, line in enumerate(group.below.split("\n")):
                say(axes, x + group.count * each / 2, y - 0.19 - 0.15 * number, line, va="baseline")
        x += group.count * each


def matrix(axes: Axes, seen: Seen, x: float, top: float, cell: float, columns: tuple[Group, ...]) -> None:
    """Queries by keys, rows in their groups' colour where they see; x, top: the upper left corner."""
    colours = [ONCE if row < TOKENS else EACH for row in range(len(seen))]
    for row, column in np.ndindex(seen.shape):
        fill = colours[row] if seen[row, column] else BLANK
        corner = (x + column * cell, top - (row + 1) * cell)
        axes.add_patch(Rectangle(corner, cell, cell, fc=fill, ec="white", lw=0.7))
    side, start = len(seen) * cell, 0
    for group in columns:
        middle = (start + group.count / 2) * cell
        say(axes, x - 0.07, top - middle, group.label, ha="right")
        say(axes, x + middle, top + 0.07, group.label, rotation=90, va="bottom")
        start += group.count
        if start < len(seen):
            axes.hlines(top - start * cell, x, x + side, color=INK, lw=0.7, zorder=3)
            axes.vlines(x + start * cell, top - side, top, color=INK, lw=0.7, zorder=3)


def canvas(title: str, line: str, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, height))
    axes.set_axis_off()
    say(axes, LEFT, height - 0.3, title, ha="left", fontsize=15, weight="bold")
    say(axes, LEFT, height - 0.6, line, ha="left", fontsize=TEXT, color=FAINT)
    for row, (colour, text) in enumerate(((ONCE, "once an observation"), (EACH, "in every Euler step"))):
        y = height - 0.98 - 0.24 * row
        axes.add_patch(Rectangle((LEFT, y - 0.07), 0.2, 0.14, fc=PALE[colour], ec=colour, lw=1.1))
        say(axes, LEFT + 0.3, y, text, ha="left")
    return figure, axes


def note(axes: Axes, x: float, y: float, *lines: str) -> None:
    say(axes, x, y, "\n".join(lines), ha="left", va="top", color=FAINT, linespacing=1.3)


def stacks(axes: Axes, base: float, context_layers: str, suffix_layers: str, last: str, hidden: str) -> None:
    """Two stacks of layers side by side above rows of tokens at ``base``, keys and values passing from left to right.

    Args:
        context_layers, suffix_layers: what a layer is called, left and right.
        last: the number of the last layer.
        hidden: what the layers' inputs on the left are called.
    """
    middle, centre, tall = LEFT + WIDE / 2, RIGHT + NARROW / 2, 0.46
    below = base + 0.24
    for bottom, name in ((base + 0.56, "0"), (base + 1.46, "1"), (base + 2.66, last)):
        arrow(axes, (middle, below), (middle, bottom))
        arrow(axes, (centre, below), (centre, bottom))
        text = (
            f"of {context_layers} {name} only\ninput norm, k_proj, v_proj"
            if name == last
            else f"{context_layers} {name}"
        )
        box(axes, LEFT, bottom, WIDE, tall, text, ONCE, dashed=name == last)
        box(axes, RIGHT, bottom, NARROW, tall, f"{suffix_layers} {name}", EACH)
        gap, height = (LEFT + WIDE + RIGHT) / 2, bottom + tall / 2
        arrow(axes, (middle, bottom - 0.2), (gap, bottom - 0.2), (gap, height - 0.13), colour=ONCE)
        box(axes, gap - 0.2, height - 0.13, 0.4, 0.26, "k, v", ONCE)
        arrow(axes, (gap + 0.2, height), (RIGHT, height), colour=ONCE)
        say(axes, middle + 0.09, bottom - 0.11, f"${hidden}_{{{name}}}$", ha="left")
        below = bottom + tall
    for x in (middle, centre):
        cut = base + 2.24
        axes.add_patch(Rectangle((x - 0.1, cut - 0.12), 0.2, 0.24, fc="white", ec="none", zorder=2))
        say(axes, x, cut, "⋮", fontsize=12, zorder=3)
    arrow(axes, (centre, below), (centre, below + 0.22))
    box(axes, RIGHT, below + 0.22, NARROW, 0.3, "norm, action_out_proj", EACH)
    arrow(axes, (centre, below + 0.52), (centre, below + 0.72))
    say(axes, centre, below + 0.83, "velocity of each action")


def draw_deep() -> Figure:
    height = 5.9
    figure, axes = canvas(
        "deep_llama", "layer L of the expert also attends to keys and values of the VLM's layer L", height
    )
    base = 0.85
    tokens(axes, CONTEXT, LEFT, base, WIDE, ONCE, named=True)
    tokens(axes, SUFFIX, RIGHT, base, NARROW, EACH, named=True)
    say(axes, LEFT + WIDE / 2, 0.2, "CLIP + 3-D position, voxels, projector", color=FAINT)
    say(axes, RIGHT + NARROW / 2, 0.2, "state_in_proj, time_mlp, action_in_proj", color=FAINT)
    stacks(axes, base, "Llama layer", "expert layer", "N-1", "H")
    _, seen = masks("deep_llama")
    say(axes, MATRIX - 0.55, height - 0.98, "Who sees whom, in each layer", ha="left", fontsize=TEXT, weight="bold")
    matrix(axes, seen, MATRIX, 3.95, 0.165, CONTEXT + SUFFIX)
    note(
        axes,
        MATRIX - 0.55,
        1.12,
        "A row is a query, a column a key. Blue-green:",
        "the Llama's layer, causal. Orange: the",
        "expert's layer, over all of the context and",
        "the suffix's blocks {state, time}, {actions}.",
    )
    return figure


def draw_late() -> Figure:
    height = 7.6
    figure, axes = canvas(
        "late_gemma", "the VLM runs to its end; its last hidden states stand before the suffix in a Gemma", height
    )
    middle, base, prefix = LEFT + WIDE / 2, 0.62, 2.75
    tokens(axes, CONTEXT, LEFT, base, WIDE, ONCE, named=True)
    arrow(axes, (middle, base + 0.24), (middle, 1.12))
    box(axes, LEFT, 1.12, WIDE, 0.46, "Llama layers 0 to N-1, norm", ONCE)
    arrow(axes, (middle, 1.58), (middle, 1.96))
    say(axes, middle + 0.09, 1.76, "$H_N$", ha="left")
    box(axes, LEFT, 1.96, WIDE, 0.46, "context_projector, RMSNorm", ONCE)
    arrow(axes, (middle, 2.42), (middle, prefix))
    tokens(axes, CONTEXT, LEFT, prefix, WIDE, ONCE, named=False)
    tokens(axes, SUFFIX, RIGHT, prefix, NARROW, EACH, named=True)
    stacks(axes, prefix, "Gemma layer", "Gemma layer", "M-1", "P")
    say(axes, RIGHT + NARROW / 2, prefix - 0.42, "state_in_proj, time_mlp, action_in_proj", color=FAINT)
    say(axes, (LEFT + WIDE + RIGHT) / 2, prefix + 2.24, "same\nweights", color=FAINT, linespacing=1.15)
    crossed(axes, RIGHT, 0.1)
    causal, seen = masks("late_gemma")
    say(
        axes,
        MATRIX - 0.55,
        height - 0.98,
        "Who sees whom, in each Gemma layer",
        ha="left",
        fontsize=TEXT,
        weight="bold",
    )
    matrix(axes, seen, MATRIX, 5.65, 0.165, CONTEXT + SUFFIX)
    say(axes, MATRIX - 0.55, 2.67, "and in each Llama layer", ha="left", fontsize=TEXT, weight="bold")
    matrix(axes, causal, MATRIX, 1.78, 0.14, CONTEXT)
    return figure


def crossed(axes: Axes, x: float, y: float) -> None:
    """The inset of the other conditioning: one layer."""
    axes.add_patch(Rectangle((x - 0.42, y), NARROW + 0.5, 1.98, fc="none", ec=FAINT, lw=0.8, ls=(0, (1, 2))))
    centre = x + NARROW / 2 + 0.2
    say(axes, x - 0.3, y + 1.83, 'or conditioning = "cross_attention"', ha="left", color=FAINT)
    arrow(axes, (centre, y + 0.1), (centre, y + 0.32))
    box(axes, x + 0.5, y + 0.32, 1.5, 0.34, "CrossAttention", EACH)
    box(axes, x - 0.3, y + 0.36, 0.4, 0.26, "k, v", ONCE)
    arrow(axes, (x + 0.1, y + 0.49), (x + 0.5, y + 0.49), colour=ONCE)
    say(axes, x - 0.1, y + 0.2, "of $P_0$")
    arrow(axes, (centre, y + 0.66), (centre, y + 0.96))
    box(axes, x + 0.5, y + 0.96, 1.5, 0.46, "Gemma layer over\nthe suffix alone", EACH)
    arrow(axes, (centre, y + 1.42), (centre, y + 1.66))


def main() -> None:
    drawings: dict[ActionExpertType, Callable[[], Figure]] = {"deep_llama": draw_deep, "late_gemma": draw_late}
    for name, draw in drawings.items():
        draw().savefig(OUT / f"{name}.png")
        print(OUT / f"{name}.png")


if __name__ == "__main__":
    main()
