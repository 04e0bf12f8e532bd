"""Context parallel: ranks that share one sample, each with a part of its tokens, for clips too long for one device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from vidlit.data.batch_sampler import DataRanks
from vidlit.errors import UserError
from vidlit.lightning_internals import is_attached
from vidlit.models.base_folder import read_config

if TYPE_CHECKING:
    from vidlit.models.family import Family
    from vidlit.training.module import VideoDiffusionModule
    from vidlit.video.buckets import Bucket


def split_context(module: VideoDiffusionModule, transformer: nn.Module) -> None:
    """Spread a transformer's tokens over the ranks that work on the same samples, in place, where there are several.

    Args:
        module: whose ranks these are.
        transformer: with its adapter, not yet sharded. Its loss is the same on all of them afterwards, and the mean of
            their gradients over all ranks is the gradient, whether weights are sharded or not.
    """
    peers = DataRanks.of(module.trainer).peers if is_attached(module) else 1
    if peers > 1:
        assert module.family.split_tokens is not None  # see check_context
        device = module.trainer.strategy.root_device
        module.family.split_tokens(transformer, _mesh(dist.group.WORLD, device.type, peers))


@lru_cache(maxsize=1)  # a mesh opens connections, which take memory of a GPU: experts share it
def _mesh(world: Any, device_type: str, degree: int) -> DeviceMesh:
    shape = dist.get_world_size(world) // degree, degree
    return init_device_mesh(device_type, shape, mesh_dim_names=("data", "context"))["context"]


def check_family(family: Family, degree: int) -> None:
    """Refuse a degree of context parallel that a base does not go with.

    Raises:
        UserError: its family does not, or its heads cannot be divided.
    """
    if degree < 1:
        raise UserError(f"model.context_parallel is {degree}: it is a number of ranks, 1 for none that share a sample.")
    if degree == 1:
        return
    if family.split_tokens is None:
        raise UserError(
            f"model.context_parallel {degree} is not for {family.base} ({type(family).__name__}): gradients would not "
            "be exact. Of the families here Wan's are. Leave it at 1; ModelParallelStrategy spreads the weights."
        )
    heads = int(read_config(family.base, "transformer")["num_attention_heads"])
    if heads % degree:
        raise UserError(
            f"model.context_parallel is {degree}, and the {heads} heads of {family.base} cannot be divided by it: "
            f"choose one of {', '.join(str(n) for n in range(1, heads + 1) if heads % n == 0)}."
        )


def check_context(family: Family, degree: int, num_ranks: int, buckets: Sequence[Bucket]) -> None:
    """Refuse a degree of context parallel that a fit's processes or clips do not go with.

    Args:
        family: of the base.
        degree: ranks that work on the same samples.
        num_ranks: processes there are.
        buckets: sizes of the clips.

    Raises:
        UserError: they cannot be divided by it.
    """
    if num_ranks % degree:
        raise UserError(
            f"model.context_parallel is {degree}, and the number of processes, {num_ranks}, cannot be divided by it: "
            "set --trainer.devices (and trainer.num_nodes), or --model.context_parallel 1."
        )
    check_sizes(family, degree, buckets)


def check_sizes(family: Family, degree: int, sizes: Sequence[Bucket]) -> None:
    """Refuse sizes of clips whose tokens cannot be divided by a degree of context parallel.

    Raises:
        UserError: there are some; names them and their tokens.
    """
    tokens = {size: size.tokens(family.compression[0], family.pixel_multiple) for size in sizes}
    odd = [f"{size} ({count} tokens)" for size, count in tokens.items() if count % degree]
    if odd:
        raise UserError(
            f"model.context_parallel is {degree}, and the tokens of these sizes cannot be divided by it: "
            f"{', '.join(odd)}. Choose others, in data.buckets where they are those of clips, or another degree."
        )
