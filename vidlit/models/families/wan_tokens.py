"""Wan's tokens spread over ranks: context parallel after Ulysses (https://arxiv.org/abs/2309.14509).

A rank has a part of the tokens, and in self-attention all of them in a part of the heads. What splits, gathers and
exchanges is diffusers'; where it does so is said here, as diffusers' own attention in context parallel computes it once
more in the backward pass, and takes no queries in float32 beside values in bfloat16, which autocast makes of Wan's on a
GPU. So attention itself stays as it is, whichever kernel computes it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vidlit.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def split_tokens(transformer: Any, mesh: DeviceMesh) -> None:
    """Spread the tokens of every call over ranks that are given the same samples, in place.

    Each rank returns the whole velocity. Its gradients are of its own tokens alone, times the number of ranks: their
    mean over ranks, which DDP and FSDP take, is the gradient. A call raises a UserError where its tokens cannot be
    divided.

    Args:
        transformer: a ``WanTransformer3DModel`` with its adapter, not yet sharded, whose heads can be divided; it is
            called by keywords.
        mesh: the ranks that are given the same samples.
    """
    from diffusers.hooks.context_parallel import EquipartitionSharder
    from diffusers.models.attention_dispatch import SeqAllToAllDim

    degree, group = mesh.size(), mesh.get_group()

    def check_and_split_times(_: nn.Module, inputs: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        latents = given["hidden_states"].shape[2:]
        patches = [size // patch for size, patch in zip(latents, transformer.config.patch_size, strict=True)]
        if math.prod(patches) % degree:
            raise UserError(
                f"{math.prod(patches)} tokens ({'x'.join(map(str, patches))}: latent frames, height and width in "
                f"patches) cannot be divided by model.context_parallel {degree}: choose another size."
            )
        times = given["timestep"]
        if times.ndim == 2:  # one for each token
            times = EquipartitionSharder.shard(times, 1, mesh)
        return inputs, given | {"timestep": times}

    def split(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """All tokens (B, L, D) -> this rank's (B, L / degree, D)."""
        return EquipartitionSharder.shard(inputs[0], 1, mesh), *inputs[1:]

    def to_heads(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """Some tokens of all heads (B, L / degree, D) -> all tokens of some heads (B, L, D / degree)."""
        return SeqAllToAllDim.apply(group, torch.unflatten(output, 2, (degree, -1)), 2, 1).flatten(2)

    def to_tokens(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        """And back."""
        return (SeqAllToAllDim.apply(group, inputs[0].unsqueeze(2), 1, 2).flatten(2),)

    def gather(_: nn.Module, inputs: Any, output: Tensor) -> Any:
        """This rank's tokens -> all tokens; a gradient comes back to its own alone."""
        whole: Any = EquipartitionSharder.unshard(output, 1, mesh)
        if whole.requires_grad:
            whole.register_hook(lambda gradient: gradient * degree)
        return whole

    transformer.register_forward_pre_hook(check_and_split_times, with_kwargs=True)
    transformer.blocks[0].register_forward_pre_hook(split)
    for block in transformer.blocks:
        attention = block.attn1
        attention.heads //= degree
        for each in (attention.norm_q, attention.norm_k, attention.to_v):  # rotary angles come after, for all tokens
            each.register_forward_hook(to_heads)
        attention.to_out[0].register_forward_pre_hook(to_tokens)
    transformer.proj_out.register_forward_hook(gather)
