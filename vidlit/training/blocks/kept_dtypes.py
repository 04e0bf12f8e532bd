"""In how many bits weights are kept: frozen ones, and trained ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from vidlit.errors import UserError
from vidlit.training.blocks.repeated import repeated_blocks

FrozenDtype = Literal["float32", "bfloat16", "float8", "int8", "nf4"]
"""How weights that are not trained are kept: the last three in 8 or 4 bits, dequantised in each layer (torchao)."""
QUANTISED = ("float8", "int8", "nf4")
_NF4_BLOCKS = 64 * 256
"""Weights that share a scale, times the scales that share theirs, as in QLoRA (https://arxiv.org/abs/2305.14314)."""


def store_frozen(transformer: nn.Module, dtype: FrozenDtype) -> None:
    """Keep frozen weights in fewer bits, in place, and trained ones in float32.

    Args:
        transformer: some of whose parameters do not require gradients.
        dtype: of the frozen ones. In ``int8`` and ``float8`` the weights of the blocks' linear layers are quantised,
            one scale an output channel, in ``nf4`` one for each 64 weights; everything else that is frozen is kept in
            bfloat16, and so are layers of a size that is no multiple of 16,384 in ``nf4``.

    Raises:
        UserError: torchao, which quantises, is not installed.
    """
    floats = torch.float32 if dtype == "float32" else torch.bfloat16
    for name, parameter in transformer.named_parameters():
        kept = parameter.requires_grad or _needs_float32(transformer, name)
        parameter.data = parameter.data.to(torch.float32 if kept else floats)
    if dtype in QUANTISED:
        _quantise(transformer, dtype)


def lower_weights(transformer: nn.Module) -> None:
    """Keep all weights in bfloat16, in place, trained ones too, but those that the architecture needs in float32."""
    for name, parameter in transformer.named_parameters():
        if parameter.dtype == torch.float32 and not _needs_float32(transformer, name):
            parameter.data = parameter.data.to(torch.bfloat16)


def plain_tensors(tensor: Tensor) -> list[Tensor]:
    """The tensors that a tensor is made of: of a quantised one its codes and scales, of any other itself."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [each for name in names for each in plain_tensors(getattr(tensor, name))]


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """What tensors take: quantised ones are smaller than they say, and swapped blocks share their memory."""
    plain = [each for tensor in tensors for each in plain_tensors(tensor.detach())]
    places = {(each.untyped_storage()._cdata, each.storage_offset()): each.nbytes for each in plain}
    return sum(places.values())


def _needs_float32(transformer: nn.Module, name: str) -> bool:
    """Whether the architecture says so of a parameter, as diffusers' models do."""
    parts = getattr(transformer, "_keep_in_fp32_modules", None) or ()
    return any(part in parts for part in name.split("."))


def _quantise(transformer: nn.Module, dtype: FrozenDtype) -> None:
    try:
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise UserError(
            f"model.memory.base_dtype {dtype} needs torchao: pip install 'vidlit[quantize]', or choose bfloat16."
        ) from error
    layers = [
        module
        for block in repeated_blocks(transformer)
        for module in block.modules()
        if isinstance(module, nn.Linear) and not module.weight.requires_grad
    ]
    if dtype == "nf4":
        for layer in layers:
            if layer.weight.numel() % _NF4_BLOCKS == 0:
                layer.weight = nn.Parameter(_in_nf4(layer.weight), requires_grad=False)
        return
    chosen = set(map(id, layers))
    config = Int8WeightOnlyConfig() if dtype == "int8" else Float8WeightOnlyConfig()
    quantize_(transformer, config, lambda module, name: id(module) in chosen)


@torch.no_grad()
def _in_nf4(weight: Tensor) -> Tensor:
    """A weight in 4 bits, where it was."""
    try:
        from torchao.quantization import NF4Tensor
    except ImportError:  # before torchao 0.18
        from torchao.dtypes import NF4Tensor
    # It compares each weight with each of the 16 levels: minutes for billions of them on a CPU, seconds on a GPU.
    device = "cuda" if torch.cuda.is_available() else weight.device
    made: Tensor = NF4Tensor.from_tensor(weight.detach().to(device), 64, 256).to(weight.device)
    return made
