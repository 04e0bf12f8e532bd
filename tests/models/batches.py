"""Batches as training gets them, made by a base's own encoders."""

import torch

from vidlit.diffusion.batch import LatentSample, collate
from vidlit.models.encoders import BaseEncoders

CAPTIONS = ("A red disc.", '  Two striped &amp; blue\n rings  "A 1" before a grey wall. ')


def random_frames(size, count=2):
    """Videos (count, F, H, W, 3) uint8 of noise; ``size`` is frames, height, width."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, *size, 3), generator=generator, dtype=torch.uint8)


def whole_mask(conditioning):
    """The mask (B, L) of prompts, as pipelines ask for one where nothing is padded, too."""
    everything = torch.ones(conditioning.prompt_embeds.shape[:2], dtype=torch.bool)
    return everything if conditioning.prompt_attention_mask is None else conditioning.prompt_attention_mask


def batch_of(family, size, captions=CAPTIONS):
    """A clip of noise for each caption, with all that a latent store would hold of it."""
    encoders = BaseEncoders(family)
    videos, prompts = (
        encoders.encode_video(random_frames(size, len(captions))),
        encoders.encode_captions(list(captions)),
    )
    assert set(videos) == {"latents", *family.clip_extras}
    samples = []
    for row, prompt in enumerate(prompts):
        assert set(prompt) == {"prompt_embeds", *family.prompt_extras}
        extras = {name: prompt[name] for name in family.prompt_extras}
        extras |= {name: videos[name][row] for name in family.clip_extras}
        samples.append(LatentSample(videos["latents"][row], prompt["prompt_embeds"], row, row, extras))
    return collate(samples, family.prompt_length)
