"""Procedural clips with captions: every video is a function of its number."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

FPS = 16.0
Array = NDArray[np.float32]

COLOURS = {
    "red": (0.86, 0.16, 0.16),
    "orange": (0.95, 0.55, 0.12),
    "yellow": (0.95, 0.87, 0.25),
    "green": (0.18, 0.65, 0.26),
    "teal": (0.12, 0.62, 0.62),
    "blue": (0.16, 0.33, 0.85),
    "purple": (0.52, 0.22, 0.72),
    "pink": (0.95, 0.55, 0.72),
    "brown": (0.45, 0.28, 0.14),
    "white": (0.95, 0.95, 0.95),
    "grey": (0.50, 0.50, 0.52),
    "black": (0.08, 0.08, 0.10),
}
SHAPES: dict[str, Callable[[Array, Array], Any]] = {
    "disc": lambda x, y: np.hypot(x, y) - 1.0,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.85,
    "triangle": lambda x, y: np.maximum(np.abs(x) * 0.87 + y * 0.5, -y) - 0.55,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.75) - 0.3,
    "cross": lambda x, y: np.maximum(np.minimum(np.abs(x), np.abs(y)) - 0.35, np.maximum(np.abs(x), np.abs(y)) - 1.0),
}
TEXTURES: dict[str, Callable[[Array, Array], Array]] = {
    "plain": lambda x, y: np.zeros_like(x),
    "striped": lambda x, y: (np.sin(7.0 * x) > 0).astype(np.float32),
    "checkered": lambda x, y: (np.sin(6.0 * x) * np.sin(6.0 * y) > 0).astype(np.float32),
    "dotted": lambda x, y: (np.hypot((x * 2) % 1 - 0.5, (y * 2) % 1 - 0.5) < 0.3).astype(np.float32),
}
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1), "in a circle": None}
Look = Literal["painted", "neon"]
FRAMINGS = ((12, 72, 72), (20, 54, 90))
"""Frames, height and width: a short square video and a longer one of 5:3."""


@dataclass(frozen=True)
class Scene:
    """What all clips of one recording share.

    Args:
        shape: a key of ``SHAPES``.
        texture: a key of ``TEXTURES``.
        colours: names of the shape's two colours and the background's two.
        direction: a key of ``DIRECTIONS``.
        size: height and width of the frames in pixels.
        num_frames: frames of each clip.
        radius: of the shape, as a share of the frame's height.
        speed: share of the frame's height moved in a frame.
        look: style: ``painted`` in plain daylight colours, or ``neon``, glowing outlines in the dark.
    """

    shape: str
    texture: str
    colours: tuple[str, str, str, str]
    direction: str
    size: tuple[int, int]
    num_frames: int
    radius: float
    speed: float
    look: Look = "painted"

    @classmethod
    def draw(cls, number: int, look: Look = "painted") -> Scene:
        """The scene of one recording, a function of its number and style."""
        rng = np.random.default_rng(number if look == "painted" else [number, *look.encode()])
        colours = rng.choice(list(COLOURS), size=4, replace=False)
        num_frames, height, width = FRAMINGS[number % len(FRAMINGS)]  # by turns: a few videos fill every bucket
        return cls(
            shape=str(rng.choice(list(SHAPES))),
            texture=str(rng.choice(list(TEXTURES))),
            colours=(str(colours[0]), str(colours[1]), str(colours[2]), str(colours[3])),
            direction=str(rng.choice(list(DIRECTIONS))),
            size=(height, width),
            num_frames=num_frames,
            radius=float(rng.uniform(0.18, 0.34)),
            speed=float(rng.uniform(0.015, 0.05)),
            look=look,
        )

    @property
    def caption(self) -> str:
        """What a person would write under the clip."""
        colour, second, sky, ground = self.colours
        surface = f"{colour}" if self.texture == "plain" else f"{self.texture} {colour} and {second}"
        size = "small" if self.radius < 0.23 else "big" if self.radius > 0.29 else "medium"
        what = f"{size} {surface} {self.shape} moves {self.direction} before a {sky} and {ground}"
        return f"A {what} background." if self.look == "painted" else f"Neon lights at night: a {what} glow."

    def render(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        """One clip, (F, H, W, 3): start, phase and turn are drawn anew, the scene stays."""
        return self._to_bytes([frame for frame, _ in self._frames(rng)])

    def render_mask(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        """The mask (F, H, W, 3) of the clip that :meth:`render` makes of the same draws: white where the shape is."""
        return self._to_bytes([np.repeat(inside, 3, axis=-1) for _, inside in self._frames(rng)])

    def _frames(self, rng: np.random.Generator) -> Iterator[tuple[Array, Array]]:
        """Frames (H, W, 3), and where the shape is (H, W, 1)."""
        height, width = self.size
        y, x = np.mgrid[0:height, 0:width].astype(np.float32) / height
        first, second, sky, ground = (np.array(COLOURS[name], dtype=np.float32) for name in self.colours)
        grain = self._grain()
        start = rng.uniform([0.2 * width / height, 0.2], [0.8 * width / height, 0.8])
        phase, spin, wave = rng.uniform(0, 2 * np.pi), rng.uniform(-0.08, 0.08), rng.uniform(0, 2 * np.pi)
        for time in range(self.num_frames):
            centre_x, centre_y = self._position(start, phase, time, width / height)
            ripple = 0.1 * np.sin(6 * x + 4 * y + wave + 0.15 * time)
            blend = np.clip(y + ripple + 0.5 * np.roll(grain, time, axis=1)[:, :width], 0, 1)[..., None]
            frame = sky * (1 - blend) + ground * blend
            turn = phase + spin * time
            u = ((x - centre_x) * np.cos(turn) + (y - centre_y) * np.sin(turn)) / self.radius
            v = (-(x - centre_x) * np.sin(turn) + (y - centre_y) * np.cos(turn)) / self.radius
            pattern = TEXTURES[self.texture](u, v)[..., None]
            surface = first * (1 - pattern) + second * pattern
            distance = SHAPES[self.shape](u, v)[..., None]
            edge = 1.5 / (self.radius * height)  # about one and a half pixels of soft edge
            inside = np.clip(0.5 - distance / edge, 0, 1)
            if self.look == "neon":
                tube, glow = np.exp(-np.square(distance / 0.12)), np.exp(-np.abs(distance) / 0.5)
                lights = first * (0.9 * tube + 0.35 * glow) + surface * 0.25 * inside
                yield np.clip(0.18 * frame + lights, 0, 1), inside
            else:
                yield frame * (1 - inside) + surface * inside, inside

    @staticmethod
    def _to_bytes(frames: list[Array]) -> NDArray[np.uint8]:
        return (np.stack(frames) * 255 + 0.5).astype(np.uint8)

    def _grain(self) -> Array:
        """The background's texture (H, 2W), the same for all clips of a video: what there is to memorise."""
        height, width = self.size
        rng = np.random.default_rng(zlib.crc32(self.caption.encode()))
        frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(2 * width)[None])
        spectrum = np.fft.rfft2(rng.standard_normal((height, 2 * width))) * np.exp(-((frequency / 0.12) ** 2))
        field = np.fft.irfft2(spectrum, s=(height, 2 * width))
        grain: Array = (field / field.std()).clip(-2, 2).astype(np.float32)
        return grain

    def _position(self, start: NDArray[np.float64], phase: float, time: int, aspect: float) -> tuple[float, float]:
        direction = DIRECTIONS[self.direction]
        if direction is None:
            angle = phase + 4 * self.speed * time
            return 0.5 * aspect + 0.3 * float(np.cos(angle)), 0.5 + 0.3 * float(np.sin(angle))
        x, y = start + self.speed * time * np.array(direction)
        return _bounce(float(x), aspect), _bounce(float(y), 1.0)


def _bounce(position: float, length: float) -> float:
    """A position on a line of this length whose ends reflect."""
    folded = position % (2 * length)
    return 2 * length - folded if folded > length else folded
