"""Matrix products of large linear layers in float8, while a model is trained."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from vidlit.errors import UserError
from vidlit.training.blocks.repeated import repeated_blocks

_SMALLEST = 1024
"""Of the three sizes of a product each has to be above it. Torchao measured 0.80 of bfloat16's speed on an H100 for
1024 x 2048 x 1024, and its own filter leaves out layers with as few outputs. A LoRA's matrices are below it."""
_MULTIPLE = 16
"""Of which inputs and outputs of a layer have to be multiples, for ``torch._scaled_mm``."""
_CAPABILITY = 8, 9
"""Of the first NVIDIA GPUs that multiply in float8: Ada's (RTX 40 series, L40); Hopper's is 9.0."""


def multiply_in_float8(transformer: nn.Module, device: torch.device) -> None:
    """Have the blocks' large linear layers multiply in float8 while they are trained, in place, by torchao.

    Inputs, weights (e4m3) and the gradients of what a layer gave (e5m2) are rounded to 8 bits at each use, scaled by
    the largest magnitude of each tensor (https://arxiv.org/abs/2209.05433); products are bfloat16 under autocast.
    Weights stay as they are, and so do their names. Checks and samples, which are not training, multiply as ever: as
    whoever gets the weights will.

    Args:
        transformer: of which it is settled what is trained and in how many bits weights are kept; neither cast once nor
            swapped, recomputed or compiled yet.
        device: that it will run on.

    Raises:
        UserError: the device cannot, or torchao is not installed.
    """
    _check(device)
    try:
        from torchao.float8 import CastConfig, Float8GemmConfig, Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise UserError(
            "model.memory.float8_matmuls needs torchao: pip install 'vidlit[quantize]', or set it to false."
        ) from error
    compiler: Any = torch.compiler
    compiler.allow_in_graph(_FrozenProduct)  # as torchao's own is: compiled from what it does to tensors
    in_blocks = {id(module) for block in repeated_blocks(transformer) for module in block.modules()}
    large = {
        name: module
        for name, module in transformer.named_modules()
        if id(module) in in_blocks and type(module) is nn.Linear and min(module.weight.shape) > _SMALLEST
    }
    chosen = {name for name, module in large.items() if all(size % _MULTIPLE == 0 for size in module.weight.shape)}
    # A gradient of a weight is a sum over tokens, whose number is a multiple of anything by chance only: padded.
    config = Float8LinearConfig(pad_inner_dim=True)
    convert_to_float8_training(transformer, module_filter_fn=lambda _, name: name in chosen, config=config)
    # What torchao's configuration says of a gradient, as that of an input: all that a frozen weight is multiplied with.
    exact, wide = Float8GemmConfig(use_fast_accum=False), CastConfig(target_dtype=torch.float8_e5m2)
    gradients = Float8LinearConfig(cast_config_input=wide, gemm_config_output=exact, pad_inner_dim=True)
    for name in chosen:
        layer: Any = transformer.get_submodule(name)
        float8_linear: Any = type(layer)
        products = float8_linear(_MULTIPLE, _MULTIPLE, config=gradients, device="meta").linear_mm_config
        vars(layer)["for_gradient"] = products, gradients
        layer.__class__ = _float8_in_training(float8_linear)
    if len(chosen) < len(large) or not chosen:
        odd = f"; {len(large) - len(chosen)} of these has a size that is no multiple of {_MULTIPLE}" if large else ""
        rank_zero_warn(
            f"model.memory.float8_matmuls: {len(chosen)} linear layers multiply in float8. It is for those whose "
            f"inputs and outputs are above {_SMALLEST}{odd}."
        )


def _check(device: torch.device) -> None:
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else _CAPABILITY
    if device.type not in ("cpu", "cuda") or capability < _CAPABILITY:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"device {device.type}"
        raise UserError(
            f"model.memory.float8_matmuls: this {name} does not multiply in float8. NVIDIA GPUs do from compute "
            "capability 8.9 on (RTX 40 series, L40, H100). Set it to false."
        )


@cache
def _float8_in_training(float8_linear: Any) -> Any:
    """A class of torchao's layers that multiply in float8 in training, where enough rows share a weight."""

    def forward(layer: Any, input: Tensor) -> Any:
        rows, device = input.numel() // input.shape[-1], input.device.type
        if not layer.training or rows <= _SMALLEST:
            return nn.functional.linear(input, layer.weight, layer.bias)
        if torch.is_autocast_enabled(device):  # torchao's own looks at CUDA's alone
            input = input.to(torch.get_autocast_dtype(device))
        if layer.weight.requires_grad:
            return float8_linear.forward(layer, input)
        product: Any = _FrozenProduct
        made = product.apply(input, layer.weight, layer.linear_mm_config, layer.config, *layer.for_gradient)
        return made if layer.bias is None else made + layer.bias.to(made.dtype)

    return type("Float8InTraining", (float8_linear,), {"forward": forward, "__module__": __name__})


class _FrozenProduct(torch.autograd.Function):
    """A product with a frozen weight: torchao's own keeps the input and computes the gradient of the weight, too."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, products: Any, config: Any, *for_gradient: Any) -> Any:
        """Inputs (..., K) times a weight (N, K)."""
        ctx.save_for_backward(weight)
        ctx.for_gradient = for_gradient
        return _product(input, weight.t(), products, config)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Of the inputs (..., K)."""
        (weight,) = ctx.saved_tensors
        return _product(gradient, weight, *ctx.for_gradient), None, None, None, None, None


def _product(left: Tensor, right: Tensor, products: Any, config: Any) -> Any:
    from torchao.float8.float8_linear import matmul_with_hp_or_float8_args

    return matmul_with_hp_or_float8_args.apply(left, right, products, config)
