"""Products in float8 on a GPU: losses and gradients stay near bfloat16's, compiled or not."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from vidlit.training.memory import Memory

pytestmark = pytest.mark.gpu

NUM_BLOCKS, TOKENS = 2, (5, 30, 52)
"""Their number, with those of a patch in one, is no multiple of 16: 1,950."""


def step(lora, **options):
    """Loss and gradients of a Wan of the real width, and how many products were in float8."""
    from diffusers import WanTransformer3DModel
    from peft import LoraConfig

    torch.manual_seed(0)
    width = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960}
    with torch.device("cuda"):
        made = WanTransformer3DModel(**width, num_layers=NUM_BLOCKS)
    if lora:
        made.requires_grad_(False)
        made.add_adapter(LoraConfig(r=16, target_modules=["to_q", "to_v"], init_lora_weights=False))
    memory = Memory("bfloat16" if lora else "float32", gradient_checkpointing=True, **options)
    memory.apply(made.train(), torch.device("cuda"), trains_in_bfloat16=False, trains_whole=not lora)
    torch.manual_seed(1)
    clip, prompt = torch.randn(1, 16, *TOKENS, device="cuda"), torch.randn(1, 512, 4096, device="cuda")
    wanted = torch.randn_like(clip)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            given = made(clip, torch.tensor([500.0], device="cuda"), prompt, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(given.float(), wanted)
        loss.backward()
    gradients = torch.cat([each.grad.flatten() for each in made.parameters() if each.grad is not None])
    products = sum(event.count for event in seen.key_averages() if event.key == "aten::_scaled_mm")
    return loss.item(), gradients, products


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_losses_and_gradients_are_near_those_in_bfloat16(lora, compiled):
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU does not multiply in float8")
    loss, gradients, none = step(lora, compile=False)
    found, found_gradients, products = step(lora, compile=compiled, float8_matmuls=True)
    assert found == pytest.approx(loss, rel=0.01)
    assert (found_gradients - gradients).norm() < 0.15 * gradients.norm()
    assert none == 0
    assert products > 0
