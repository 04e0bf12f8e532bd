"""Bases of real sizes with random weights, and clips that are noise: what `benchmarks/gpu.py` trains."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.published import write_published
from vidlit.diffusion.batch import Conditioning, LatentBatch
from vidlit.models.family import Family
from vidlit.video.buckets import Bucket

SPREAD = 0.02
"""Standard deviation of weights of linear layers."""
TINY_WAN = {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "num_layers": 2, "text_dim": 16}
TINY_SIZE = Bucket(9, 64, 64)


class Base(NamedTuple):
    """A published base: its name for people and on the hub, a clip, and what of its config is smaller on a CPU."""

    title: str
    hub: str
    size: Bucket
    tiny: Mapping[str, Any]


BASES = {
    "ltx": Base(
        "LTX-Video 2B",
        "Lightricks/LTX-Video",
        Bucket(121, 480, 704),
        {"num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32, "num_layers": 2}
        | {"caption_channels": 16},
    ),
    "wan": Base(
        "Wan 2.1 1.3B",
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        Bucket(49, 480, 832),
        TINY_WAN | {"freq_dim": 16},
    ),
    "wan5b": Base(
        "Wan 2.2 TI2V-5B",
        "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        Bucket(49, 704, 1280),
        TINY_WAN | {"freq_dim": 16},
    ),
    "ltx2": Base(
        "LTX-2 19B",
        "Lightricks/LTX-2",
        Bucket(121, 512, 768),
        {"num_attention_heads": 2, "attention_head_dim": 12, "cross_attention_dim": 24, "num_layers": 2}
        | {"audio_num_attention_heads": 2, "audio_attention_head_dim": 8, "audio_cross_attention_dim": 16}
        | {"caption_channels": 16},
    ),
}


class Clips(Dataset):
    """Latents that are noise, and prompts, one a batch; made once, read by a DataLoader as encoded clips are."""

    def __init__(self, shape: tuple[int, ...], text: tuple[int, int]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.latents = torch.randn(4, *shape, generator=generator).bfloat16()
        self.prompts = torch.randn(4, *text, generator=generator).bfloat16()
        self.count = 1

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> LatentBatch:
        rows = [index % 4]
        numbers = torch.tensor(rows)
        return LatentBatch(
            self.latents[rows].clone(), Conditioning(self.prompts[rows].clone(), None, {}), numbers, numbers
        )

    def loader(self, device: torch.device) -> DataLoader:
        """Batches, two steps ahead on a GPU machine."""
        workers = 2 if device.type == "cuda" else 0
        return DataLoader(self, batch_size=None, num_workers=workers, pin_memory=device.type == "cuda")


def write_base(folder: Path, name: str, small: bool) -> None:
    """Configs of a base without weights."""
    base = BASES[name]
    write_published(base.hub, folder)
    config = folder / "transformer" / "config.json"
    if small:
        config.write_text(json.dumps(json.loads(config.read_text()) | dict(base.tiny)))


def random_transformer(
    family: Family, dtype: torch.dtype, expert: str = "transformer", *, device: torch.device
) -> torch.nn.Module:
    """One of a family's experts, of a base that has a config only, made on a device."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)  # made in float32 first, 19B weights would not fit
    try:
        with torch.device(device), mock.patch.object(torch.nn.Linear, "reset_parameters"):
            transformer = family.empty_transformer(expert)
    finally:
        torch.set_default_dtype(torch.float32)
    # A GPU draws billions of numbers in a second, a CPU in minutes.
    draws_on = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    exact = getattr(transformer, "_keep_in_fp32_modules", None) or []  # as from_pretrained leaves them
    for layer in transformer.modules():
        for parameter in layer.parameters(recurse=False) if isinstance(layer, torch.nn.Linear) else ():
            drawn = torch.randn(parameter.shape, dtype=dtype, device=draws_on).mul_(SPREAD)
            parameter.data = drawn.to(device)
    for name, parameter in transformer.named_parameters():
        is_exact = any(part in name.split(".") for part in exact)
        parameter.data = parameter.data.to(torch.float32 if is_exact else dtype)
    return transformer
