"""The user's own prompts, sampled while training: as ``vidlit predict`` would with the weights of the step."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer

from vidlit.data.batch_sampler import DataRanks
from vidlit.diffusion.conditions import GivenFrames
from vidlit.diffusion.noising import start_noise
from vidlit.diffusion.streams import LATENTS
from vidlit.errors import UserError
from vidlit.sampling.prompts import EncodedFiles, Prompt, check_prompt, encode_files, read_prompts
from vidlit.sampling.rendering import Sample, load_decoder, to_frames, to_sound, write_samples
from vidlit.sampling.sampler import Sampling, gather, own_randomness, share
from vidlit.sampling.sampling_progress import track_sampling
from vidlit.stopping.schedule import audit_evaluations
from vidlit.training.blocks.context_parallel import check_sizes
from vidlit.video.buckets import Bucket

if TYPE_CHECKING:
    from vidlit.data.datamodule import LatentDataModule
    from vidlit.training.module import VideoDiffusionModule

OPTION = "--samples.prompts"
PREFIX = "prompt_"
"""Of their files, which lie in one folder with those of audits."""
_SUFFIXES = (".txt", ".csv")


def read_own_prompts(file: Path | str, seed: int = 0, size: Bucket = Bucket(1, 1, 1)) -> list[Prompt]:  # noqa: B008
    """The prompts of a file, as :func:`vidlit.sampling.prompts.read_prompts` gives them.

    Args:
        file: text with one a line, or CSV; ``~`` and ``$HOME`` are written out.
        seed: where a row has none.
        size: where a row has none.

    Raises:
        UserError: it is no such file, or a row is broken; names file and row.
    """
    path = os.path.expandvars(os.path.expanduser(str(file)))
    if not path.lower().endswith(_SUFFIXES):
        raise UserError(f"{OPTION} {file}: give a text file (.txt) with one prompt a line, or a CSV file (.csv).")
    return read_prompts([path], seed, size, OPTION)


class OwnPrompts:
    """Prompts of a file, with what the model reads beside their text; their texts are in the latent store.

    Args:
        file: that holds them.
        sampling: steps, guidance, and the seed of rows that have none.
        module: to sample from, before its weights are loaded.
        data: whose buckets are the usual sizes.
        device: to encode pictures on.

    Raises:
        UserError: a row is broken, or of something that the model cannot make; names file and row.
    """

    def __init__(
        self,
        file: Path,
        sampling: Sampling,
        module: VideoDiffusionModule,
        data: LatentDataModule,
        device: torch.device,
    ) -> None:
        self.module, self.data, self.sampling = module, data, sampling
        self.prompts = read_own_prompts(file, sampling.seed, max(data.buckets, key=lambda bucket: bucket.tokens(1, 1)))
        for prompt in self.prompts:
            try:
                check_prompt(prompt, module.family, module.conditions, with_references=module.reads_references)
                check_sizes(module.family, module.context_parallel, [prompt.size])
            except UserError as error:
                raise UserError(f"{OPTION} {prompt.place} ({prompt.text[:40]!r}): {error}") from error
        with own_randomness(device):
            self._files = encode_files(self.prompts, module.family, device)

    def evaluations(self) -> float:
        """Cost of sampling them once, in evaluations of a training clip."""
        family = self.module.family
        passes = 2 if self.sampling.guided and not family.embeds_guidance else 1

        def tokens(bucket: Bucket) -> int:
            return bucket.tokens(family.compression[0], family.pixel_multiple)

        clips = self.data.train_clips
        mean = sum(tokens(clip.bucket) for clip in clips) / len(clips)
        each = audit_evaluations(1, passes * self.sampling.num_steps)
        return each * sum(tokens(prompt.size) for prompt in self.prompts) / mean

    @torch.no_grad()
    def sample(self, trainer: Trainer, step: int, folder: Path) -> None:
        """Sample all, write them as ``prompt_NN_words.mp4`` with a JSON each, and log them. Every rank makes its share.

        Args:
            trainer: whose ranks and precision are used.
            step: of the weights.
            folder: to write to.
        """
        device, family = self.module.device, self.module.family
        samples: dict[int, Sample] = {}
        with own_randomness(device):
            vae, decode_sound = load_decoder(self.module), family.load_sound_decoder(device)
            for rows in track_sampling(list(self._alike(DataRanks.of(trainer).size)), trainer.is_global_zero):
                # One on each rank, and as many on every rank: where weights are sharded all of them gather these.
                mine = rows[share(len(rows), trainer)[0] % len(rows)]
                with trainer.precision_plugin.forward_context():
                    streams = self._sample(self.prompts[mine], self._files[mine], device)
                pixels = torch.from_numpy(to_frames(family.decode_latents(vae, streams[LATENTS])[0]))
                made = gather(pixels[None].to(device), len(rows), trainer).cpu().numpy()
                sounds: list[Any] = [None] * len(rows)
                if decode_sound is not None:
                    heard, rate = decode_sound(streams)
                    sounds = [to_sound(each, rate) for each in gather(heard, len(rows), trainer)]
                for row, frames, sound in zip(rows, made, sounds, strict=True):
                    samples[row] = Sample(frames, self._describe(self.prompts[row], step), sound)
        if trainer.is_global_zero:
            in_order = [samples[row] for row in range(len(self.prompts))]
            write_samples(folder, in_order, family.fps, PREFIX)

    def _alike(self, num_replicas: int) -> Iterator[list[int]]:
        """Prompts that ranks sample at once: of one size, so that they take as long and can be gathered."""
        alike: dict[tuple[Bucket, bool, int], list[int]] = defaultdict(list)
        for prompt in self.prompts:
            alike[prompt.size, bool(prompt.pictures), prompt.num_reference_frames].append(prompt.number)
        for rows in alike.values():
            yield from (rows[first : first + num_replicas] for first in range(0, len(rows), num_replicas))

    def _sample(self, prompt: Prompt, files: EncodedFiles, device: torch.device) -> Any:
        """Latents (1, ...) of each stream; from the noise that ``vidlit predict`` starts with."""
        start = start_noise("predict", [(prompt.seed, prompt.number)], self.module.family.stream_shapes(*prompt.size))
        extras = {name: value[None] for name, value in files.extras.items()}
        conditioning = self.data.prompt(prompt.text).with_extras(extras).to(device)
        null = None
        if self.sampling.guided:
            null = self.data.prompt(self.sampling.negative_prompt).to(device).instead_of(conditioning)
        given = files.given
        return self.module.sample(
            {name: noise.to(device) for name, noise in start.items()},
            conditioning,
            self.sampling.num_steps,
            null,
            self.sampling.guidance_scale,
            None if given is None else GivenFrames(given.latents[None], given.mask[None]).to(device),
        )

    def _describe(self, prompt: Prompt, step: int) -> dict[str, Any]:
        return {
            "prompt": prompt.text,
            **{name: str(path) for name, path in prompt.pictures.items()},
            **self.sampling.as_dict(),
            "seed": prompt.seed,
            "number": prompt.number,
            "size": str(prompt.size),
            "fps": self.module.family.fps,
            "base": self.module.base,
            "step": step,
        }
