"""What makes a transformer fit: frozen weights in fewer bits, activations recomputed, weights sharded over ranks.

Everything here acts on the transformer's repeated blocks, where nearly all of its weights, activations and time are.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from vidlit.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

FrozenDtype = Literal["float32", "bfloat16", "float8", "int8"]
"""How weights that are not trained are kept: the last two in 8 bits, dequantised in each layer (torchao)."""
BYTES = {"float32": 4, "bfloat16": 2, "float8": 1, "int8": 1}
"""Of one weight."""


@dataclass(frozen=True)
class Memory:
    """Options that make a model fit into memory.

    Args:
        base_dtype: dtype of the weights that are not trained: ``bfloat16`` halves them, ``int8`` and ``float8``
            (torchao) quarter them. Trained weights stay in float32 where ``trainer.precision`` is not ``bf16-true``.
        gradient_checkpointing: whether to recompute activations in the backward pass: less memory, about a third more
            time. A number k does it in every k-th block only.
        compile: whether to compile each repeated block of the transformer (``torch.compile``).
        offload_experts: whether only the expert that is asked is on the device while the other waits on the CPU, for a
            base with two (Wan 2.2 A14B): half the memory of the weights. Each then trains for ten steps in a row.

    Raises:
        UserError: an option is out of range.
    """

    base_dtype: FrozenDtype = "float32"
    gradient_checkpointing: bool | int = False
    compile: bool = False
    offload_experts: bool = False

    def __post_init__(self) -> None:
        if self.gradient_checkpointing < 0:
            raise UserError(
                f"model.memory.gradient_checkpointing is {self.gradient_checkpointing}: it is true, false, or a number "
                "of blocks, 1 or more."
            )

    @property
    def lowers_base(self) -> bool:
        """Are frozen weights kept in fewer bits than trained ones?"""
        return self.base_dtype != "float32"

    def apply(self, transformer: nn.Module, *, trains_in_bfloat16: bool) -> None:
        """Keep a transformer's weights and run its blocks as these options say, in place.

        Args:
            transformer: of which it is settled what is trained; not yet sharded.
            trains_in_bfloat16: keep trained weights in bfloat16, too.
        """
        store_frozen(transformer, self.base_dtype)
        if trains_in_bfloat16:
            lower_weights(transformer)
        if self.gradient_checkpointing:
            checkpoint_blocks(transformer, int(self.gradient_checkpointing))
        if self.compile:
            for block in repeated_blocks(transformer):
                block.compile()


def repeated_blocks(transformer: nn.Module) -> list[nn.Module]:
    """The transformer's blocks in order: members of its own module lists."""
    return [block for child in transformer.children() if isinstance(child, nn.ModuleList) for block in child]


def checkpoint_blocks(transformer: nn.Module, every: int) -> None:
    """Recompute the activations of every ``every``-th block in the backward pass, through diffusers' own switch.

    Args:
        transformer: a diffusers model.
        every: 1 recomputes all blocks, 2 every other one ...
    """
    chosen = {id(block) for number, block in enumerate(repeated_blocks(transformer)) if number % every == 0}

    def run(block: Callable[..., Any], *inputs: Any) -> Any:
        return checkpoint(block, *inputs, use_reentrant=False) if id(block) in chosen else block(*inputs)

    transformer.enable_gradient_checkpointing(run)  # type: ignore[operator]  # diffusers' method


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
    if base_dtype in ("int8", "float8"):
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


def copy_whole(value: nn.Parameter, parameter: nn.Parameter) -> None:
    """Copy a whole weight into one that may be sharded, whose place and dtype it takes."""
    there, filled = parameter.data, value.detach().to(parameter.device)
    if isinstance(there, DTensor):
        filled = distribute_tensor(filled, there.device_mesh, there.placements)
    there.copy_(filled)


def peak_memory(device: torch.device) -> float:
    """Most bytes so far: allocated on a GPU, or resident in this process; those of now where no system keeps a peak."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file() and (peak := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())) is not None:
        return 1024.0 * int(peak[1])  # ru_maxrss begins at what the process had that started this one
    try:
        import resource
    except ImportError:  # Windows keeps the peak elsewhere
        import psutil

        memory = psutil.Process().memory_info()
        return float(getattr(memory, "peak_wset", memory.rss))
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(kilobytes) if sys.platform == "darwin" else 1024.0 * kilobytes
