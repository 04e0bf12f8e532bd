"""Averages of the trained weights: what is validated and exported in their place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class EMA:
    """An exponential moving average of the trained weights, in float32.

    Validation, samples and export use the average; training goes on from the weights themselves.

    Args:
        decay: share of the average that an update keeps.
        warmup: whether to begin with a lower decay, ``min(decay, (1 + n) / (10 + n))`` at update n, so that the first
            weights are soon forgotten (TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``).
    """

    decay: float = 0.999
    warmup: bool = True

    def decay_at(self, num_updates: int) -> float:
        """Share kept by the update after so many."""
        return min(self.decay, (1 + num_updates) / (10 + num_updates)) if self.warmup else self.decay


class AveragedWeights(nn.Module):
    """One float32 tensor for each trained parameter, sharded as the parameter is.

    A module, so that its tensors travel with the model: to its device, into checkpoints, over ranks.

    Args:
        parameters: the trained ones, by name.
    """

    num_updates: Tensor

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        super().__init__()
        self.parameters_by_name = {_key(name): parameter for name, parameter in parameters.items()}
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        for name, parameter in self.parameters_by_name.items():
            self.register_buffer(name, parameter.detach().float().clone())

    def __setattr__(self, name: str, value: Any) -> None:
        # nn.Module would take the parameters for its own.
        object.__setattr__(self, name, value) if name == "parameters_by_name" else super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow the model to its device, but stay in float32: bfloat16 would lose what an update adds."""
        for name in self.parameters_by_name:  # the count stays where reading it costs nothing
            buffer = self.get_buffer(name)
            moved = fn(buffer)
            self._buffers[name] = moved if moved.dtype == buffer.dtype else buffer.to(moved.device)
        return self

    @torch.no_grad()
    def update(self, ema: EMA) -> None:
        """Take in the parameters as they are now."""
        keep = ema.decay_at(int(self.num_updates))
        averages = [_local(average) for average in self._averages()]
        values = [_local(parameter.detach()) for parameter in self.trained()]
        # A trained value may be in fewer bits, or wait on the CPU.
        moved = [value.to(average) for value, average in zip(values, averages, strict=True)]
        torch._foreach_lerp_(averages, moved, 1 - keep)
        self.num_updates += 1

    @torch.no_grad()
    def take_from_schedule_free(self, optimizer: Any) -> None:
        """Become the average that a schedule-free optimizer holds, and leave parameters and optimizer as they are.

        Its own way there and back, ``eval()`` and ``train()``, rounds: weights would depend on how often it was taken.
        """
        modes = [group["train_mode"] for group in optimizer.param_groups]
        trained = [parameter.clone() for parameter in self.trained()]
        optimizer.eval()
        for average, parameter, value in zip(self._averages(), self.trained(), trained, strict=True):
            average.copy_(parameter)
            parameter.copy_(value)
        for group, mode in zip(optimizer.param_groups, modes, strict=True):
            group["train_mode"] = mode

    @torch.no_grad()
    def copy_to_parameters(self, wanted: Callable[[str], bool] | None = None) -> None:
        """Put the averages in the parameters' place: of all, or of those wanted by name."""
        for name, parameter in self.parameters_by_name.items():
            if wanted is None or wanted(name.replace("/", ".")):
                parameter.copy_(self.get_buffer(name))

    @torch.no_grad()
    def begin_again(self, wanted: Callable[[str], bool]) -> None:
        """Forget what came before, of the parameters wanted by name."""
        for name, parameter in self.parameters_by_name.items():
            if wanted(name.replace("/", ".")):
                self.get_buffer(name).copy_(parameter)

    def trained(self) -> list[nn.Parameter]:
        """The parameters."""
        return list(self.parameters_by_name.values())

    def _averages(self) -> list[Tensor]:
        return [self.get_buffer(name) for name in self.parameters_by_name]


def kept_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a checkpoint's weights are looked at with: the averages in the trained ones' place where there are any."""
    prefix = "averaged."
    averages = {
        name[len(prefix) :].replace("/", "."): value for name, value in state.items() if name.startswith(prefix)
    }
    averages.pop("num_updates", None)
    return {name: averages.get(name, value) for name, value in state.items() if not name.startswith(prefix)}


def _key(name: str) -> str:
    return name.replace(".", "/")  # a buffer's name has no dots


def _local(tensor: Tensor) -> Tensor:
    """This rank's part: elementwise work needs no more."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
