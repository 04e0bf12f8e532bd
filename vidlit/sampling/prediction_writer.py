"""Decodes what a prediction step sampled and writes it: an mp4 for each prompt, and how it came about."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor, nn

from vidlit.diffusion.batch import PromptBatch
from vidlit.diffusion.streams import LATENTS
from vidlit.errors import UserError
from vidlit.sampling.rendering import Sample, load_decoder, sample_name, to_frames, to_sound, write_sample
from vidlit.sampling.sampler import Sampling
from vidlit.training.run_callback import RunCallback

if TYPE_CHECKING:
    from vidlit.models.family import SoundDecoder
    from vidlit.sampling.prompts import Prompt
    from vidlit.training.module import VideoDiffusionModule


@dataclass(frozen=True)
class Weights:
    """What videos are made with, as it is written beside them.

    Args:
        name: file or files, or the base.
        files: to be hashed; none for the base, whose fingerprint is taken.
    """

    name: str
    files: Sequence[Path]

    def describe(self, pl_module: VideoDiffusionModule) -> dict[str, str]:
        """Name and hash."""
        if not self.files:
            return {"weights": self.name, "weights_hash": f"fingerprint:{pl_module.family.transformer_fingerprint}"}
        return {"weights": self.name, "weights_hash": ", ".join(f"sha256:{_sha256(path)}" for path in self.files)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class PredictionWriter(RunCallback, BasePredictionWriter):
    """Writes each prompt's video as ``NNN_words_of_the_prompt.mp4`` with a JSON file beside it.

    Args:
        folder: written to.
        prompts: what is made, by number.
        sampling: steps and guidance, for the JSON.
        weights: what it is made with, for the JSON.
        overwrite: replace files that are there.

    Raises:
        UserError: a file is there already.
    """

    def __init__(
        self, folder: Path, prompts: Sequence[Prompt], sampling: Sampling, weights: Weights, overwrite: bool = False
    ) -> None:
        super().__init__(write_interval="batch")
        self.folder = folder
        self.prompts = prompts
        self.sampling = sampling
        self.weights = weights
        self.step: int | None = None
        self._made_with: dict[str, Any] = {}
        self._vae: nn.Module | None = None
        self._decode_sound: SoundDecoder | None = None
        self._done = 0
        there = [path for path in map(self.path, prompts) if path.exists()]
        if there and not overwrite:
            raise UserError(f"{there[0]} exists: name another folder with --output, or add --overwrite.")

    def path(self, prompt: Prompt) -> Path:
        """Of a prompt's video."""
        return self.folder / sample_name(prompt.number, prompt.text)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Note the step that the weights are of."""
        self.step = int(checkpoint["global_step"])

    def on_predict_start(self, *_: Any) -> None:
        """Load what decodes, and hash the weights, once for all ranks."""
        self._vae = load_decoder(self.module)
        self._decode_sound = self.module.family.load_sound_decoder(self.module.device)
        made_with = self.weights.describe(self.module) if self.trainer.is_global_zero else {}
        self._made_with = self.trainer.strategy.broadcast(made_with)

    @torch.no_grad()
    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        prediction: dict[str, Tensor],
        batch_indices: Any,
        batch: PromptBatch,
        *_: Any,
    ) -> None:
        """Decode latents (B, ...) of each stream one by one and write them."""
        if batch.is_repeat:
            return
        for row, number in enumerate(batch.numbers):
            prompt = self.prompts[number]
            streams = {name: latents[row : row + 1] for name, latents in prediction.items()}
            video = self.module.family.decode_latents(self._vae, streams[LATENTS])[0]
            sound = None
            if self._decode_sound is not None:
                samples, rate = self._decode_sound(streams)
                sound = to_sound(samples[0], rate)
            metadata = {
                "prompt": prompt.text,
                **{name: str(path) for name, path in prompt.pictures.items()},
                **self.sampling.as_dict(),
                "seed": prompt.seed,
                "number": number,
                "size": str(prompt.size),
                "fps": self.module.family.fps,
                "base": self.module.base,
                "step": self.step,
                **self._made_with,
            }
            write_sample(self.path(prompt), Sample(to_frames(video), metadata, sound), self.module.family.fps)
            self._done += 1
            if trainer.is_global_zero:
                ranks = f" on rank 0 of {trainer.world_size}" if trainer.world_size > 1 else f" of {len(self.prompts)}"
                print(f"{self._done}{ranks}: {self.path(prompt)}")

    def on_predict_end(self, *_: Any) -> None:
        """Let the decoders go."""
        self._vae = self._decode_sound = None
