"""Which of torch's kernels computes attention."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from vidlit.errors import UserError

Kernel = Literal["auto", "cudnn", "flash", "flash3", "efficient", "math"]
"""Torch's own by their names, ``flash3`` from the package flash-attn-3, and ``auto``: the quickest that is known."""
_BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
"""From the quickest to the slowest, as measured on an H100 forward and backward in bfloat16, in TFLOP/s: at head size
128 573, 322 and 139; at 64 370, 245 and 102 (benchmarks/attention_kernels.py). ``math`` holds the whole matrix."""
_HOPPER = (9, 0)
"""Compute capability of the card that was measured, and that flash-attn-3 is written for."""
_CUDNN_IS_QUICKEST = (64, 128)
"""Head sizes at which it was, on that card; elsewhere torch's own order stands."""


def prefer_kernel(kernel: Kernel, config: Mapping[str, Any], device: torch.device) -> ExitStack:
    """Have torch try an attention kernel first, in this process, until what is returned is closed.

    Others are tried where it does not do: cuDNN and flash attention take no float32, flash attention no mask. The
    backward pass goes by the forward pass's choice. On other devices than CUDA GPUs nothing is changed.

    Args:
        kernel: to try first.
        config: of the transformer, which says how many channels a head has.
        device: that the transformer runs on.

    Raises:
        UserError: the card, or this torch, has no such kernel.
    """
    held = ExitStack()
    if device.type != "cuda":
        return held
    capability = torch.cuda.get_device_capability(device)
    if kernel == "auto":
        chosen = quickest(head_size(config), capability)
    elif missing := _missing(kernel, capability):
        raise UserError(f"model.attention is {kernel}, but {missing}: set it to auto.")
    else:
        chosen = kernel
    if chosen == "flash3":
        torch.nn.attention.activate_flash_attention_impl("FA3")
        held.callback(torch.nn.attention.restore_flash_attention_impl)
    if chosen is not None:
        first = _BACKENDS["flash" if chosen == "flash3" else chosen]
        held.enter_context(sdpa_kernel([first, *_BACKENDS.values()], set_priority=True))
    return held


def head_size(config: Mapping[str, Any]) -> int:
    """Channels of one head, by a transformer's config; 0 where it does not say. Kandinsky's has those of each axis."""
    return int(config.get("attention_head_dim") or sum(config.get("axes_dims") or ()))


def quickest(channels: int, capability: tuple[int, int]) -> Kernel | None:
    """The kernel that is quickest as far as that is known; ``None`` for torch's own order.

    Args:
        channels: of one head.
        capability: of the card.
    """
    if not _missing("flash3", capability):
        return "flash3"
    known = channels in _CUDNN_IS_QUICKEST and capability == _HOPPER
    return "cudnn" if known and not _missing("cudnn", capability) else None


def _missing(kernel: Kernel, capability: tuple[int, int]) -> str:
    """Why there is no such kernel; empty where there is."""
    if kernel == "flash3":
        if capability != _HOPPER:
            return "flash-attn-3 is for Hopper cards (H100, H200) alone"
        if "FA3" not in getattr(torch.nn.attention, "list_flash_attention_impls", list)():
            return f"torch {torch.__version__} does not know flash-attn-3, which 2.11 does"
        if importlib.util.find_spec("flash_attn_interface") is None:
            return "the package flash-attn-3 (flash_attn_interface) is not installed"
    if kernel == "flash" and not torch.backends.cuda.is_flash_attention_available():
        return "this build of torch has no flash attention"
    cudnn: Any = torch.backends.cudnn  # without types
    if kernel == "cudnn" and (not cudnn.is_available() or torch.version.hip is not None):
        return "this build of torch has no cuDNN"
    return ""
