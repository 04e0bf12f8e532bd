"""From frames to mp4 files, contact sheets and loggers: the same for every command."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from vidlit.models.encoders import use_tiles
from vidlit.runs.directory import write_text
from vidlit.video.mp4 import write_mp4
from vidlit.video.sound import Sound

if TYPE_CHECKING:
    from vidlit.training.module import VideoDiffusionModule

CONTACT_SHEET = "contact_sheet.png"
SHEET_FRAMES = 5
_CAPTION_HEIGHT = 14
_MOST_NAME_BYTES = 160  # a name has at most 255, and a file that is being written a longer one


class Sample(NamedTuple):
    """A generated video and how it came about."""

    frames: NDArray[np.uint8]
    """(F, H, W, 3)"""
    metadata: dict[str, Any]
    """at least ``prompt``"""
    sound: Sound | None = None
    """what is heard with it"""


def load_decoder(pl_module: VideoDiffusionModule) -> Any:
    """The VAE of a model's base, on its device, to decode samples with; in tiles where ``model.memory`` says so."""
    vae = pl_module.family.load_vae(pl_module.device)
    if pl_module.memory.settled(pl_module.device).tiled_decoding:
        use_tiles(vae)
    return vae


def to_frames(video: Tensor) -> NDArray[np.uint8]:
    """A video (3, F, H, W) in about [-1, 1] to frames (F, H, W, 3) uint8."""
    scaled = ((video.float().clamp(-1, 1) + 1) * 127.5).round()
    return scaled.permute(1, 2, 3, 0).to("cpu", torch.uint8).numpy()


def to_sound(samples: Tensor, rate: int) -> Sound:
    """Samples (2, n) in about [-1, 1], as a family's decoder gives them with their rate."""
    return Sound(samples.float().clamp(-1, 1).cpu().numpy(), rate)


def sample_name(number: int, caption: str, prefix: str = "") -> str:
    """File name of a sample: its number, and the letters and digits of its caption, of any script."""
    spelled = unicodedata.normalize("NFC", caption.lower())
    kept = [char if unicodedata.category(char)[0] in "LMN" else " " for char in spelled]
    words = "_".join("".join(kept).split())[:48].encode()[:_MOST_NAME_BYTES].decode(errors="ignore")
    return f"{prefix}{number:02d}_{words}.mp4" if words else f"{prefix}{number:02d}.mp4"


def write_sample(path: Path, sample: Sample, fps: float) -> None:
    """Write a video as mp4 and, beside it as JSON, how it came about."""
    write_mp4(path, sample.frames, fps, sample.sound)
    write_text(path.with_suffix(".json"), json.dumps(sample.metadata, indent=2) + "\n")


def write_samples(folder: Path, samples: Sequence[Sample], fps: float, prefix: str = "") -> list[Path]:
    """Write each video, named by number and prompt, and a contact sheet with frames of all.

    Returns:
        The mp4 files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / sample_name(number, sample.metadata["prompt"], prefix) for number, sample in enumerate(samples)]
    for path, sample in zip(paths, samples, strict=True):
        write_sample(path, sample, fps)
    contact_sheet(samples).save(folder / f"{prefix}{CONTACT_SHEET}")
    return paths


def contact_sheet(samples: Sequence[Sample]) -> Image.Image:
    """A picture with a row of frames for each video, under its prompt."""
    return _stack([_sheet_row(sample.frames, sample.metadata["prompt"]) for sample in samples])


def write_pair(
    folder: Path, name: str, sample: NDArray[np.uint8], real: NDArray[np.uint8], captions: tuple[str, str], fps: float
) -> None:
    """A sample (F, H, W, 3) beside the training clip it resembles: ``name.mp4``, and frames of both as ``name.png``.

    Args:
        folder: to write to.
        name: without suffix.
        sample: left, or above in the picture.
        real: right; scaled to the sample's height, its last frame held where it is shorter.
        captions: for the picture.
        fps: frames a second.
    """
    height = sample.shape[1]
    width = max(2, round(real.shape[2] * height / real.shape[1]))
    shown = [real[min(frame, len(real) - 1)] for frame in range(len(sample))]
    scaled = np.stack([np.asarray(Image.fromarray(frame).resize((width, height))) for frame in shown])
    write_mp4(folder / f"{name}.mp4", np.concatenate([sample, scaled], axis=2), fps)
    _stack([_sheet_row(sample, captions[0]), _sheet_row(scaled, captions[1])]).save(folder / f"{name}.png")


def _stack(rows: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def _sheet_row(video: NDArray[np.uint8], caption: str) -> Image.Image:
    chosen = np.linspace(0, len(video) - 1, SHEET_FRAMES).round().astype(int)
    strip = Image.fromarray(np.concatenate([video[frame] for frame in chosen], axis=1))
    scale = max(1, 160 // strip.height)  # tiny videos are drawn larger, so that the sheet can be read
    strip = strip.resize((strip.width * scale, strip.height * scale), Image.Resampling.NEAREST)
    row = Image.new("RGB", (strip.width, strip.height + _CAPTION_HEIGHT), "white")
    row.paste(strip, (0, _CAPTION_HEIGHT))
    ImageDraw.Draw(row).text((2, 1), caption, fill="black")
    return row
