"""In how many bits weights are kept: frozen ones, and trained ones."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from vidlit.errors import UserError
from vidlit.training.blocks.repeated import repeated_blocks

FrozenDtype = Literal["float32", "bfloat16", "float8", "int8"]
"""How weights that are not trained are kept: the last two in 8 bits, dequantised in each layer (torchao)."""
BYTES = {"float32": 4, "bfloat16": 2, "float8": 1, "int8": 1}
"""Of one weight."""


def store_frozen(transformer: nn.Module, dtype: FrozenDtype) -> None:
    """Keep frozen weights in fewer bits, in place, and trained ones in float32.

    Args:
        transformer: some of whose parameters do not require gradients.
        dtype: of the frozen ones. In ``int8`` and ``float8`` the weights of linear layers are quantised, one scale an
            output channel; everything else that is frozen is kept in bfloat16.

    Raises:
        UserError: torchao, which quantises, is not installed.
    """
    floats = {"float32": torch.float32}.get(dtype, torch.bfloat16)
    for name, parameter in transformer.named_parameters():
        kept = parameter.requires_grad or _needs_float32(transformer, name)
        parameter.data = parameter.data.to(torch.float32 if kept else floats)
    if dtype in ("int8", "float8"):
        _quantise(transformer, dtype)


def lower_weights(transformer: nn.Module) -> None:
    """Keep all weights in bfloat16, in place, trained ones too, but those that the architecture needs in float32."""
    for name, parameter in transformer.named_parameters():
        if parameter.dtype == torch.float32 and not _needs_float32(transformer, name):
            parameter.data = parameter.data.to(torch.bfloat16)


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
    in_blocks = {id(module) for block in repeated_blocks(transformer) for module in block.modules()}

    def frozen_linear(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and id(module) in in_blocks and not module.weight.requires_grad

    quantize_(transformer, Int8WeightOnlyConfig() if dtype == "int8" else Float8WeightOnlyConfig(), frozen_linear)
