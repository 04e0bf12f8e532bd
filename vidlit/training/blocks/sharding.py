"""Weights spread over ranks, block by block, and gathered again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from vidlit.errors import UserError
from vidlit.training.blocks.kept_dtypes import QUANTISED, FrozenDtype
from vidlit.training.blocks.repeated import repeated_blocks

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def shard(transformer: nn.Module, mesh: DeviceMesh, base_dtype: FrozenDtype, *, low_precision: bool) -> None:
    """Spread weights, gradients and moments over ranks, block by block (FSDP2), in place.

    Args:
        transformer: whole on every rank.
        mesh: of ``ModelParallelStrategy``, whose data-parallel ranks share the weights.
        base_dtype: of the frozen weights.
        low_precision: gather and compute in bfloat16; gradients are still reduced in float32.

    Raises:
        UserError: what is asked for cannot be sharded.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if mesh["tensor_parallel"].size() > 1:
        raise UserError(
            "set data_parallel_size of the ModelParallelStrategy to the number of all devices and tensor_parallel_size "
            f"to 1: weights are sharded over data-parallel ranks only, here over {mesh['data_parallel'].size()}."
        )
    if base_dtype in QUANTISED:
        raise UserError(
            f"model.memory.base_dtype {base_dtype} cannot be sharded: choose bfloat16, or a strategy without shards."
        )
    # Inputs stay as they are: autocast lowers them where a layer multiplies, and leaves alone what must not be rounded.
    # Timesteps in bfloat16 are four apart, and rotary angles lose their digits: 9 % of the velocity in Wan, not 0.5 %.
    policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    options: dict[str, Any] = {"mesh": mesh["data_parallel"], **({"mp_policy": policy} if low_precision else {})}
    for block in repeated_blocks(transformer):
        fully_shard(block, **options)
    fully_shard(transformer, **options)


def whole(trained: nn.Module, to_fill: Callable[[], nn.Module], is_first: bool) -> nn.Module:
    """A transformer with whole trained weights, gathered one after the other on the CPU; every rank calls it.

    Args:
        trained: sharded, or with frozen weights in fewer bits.
        to_fill: makes, on the first rank, the one that takes the trained weights.
        is_first: is this the first rank? The others get ``trained`` back.
    """
    gathered = {}
    for name, parameter in trained.named_parameters():
        if parameter.requires_grad:
            value = parameter.detach()
            gathered[name] = (value.full_tensor() if isinstance(value, DTensor) else value).cpu()
    if not is_first:
        return trained
    transformer = to_fill()
    transformer.load_state_dict(gathered, strict=False, assign=True)
    return transformer


def copy_whole(value: Tensor, parameter: nn.Parameter) -> None:
    """Copy a whole weight into one that may be sharded, whose place and dtype it takes."""
    there, filled = parameter.data, value.detach().to(parameter.device)
    if isinstance(there, DTensor):
        filled = distribute_tensor(filled, there.device_mesh, there.placements)
    there.copy_(filled)
