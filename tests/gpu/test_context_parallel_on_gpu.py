"""Context parallel's hooks on one GPU: one process is a group of one, under CUDA's autocast and the compiler.

What a single GPU can show of it: float32 queries beside bfloat16 values, and hooks inside compiled blocks.
"""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from vidlit.models.families.wan_tokens import split_tokens

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("compiled", [False, True])
def test_a_group_of_one_gives_what_no_group_gives(compiled, tmp_path):
    from diffusers import WanTransformer3DModel

    dist.init_process_group("nccl", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        with torch.device("cuda"):
            made = WanTransformer3DModel(
                num_attention_heads=4, attention_head_dim=128, ffn_dim=1024, num_layers=3, text_dim=64
            )
            given = {
                "hidden_states": torch.randn(1, 16, 5, 32, 32),
                "timestep": torch.tensor([500.0]),
                "encoder_hidden_states": torch.randn(1, 512, 64),
            }

        def gradients():
            made.zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                made(**given, return_dict=False)[0].float().square().mean().backward()
            return {name: each.grad.clone() for name, each in made.named_parameters()}

        alone = gradients()
        split_tokens(made, init_device_mesh("cuda", (1,)))
        if compiled:
            for block in made.blocks:
                block.forward = torch.compile(block.forward)
        for name, each in gradients().items():
            assert (each - alone[name]).norm() <= (0.05 if compiled else 1e-2) * alone[name].norm() + 1e-6, name
    finally:
        dist.destroy_process_group()
