"""Stand-ins for encoding tests: clips, a codec that only pools, readers that need no video."""

import functools
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from vidlit.errors import UserError
from vidlit.latents.encoding import Encoding
from vidlit.latents.recipe import Recipes
from vidlit.latents.store import LatentStore
from vidlit.models.encoders import ReadTokens
from vidlit.video.buckets import Bucket
from vidlit.video.sources import Clip, SourceVideo

BUCKETS = (Bucket(5, 16, 16), Bucket(1, 16, 32))
LETTERS = 16
IDENTITY = {"vae": "pooling-1", "text": "letters-1"}


def make_clips(count, buckets=BUCKETS, captions=3, path="/nowhere"):
    return [
        Clip(
            clip_id=f"{row:05d}.mp4@0.000",
            source=SourceVideo(
                Path(path) / f"{row:05d}.mp4", f"{row:05d}.mp4", f"caption {row % captions}", f"{row:05d}.mp4"
            ),
            start=0.0,
            fps=8.0,
            bucket=buckets[row % len(buckets)],
            content=f"{row:064x}",
        )
        for row in range(count)
    ]


class PoolingEncoders:
    """Latents are 8x8 means of the pixels; a caption's embedding is its letters."""

    def __init__(self, identity=IDENTITY, seconds=0.0):
        self.identity = dict(identity)
        self.seconds = seconds

    def to(self, device):
        return self

    def encode_video(self, frames, sound):
        time.sleep(self.seconds)
        video = frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        return {"latents": F.avg_pool3d(video, (1, 8, 8)), "first_frame": video[:, :, 0].mean((2, 3))}

    def encode_captions(self, captions):
        return [
            {
                "prompt_embeds": torch.tensor([[float(ord(letter))] * 4 for letter in caption]),
                "pooled_projections": torch.full((4,), float(len(caption))),
            }
            for caption in captions
        ]

    def read_tokens(self, captions):
        """A letter is a token, and 16 are read: tests of cutting give longer captions."""
        return [ReadTokens(max(0, len(caption) - LETTERS), caption[:LETTERS]) for caption in captions]


class ColourReader:
    """Frames whose grey level is the number in the file name; names listed in ``bad`` fail."""

    def __init__(self, bad=()):
        self.bad = bad

    def read_clip(self, request):
        if request.path.name in self.bad:
            raise UserError(f"{request.path.name}: no frames")
        return np.full((request.num_frames, request.height, request.width, 3), int(request.path.stem) % 256, np.uint8)


class LoggingEncoders(PoolingEncoders):
    """Appends a line to a file for each caption and clip it encodes: the clip's grey level."""

    def __init__(self, log, seconds=0.0):
        super().__init__(seconds=seconds)
        self.log = log

    def write(self, lines):
        descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, "".join(f"{line}\n" for line in lines).encode())
        os.close(descriptor)

    def encode_video(self, frames, sound):
        encoded = super().encode_video(frames, sound)
        self.write(round(float(clip.float().mean())) for clip in frames)
        return encoded

    def encode_captions(self, captions):
        self.write(captions)
        return super().encode_captions(captions)


def encode_logged(root, log, clips, seconds=0.0, shard_bytes=2**26):
    """What a process of its own runs."""
    from vidlit.latents.encode.missing import encode  # Lightning with it, which workers of Ray need not load

    multiprocessing.set_start_method("fork", force=True)  # for the loader's workers
    options = {"accelerator": "cpu", "devices": 1}
    encode(
        clips,
        LatentStore(root),
        Recipes(IDENTITY, Encoding(num_workers=1, shard_bytes=shard_bytes)),
        functools.partial(LoggingEncoders, log, seconds),
        open_reader=ColourReader,
        trainer_options=options,
    )
