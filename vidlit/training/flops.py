"""What a device could compute at most, and what a training step of a model asks of it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as fx_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from vidlit.diffusion.streams import LATENTS, by_stream

if TYPE_CHECKING:
    from vidlit.diffusion.batch import LatentBatch
    from vidlit.models.family import Family

PEAK_TERAFLOPS: dict[str, tuple[float, float]] = {
    "GB200": (2500, 1250),
    "B200": (2250, 1125),
    "H200": (989, 494),
    "GH200": (989, 494),
    "H100 PCIe": (756, 378),
    "H100 NVL": (835, 417),
    "H100": (989, 494),
    "H800": (989, 494),
    "H20": (148, 74),
    "A100": (312, 156),
    "A800": (312, 156),
    "A40": (150, 75),
    "A30": (165, 82),
    "A10G": (70, 35),
    "A10": (125, 62),
    "L40S": (362, 183),
    "L40": (181, 90),
    "L4": (121, 60),
    "RTX PRO 6000": (503, 252),
    "RTX 6000 Ada": (364, 182),
    "RTX A6000": (155, 77),
    "RTX 5090": (210, 105),
    "RTX 4090": (165, 83),
    "RTX 3090": (71, 36),
    "T4": (65, 8),
    "V100": (125, 16),
}
"""Dense matrix products with float32 accumulation, in 10^12 a second: (bfloat16 or float16, float32 as TF32 where the
device has it). From the makers' data sheets; figures "with sparsity" are halved."""
_MATMUL_SIZE = 768


def peak_flops(device: torch.device, low_precision: bool) -> float | None:
    """Most floating-point operations a second of one device; ``None`` where its name is in no table.

    A CPU's is measured, by a float32 matrix product with the threads that torch may use now.

    Args:
        device: that computes.
        low_precision: in bfloat16 or float16.
    """
    if device.type == "cpu":
        return _measure()
    if device.type != "cuda":
        return None
    known = known_card(torch.cuda.get_device_name(device))
    if known is None:
        return None
    low, full = PEAK_TERAFLOPS[known]
    return 1e12 * (low if low_precision else full)


def known_card(name: str) -> str | None:
    """What a GPU is called in :data:`PEAK_TERAFLOPS`: "H100" of "NVIDIA H100 80GB HBM3"; ``None`` if not there."""
    # Whole words: "A10" is no "A100", and the longest of several names is the exact one.
    found = [
        key for key in PEAK_TERAFLOPS if all(re.search(rf"\b{word}\b", name, re.IGNORECASE) for word in key.split())
    ]
    return max(found, key=len) if found else None


def count_flops(loss: Callable[[], Tensor]) -> int:
    """Floating-point operations of matrix products and convolutions in a loss and its backward pass.

    Args:
        loss: computes it; on the ``meta`` device nothing is computed, and attention is counted on every machine alike.
    """
    with _lenient_meta(), FlopCounterMode(display=False) as counter:
        torch.autograd.backward(loss())
    return int(counter.get_total_flops())


def flops_of_a_sample(family: Family, transformer: nn.Module, batch: LatentBatch) -> int:
    """Floating-point operations of one training step on one sample like those of a batch, without recomputation.

    Args:
        family: of the transformer.
        transformer: on the ``meta`` device.
        batch: whose shapes count.
    """
    noisy = torch.empty(1, *batch.latents.shape[1:], device="meta")
    sigmas = torch.empty(1, device="meta")
    one = batch.conditioning.of_rows([0]).to("meta")
    further = {stream.name: one.extras[stream.name] for stream in family.streams if stream.name != LATENTS}
    one = one.with_streams(further, dict.fromkeys(further, sigmas))
    expert = family.experts[0].name

    def loss() -> Tensor:
        velocities = by_stream(family.predict({expert: transformer}, noisy, sigmas, one, expert)).values()
        return torch.stack([velocity.float().square().mean() for velocity in velocities]).sum()

    return count_flops(loss)


@contextmanager
def _lenient_meta() -> Iterator[None]:
    """Let pass what models do and ``meta`` refuses: autocast, which changes no count, and looks at values."""
    autocast = torch.autocast
    torch.autocast = lambda *_, **__: nullcontext()  # type: ignore[assignment,misc]  # patched for as long as one count
    try:
        lenient = fx_config.patch(meta_nonzero_assume_all_nonzero=True)  # type: ignore[attr-defined]  # declared as it loads
        says_no: Any = _SaysNo  # torch has no types for what it derives from
        with lenient, says_no():
            yield
    finally:
        torch.autocast = autocast  # type: ignore[misc]  # put back


class _SaysNo(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types for it
    """Without values a yes or no is a no: HunyuanVideo 1.5 asks whether all of its image tokens are zero."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asks = func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta and args[0].dtype == torch.bool
        return False if asks else func(*args, **(kwargs or {}))


def _measure() -> float:
    left, right = torch.ones(2, _MATMUL_SIZE, _MATMUL_SIZE).unbind()
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - began)
    return float(2 * _MATMUL_SIZE**3 / best)
