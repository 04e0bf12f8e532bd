"""Sample videos: generated from held-out prompts with fixed seeds, as mp4 and one contact sheet."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from vidlit.data.batch import collate
from vidlit.data.video import write_mp4
from vidlit.diffusion.generate import generate
from vidlit.diffusion.noising import keyed_generator
from vidlit.run_directory import RunDirectory

if TYPE_CHECKING:
    from vidlit.data.clips import Clip
    from vidlit.module import VideoDiffusionModule

SHEET_FRAMES = 5
_CAPTION_HEIGHT = 14


class SampleVideos(Callback):
    """Generates a few videos from captions of held-out clips when training is over.

    The start noise is keyed by (seed, clip), so two runs, or two steps of one, can be compared side by side.

    Args:
        num_videos: how many; 0 for none.
        num_steps: denoising steps.
        seed: of the start noise.
    """

    def __init__(self, num_videos: int = 4, num_steps: int = 30, seed: int = 0) -> None:
        self.num_videos = num_videos
        self.num_steps = num_steps
        self.seed = seed

    def on_fit_end(self, trainer: Trainer, pl_module: VideoDiffusionModule) -> None:  # type: ignore[override]
        """Sample with the weights that are kept."""
        if not trainer.is_global_zero or self.num_videos < 1:
            return
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        clips = _one_a_caption(datamodule.val_clips)[: self.num_videos]
        videos = self.render(pl_module, datamodule.dataset(clips), clips)
        directory = RunDirectory(Path(trainer.default_root_dir))
        kept_step = directory.read_summary().get("kept_step", trainer.global_step)
        write_samples(directory.samples(kept_step), videos, clips, pl_module.family.fps)

    @torch.no_grad()
    def render(self, pl_module: VideoDiffusionModule, dataset: Any, clips: Sequence[Clip]) -> list[NDArray[np.uint8]]:
        """One video (F, H, W, 3) for each clip, from its caption, at its size."""
        by_bucket: dict[Any, list[int]] = defaultdict(list)
        for row, clip in enumerate(clips):
            by_bucket[clip.bucket].append(row)
        family, device = pl_module.family, pl_module.device
        latents: dict[int, Tensor] = {}
        was_training = pl_module.training
        pl_module.eval()
        for bucket, rows in by_bucket.items():
            batch = collate([dataset[row] for row in rows], family.prompt_length)
            shape = family.latent_shape(*bucket)
            scheduler = family.load_scheduler(self.num_steps, shape[1] * shape[2] * shape[3])
            noise = torch.stack(
                [torch.randn(shape, generator=keyed_generator("sample", self.seed, key)) for key in batch.keys.tolist()]
            )
            made = generate(
                pl_module,
                scheduler,
                noise.to(device),
                batch.prompt_embeds.to(device),
                batch.prompt_attention_mask.to(device),
            )
            latents |= dict(zip(rows, made, strict=True))
        pl_module.train(was_training)
        vae = family.load_vae(device)
        return [to_frames(family.decode_latents(vae, latents[row][None])[0]) for row in range(len(clips))]


def to_frames(video: Tensor) -> NDArray[np.uint8]:
    """A video (3, F, H, W) in about [-1, 1] to frames (F, H, W, 3) uint8."""
    scaled = ((video.float().clamp(-1, 1) + 1) * 127.5).round()
    return scaled.permute(1, 2, 3, 0).to("cpu", torch.uint8).numpy()


def write_samples(folder: Path, videos: Sequence[NDArray[np.uint8]], clips: Sequence[Clip], fps: float) -> None:
    """Write each video as mp4, named by number and caption, and ``contact_sheet.png`` with frames of all."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (video, clip) in enumerate(zip(videos, clips, strict=True)):
        words = re.sub(r"[^a-z0-9]+", "_", clip.source.caption.lower()).strip("_")[:48]
        write_mp4(folder / f"{number:02d}_{words}.mp4", video, fps)
    rows = [_sheet_row(video, clip.source.caption) for video, clip in zip(videos, clips, strict=True)]
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    sheet.save(folder / "contact_sheet.png")


def _sheet_row(video: NDArray[np.uint8], caption: str) -> Image.Image:
    chosen = np.linspace(0, len(video) - 1, SHEET_FRAMES).round().astype(int)
    strip = Image.fromarray(np.concatenate([video[frame] for frame in chosen], axis=1))
    scale = max(1, 160 // strip.height)  # tiny videos are drawn larger, so that the sheet can be read
    strip = strip.resize((strip.width * scale, strip.height * scale), Image.Resampling.NEAREST)
    row = Image.new("RGB", (strip.width, strip.height + _CAPTION_HEIGHT), "white")
    row.paste(strip, (0, _CAPTION_HEIGHT))
    ImageDraw.Draw(row).text((2, 1), caption, fill="black")
    return row


def _one_a_caption(clips: Sequence[Clip]) -> list[Clip]:
    """The first clip of each caption: takes of one scene would give one prompt many times."""
    first = {clip.source.caption: clip for clip in reversed(clips)}
    return [clip for clip in clips if first[clip.source.caption] is clip]
