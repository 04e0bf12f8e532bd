"""What a LoRA's gradients lose where the base is kept in fewer bits: a small Wan with random weights, in seconds.

    python -m benchmarks.frozen_bits

Norm of the difference to the gradients with frozen weights in float32, over the norm of these; both computed in
bfloat16. Bytes are of the blocks' frozen weights, scales included.
"""

import json
import tempfile
from pathlib import Path
from typing import get_args

import torch

from benchmarks.published import write_published
from benchmarks.random_bases import BASES, Clips, random_transformer
from vidlit.forecast.sample_shapes import prompt_shape
from vidlit.models.adapters import LoRA
from vidlit.models.family import Family, open_family
from vidlit.training.blocks.kept_dtypes import FrozenDtype, held_bytes, store_frozen
from vidlit.training.blocks.repeated import repeated_blocks
from vidlit.video.buckets import Bucket

SIZES = {"num_attention_heads": 4, "attention_head_dim": 64, "ffn_dim": 1024, "num_layers": 4, "text_dim": 256}
SIZE = Bucket(9, 128, 128)


def gradients(family: Family, dtype: FrozenDtype) -> tuple[torch.Tensor, float]:
    """Of an adapter that has begun to learn, in one row; and the bytes of a frozen weight."""
    transformer = random_transformer(family, torch.float32, device=torch.device("cpu"))
    LoRA(rank=8, alpha=8).apply(transformer, family)
    generator = torch.Generator().manual_seed(0)
    trained = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    for parameter in trained:  # half of them begin at zero, and the others' gradients with them
        parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator)
    store_frozen(transformer, dtype)
    batch = Clips(family.latent_shape(*SIZE), prompt_shape(family))[0]
    noise = torch.randn(batch.latents.shape, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        noisy = family.noising().add_noise(batch.latents.float(), noise, torch.tensor([0.5]))
        velocity = family.velocity(transformer, noisy, torch.tensor([0.5]), batch.conditioning)
        torch.nn.functional.mse_loss(velocity.float(), noise - batch.latents.float()).backward()
    frozen = [p for block in repeated_blocks(transformer) for p in block.parameters() if not p.requires_grad]
    row = torch.cat([parameter.grad.flatten() for parameter in trained])
    return row, held_bytes(frozen) / sum(parameter.numel() for parameter in frozen)


def main() -> list[dict]:
    """Print the table; return its rows."""
    rows = []
    with tempfile.TemporaryDirectory() as text:
        folder = write_published(BASES["wan"].hub, Path(text))
        config = folder / "transformer" / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | SIZES))
        family = open_family(folder)
        exact, _ = gradients(family, "float32")
        print("| base_dtype | bytes a frozen weight | gradients differ by |\n|---|---|---|")
        for dtype in get_args(FrozenDtype)[1:]:
            found, size = gradients(family, dtype)
            rows.append({"base_dtype": dtype, "bytes": size, "off": float((found - exact).norm() / exact.norm())})
            print(f"| {dtype} | {size:.2f} | {100 * rows[-1]['off']:.2g} % |", flush=True)
    return rows


if __name__ == "__main__":
    main()
