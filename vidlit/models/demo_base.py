"""The demo's base: an untrained LTX-Video transformer of 1.25 M parameters with all that belongs to it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from vidlit.whole_files import make_readable


def write_base(folder: Path, videos: Iterable[Tensor]) -> None:
    """Write a tiny LTX-Video base with random weights as a complete diffusers folder.

    Args:
        folder: to write to; ``model_index.json`` comes last, so a folder that has it is whole.
        videos: (1, 3, F, H, W) in [-1, 1], whose statistics normalise the codec's latents.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, LTXVideoTransformer3DModel
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel
    from transformers.utils import logging

    from vidlit.models.codec import PatchDCTCodec

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = LTXVideoTransformer3DModel(
            in_channels=64,
            out_channels=64,
            num_attention_heads=4,
            attention_head_dim=32,
            cross_attention_dim=128,
            num_layers=4,
            caption_channels=64,
        )
        text_encoder = T5EncoderModel(
            T5Config(
                vocab_size=384,
                d_model=64,
                d_kv=16,
                d_ff=128,
                num_layers=2,
                num_heads=4,
                feed_forward_proj="gated-gelu",
                dropout_rate=0.0,
            )
        )
    codec = PatchDCTCodec()
    codec.fit_statistics(list(videos))
    transformer.save_pretrained(folder / "transformer")
    text_encoder.save_pretrained(folder / "text_encoder")
    ByT5Tokenizer().save_pretrained(folder / "tokenizer")
    codec.save_pretrained(folder / "vae")
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    make_readable(folder.rglob("*.safetensors"))
    index = {
        "_class_name": "LTXPipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "ByT5Tokenizer"],
        "transformer": ["diffusers", "LTXVideoTransformer3DModel"],
        "vae": ["vidlit.models.codec", "PatchDCTCodec"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
