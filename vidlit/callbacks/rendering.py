"""From prompts to latents, frames, mp4 files and contact sheets."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from vidlit.data.video import write_mp4
from vidlit.diffusion.generate import generate
from vidlit.diffusion.noising import keyed_generator
from vidlit.run_directory import write_text

if TYPE_CHECKING:
    from vidlit.data.clips import Clip
    from vidlit.module import VideoDiffusionModule

SHEET_FRAMES = 5
_CAPTION_HEIGHT = 14


@torch.no_grad()
def sample_latents(
    pl_module: VideoDiffusionModule,
    dataset: Any,
    rows: Sequence[int],
    clips: Sequence[Clip],
    num_steps: int,
    seed: int,
    draws: Sequence[int] | None = None,
) -> Tensor:
    """Latents (B, C, F, H, W) from the prompts of clips of one bucket, from noise keyed by (seed, clip, draw).

    Of an image-to-video model they start from the clips' first frames.

    Args:
        pl_module: the model; its mode is put back.
        dataset: where the prompts are.
        rows: of the dataset, to sample (B,).
        clips: of every row of the dataset.
        num_steps: denoising steps.
        seed: of the start noise.
        draws: numbers (B,) that tell videos of the same clip apart; all 0 by default.
    """
    family, device = pl_module.family, pl_module.device
    batch = dataset.read_batch(rows, family.prompt_length)
    shape = family.latent_shape(*clips[rows[0]].bucket)
    scheduler = family.load_scheduler(num_steps, shape[1] * shape[2] * shape[3])
    keys = zip(batch.keys.tolist(), draws or [0] * len(rows), strict=True)
    noise = torch.stack(
        [torch.randn(shape, generator=keyed_generator("sample", seed, key, *[draw] * (draw > 0))) for key, draw in keys]
    )
    was_training = pl_module.training
    pl_module.eval()
    first_frame = batch.latents[:, :, :1].to(device) if pl_module.first_frame == 1 else None
    latents = generate(pl_module, scheduler, noise.to(device), batch.conditioning.to(device), first_frame=first_frame)
    pl_module.train(was_training)
    return latents


def to_frames(video: Tensor) -> NDArray[np.uint8]:
    """A video (3, F, H, W) in about [-1, 1] to frames (F, H, W, 3) uint8."""
    scaled = ((video.float().clamp(-1, 1) + 1) * 127.5).round()
    return scaled.permute(1, 2, 3, 0).to("cpu", torch.uint8).numpy()


def sample_name(number: int, caption: str, prefix: str = "") -> str:
    """File name of a sample, by number and caption."""
    words = re.sub(r"[^a-z0-9]+", "_", caption.lower()).strip("_")[:48]
    return f"{prefix}{number:02d}_{words}.mp4"


def write_samples(
    folder: Path, videos: Sequence[NDArray[np.uint8]], clips: Sequence[Clip], fps: float, prefix: str = ""
) -> None:
    """Write each video as mp4, named by number and caption, and ``contact_sheet.png`` with frames of all.

    ``captions.json`` beside them holds the whole caption of each file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    captions = [clip.source.caption for clip in clips]
    names = {sample_name(number, caption, prefix): caption for number, caption in enumerate(captions)}
    write_text(folder / f"{prefix}captions.json", json.dumps(names, indent=2) + "\n")
    for number, (video, caption) in enumerate(zip(videos, captions, strict=True)):
        write_mp4(folder / sample_name(number, caption, prefix), video, fps)
    rows = [_sheet_row(video, caption) for video, caption in zip(videos, captions, strict=True)]
    _stack(rows).save(folder / f"{prefix}contact_sheet.png")


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
