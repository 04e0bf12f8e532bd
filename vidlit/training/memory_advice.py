"""What a run that went out of memory held, and which option would have saved how much of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy

from vidlit.lightning_internals import datamodule_of
from vidlit.training.blocks.kept_dtypes import held_bytes
from vidlit.training.blocks.repeated import repeated_blocks
from vidlit.training.peak_memory import peak_memory

if TYPE_CHECKING:
    from vidlit.data.datamodule import LatentDataModule
    from vidlit.training.module import VideoDiffusionModule

_KEPT_BY_A_BLOCK = 10
"""A transformer block keeps for its backward pass about so many tensors of its input's size."""


@dataclass(frozen=True)
class MemoryUse:
    """Bytes on one device, and the options they follow from.

    Args:
        frozen: number of weights that are not trained.
        frozen_bytes: their size.
        trained_bytes: of the trained weights.
        gradients: of the trained weights.
        moments: of the optimizer.
        averages: of the trained weights.
        activations: everything else at the peak.
        num_blocks: of the transformer.
        batch_size: samples of the batch.
        precision: ``trainer.precision``.
        adapter: is a LoRA trained?
        checkpointing: are activations recomputed?
        world_size: ranks that each hold everything.
    """

    frozen: int
    frozen_bytes: float
    trained_bytes: float
    gradients: float
    moments: float
    averages: float
    activations: float
    num_blocks: int
    batch_size: int
    precision: str
    adapter: bool
    checkpointing: bool
    world_size: int

    def savings(self) -> dict[str, float]:
        """Options that are not in use yet, with the bytes that each would save about, most first."""
        trained = self.gradients + self.moments + self.averages
        found = {
            "--model.memory.base_dtype bfloat16": self.frozen_bytes - 2 * self.frozen,
            "--model.memory.base_dtype int8": self.frozen_bytes - self.frozen,
            "--model.optimizer torchao.optim.AdamW8bit": 0.75 * self.moments,
        }
        if not self.adapter:
            found["--model.adapter.rank 16 (a LoRA instead of all weights)"] = trained
        if not self.checkpointing:
            kept = 1 / self.num_blocks + 1 / _KEPT_BY_A_BLOCK
            found["--model.memory.gradient_checkpointing true"] = self.activations * max(0.0, 1 - kept)
        if self.precision == "32-true":
            found["--trainer.precision bf16-mixed"] = self.activations / 2
        if self.batch_size > 1:
            half = self.batch_size // 2
            found[f"--data.batches.size {half} with --trainer.accumulate_grad_batches doubled"] = self.activations * (
                1 - half / self.batch_size
            )
        if self.world_size > 1:
            held = self.frozen_bytes + self.trained_bytes + trained
            found["--trainer.strategy lightning.pytorch.strategies.ModelParallelStrategy"] = held * (
                1 - 1 / self.world_size
            )
        smallest = 0.01 * (self.frozen_bytes + self.trained_bytes + trained + self.activations)
        worth = {option: saved for option, saved in found.items() if saved > smallest}
        return dict(sorted(worth.items(), key=lambda pair: -pair[1]))

    def __str__(self) -> str:
        parts = {
            "weights": self.frozen_bytes + self.trained_bytes,
            "gradients": self.gradients,
            "the optimizer's state": self.moments,
            "averaged weights": self.averages,
            "activations": self.activations,
        }
        held = ", ".join(f"{what} {_size(size)}" for what, size in parts.items() if size > 0)
        options = [f"{option} (about {_size(saved)})" for option, saved in self.savings().items()]
        return f"It held {held}. What would save most: " + ("; ".join(options) or "a smaller bucket or model") + "."


def memory_use(trainer: Trainer, pl_module: VideoDiffusionModule) -> MemoryUse:
    """What training held when it failed: weights and moments as they are, activations as the rest of the peak."""
    transformers = list(pl_module.transformers.values())
    parameters = [_local(parameter) for each in transformers for parameter in each.parameters()]
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    gradients = _bytes(trained)
    states = [value for each in trainer.optimizers for state in each.state.values() for value in state.values()]
    moments = _bytes([_local(value) for value in states if isinstance(value, torch.Tensor)]) or 2.0 * gradients
    averages = _bytes([_local(b) for b in pl_module.averaged.buffers()]) if pl_module.averaged is not None else 0.0
    weights = _bytes(frozen) + _bytes(trained)
    data: LatentDataModule = datamodule_of(trainer)
    return MemoryUse(
        frozen=sum(parameter.numel() for parameter in frozen),
        frozen_bytes=_bytes(frozen),
        trained_bytes=_bytes(trained),
        gradients=gradients,
        moments=moments,
        averages=averages,
        activations=max(0.0, peak_memory(trainer.strategy.root_device) - weights - gradients - moments - averages),
        num_blocks=max(1, len(repeated_blocks(transformers[0]))),
        batch_size=max(data.batch_sizes),
        precision=str(trainer.precision),
        adapter=pl_module.adapter is not None,
        checkpointing=bool(pl_module.memory.settled(trainer.strategy.root_device).gradient_checkpointing),
        world_size=trainer.world_size if isinstance(trainer.strategy, DDPStrategy) else 1,
    )


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _bytes(tensors: list[Any]) -> float:
    return float(held_bytes(tensors))


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
