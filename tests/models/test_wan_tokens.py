"""Wan's tokens spread over two real processes: velocities and gradients of one, to the last digits of float64."""

import socket

import pytest
import torch
from torch import nn

from tests.models.bases import EVERY, conditioning_of, size_of
from vidlit.diffusion.batch import Conditioning
from vidlit.errors import UserError
from vidlit.models.adapters import LoRA, choose_trained
from vidlit.models.family import open_family
from vidlit.models.registry import known_families
from vidlit.training.blocks.recompute import recompute_blocks

KINDS = ("wan", "wan-5b", "wan-i2v")


def asked(family):
    """What a family's transformer is asked, of two samples."""
    noise = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, *family.latent_shape(*size_of(family)), generator=noise).double()
    sigmas = torch.tensor([0.3, 0.7], dtype=torch.float64)
    if family.takes_clean_frames:
        sigmas = torch.stack([sigmas, 0.5 * sigmas], dim=1)
    return noisy, sigmas


def answer(family, transformer, conditioning):
    """Velocity (2, C, F, H, W), and the gradients of its mean square."""
    transformer.zero_grad()
    velocity = family.velocity(transformer, *asked(family), conditioning)
    (velocity**2).mean().backward()
    return velocity.detach(), {
        name: value.grad for name, value in transformer.named_parameters() if value.requires_grad
    }


def double(conditioning):
    extras = {name: value.double() for name, value in conditioning.extras.items()}
    return Conditioning(conditioning.prompt_embeds.double(), conditioning.prompt_attention_mask, extras)


def on_a_rank(rank, port, folders, found):
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for name, folder in folders.items():
        family = open_family(folder)
        transformer = family.load_transformer().double()
        if name == "wan-i2v":
            choose_trained(transformer, family, LoRA(rank=4), None, 0)
            for each in transformer.parameters():
                each.data = each.data.double() + 0.01 * each.requires_grad  # an untrained adapter changes nothing
            recompute_blocks(transformer, True)
        conditioning = double(conditioning_of(family))
        velocity, gradients = answer(family, transformer, conditioning)
        family.split_tokens(transformer, mesh)
        shared, parts = answer(family, transformer, conditioning)
        torch.testing.assert_close(shared, velocity)
        assert any(not torch.allclose(parts[key], gradients[key]) for key in parts)  # of this rank's tokens
        for key, each in parts.items():
            dist.all_reduce(each)  # DDP and FSDP take the mean
            torch.testing.assert_close(each / 2, gradients[key])
    autocast_is_taken(folders["wan"], mesh)
    found.put(rank)
    dist.destroy_process_group()


def autocast_is_taken(folder, mesh):
    """On a GPU autocast leaves queries and keys in float32, as they come from their norm, beside values in bfloat16."""
    family = open_family(folder)
    transformer = family.load_transformer()
    for each in transformer.modules():
        if isinstance(each, nn.RMSNorm):
            each.register_forward_hook(lambda _, inputs, output: output.float())
    family.split_tokens(transformer, mesh)
    with torch.autocast("cpu", torch.bfloat16):
        velocity = family.velocity(transformer, *(each.float() for each in asked(family)), conditioning_of(family))
    with pytest.raises(UserError, match=r"9 tokens \(1x3x3.*model.context_parallel 2"):
        family.velocity(
            transformer, torch.zeros(1, 16, 1, 6, 6), torch.ones(1), conditioning_of(family).of_rows([0], 8)
        )
    velocity.float().pow(2).mean().backward()
    assert all(each.grad.isfinite().all() for each in transformer.parameters())


def test_two_ranks_answer_as_one(tmp_path):
    for kind in KINDS:
        EVERY[kind](tmp_path / kind)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    found = context.Queue()
    folders = {kind: tmp_path / kind for kind in KINDS}
    torch.multiprocessing.spawn(on_a_rank, (port, folders, found), 2)
    assert {found.get(timeout=1), found.get(timeout=1)} == {0, 1}


def test_no_other_family_does():
    """diffusers' plans of LTX-Video and LTX-2 end in errors; other families have none."""
    assert [name for name, family in known_families().items() if family.split_tokens] == ["WanTransformer3DModel"]
