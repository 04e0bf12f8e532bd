"""Autocast on a CPU as it is on a GPU, where it keeps more operations in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

_IN_FLOAT32 = (
    *("layer_norm", "rms_norm", "group_norm", "softmax.int", "log_softmax.int", "softplus"),
    *("rsqrt", "reciprocal", "exp", "log", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar"),
    *("sum", "sum.dim_IntList", "cumsum", "linalg_vector_norm"),
)
"""What models here use of CUDA's list (``ATen/autocast_mode.h``, ``AT_FORALL_FP32``) that the CPU's does not have."""
_KEY = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """While it is open, autocast on the CPU casts to float32 what CUDA's does, in recomputation, too."""
    untyped: Any = torch.library.Library
    library = untyped("aten", "IMPL")
    try:
        for name in _IN_FLOAT32:
            packet, _, overload = name.partition(".")
            operation = getattr(getattr(torch.ops.aten, packet), overload or "default")
            library.impl(name, partial(_in_float32, operation), "AutocastCPU")
        yield
    finally:
        library._destroy()


def _in_float32(operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with torch._C._ExcludeDispatchKeyGuard(_KEY):
        args, kwargs = tree_map(_raised, (args, kwargs))
        return operation(*args, **kwargs)


def _raised(value: Any) -> Any:
    lowered = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if lowered else value
