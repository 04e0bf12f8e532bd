"""From an axes that someone draws on to SVG that follows the page: its width, its font, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Stand-ins that the page's own colours take the place of: a browser then changes them with light and dark.
COLOURS = {
    "ink": "#000001",
    "faint": "#000002",
    "grid": "#000003",
    "val": "#000011",
    "train_eval": "#000012",
    "train": "#000013",
    "stop": "#000014",
    "best": "#000015",
    "conservative": "#000021",
    "moderate": "#000022",
    "high": "#000023",
    "risky": "#000024",
    **{f"run-{number}": f"#0000{0x30 + number:02x}" for number in range(8)},
    **{f"level-{number}": f"#0000{0x40 + number:02x}" for number in range(8)},
}
"""Names of the page's CSS variables, ``--val`` and so on."""
NUM_RUN_COLOURS = NUM_LEVEL_COLOURS = 8

Draw = Callable[[Axes], None]

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 12,
    "axes.edgecolor": COLOURS["faint"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 1,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["faint"],
    "ytick.color": COLOURS["faint"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"],
    "ytick.major.size": 0,
}
WIDE, LOW, HALF, _NARROW = (1040, 340), (1040, 240), (510, 270), (360, 250)
"""Sizes in pixels: across the page, half as wide, and on a phone."""


@dataclass(frozen=True)
class Drawing:
    """A figure with its words."""

    title: str
    drawing: Markup
    unit: str = ""
    legend: Sequence[tuple[str, str]] = ()
    """Name of a CSS variable, what it stands for."""
    words: str = ""


def figure(name: str, draw: Draw, wide: tuple[int, int], caption: str) -> Markup:
    """Both drawings of one figure: the page shows the one that fits the screen.

    Args:
        name: unique on the page.
        draw: draws on an axes.
        wide: width and height in pixels on a large screen.
        caption: what it shows, for those who do not see it.
    """
    drawings = [
        (each, _svg(f"{name}-{each}", draw, size, caption)) for each, size in (("wide", wide), ("narrow", _NARROW))
    ]
    return Markup("").join(Markup('<div class="{}">{}</div>').format(each, svg) for each, svg in drawings)


def _svg(name: str, draw: Draw, size: tuple[int, int], caption: str) -> Markup:
    # The salt keeps the names inside one drawing apart from those of the others on the page.
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        drawn = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72, layout="constrained")
        drawn.patch.set_visible(False)
        axes = drawn.add_subplot()
        axes.patch.set_visible(False)
        draw(axes)
        written = io.StringIO()
        drawn.savefig(written, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = written.getvalue()
    text = text[text.index("<svg") :]
    for unwanted in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r'(?<=<g) id="[^"]*"'):
        text = re.sub(unwanted, "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]*; ?", "", text)
    label = f'role="img" aria-label="{Markup.escape(caption)}" '
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt" ', label, text, count=1)
    for colour, stand_in in COLOURS.items():
        text = text.replace(stand_in, f"var(--{colour})")
    return Markup(text)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
