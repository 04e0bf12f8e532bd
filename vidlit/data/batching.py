"""How many clips make a batch, and how they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vidlit.data.batch_sampler import token_budget_batch_sizes
from vidlit.errors import UserError


@dataclass(frozen=True)
class BatchBudget:
    """Equal work for every batch: small clips come in larger batches.

    Args:
        tokens: largest ``batch size * tokens_of_a_clip ** power``.
        power: exponent; above 1 where attention, which is quadratic, is a large part of the time.
    """

    tokens: float
    power: float = 1.0


@dataclass(frozen=True)
class Batching:
    """Batches of one resolution each.

    Args:
        size: samples per rank and micro-batch; or a budget of work, from which each bucket gets its own size.
        val_size: largest number of samples per validation batch; ``None`` for ``size``.
        small_bucket: treatment of a bucket with fewer clips than a batch: ``repeat`` clips, make ``short`` batches,
            or stop with an ``error``.
        num_workers: number of processes that load latents; 0 loads in the training process.

    Raises:
        UserError: an option is out of range.
    """

    size: int | BatchBudget = 1
    val_size: int | None = None
    small_bucket: Literal["repeat", "short", "error"] = "repeat"
    num_workers: int = 0

    def __post_init__(self) -> None:
        for name, size in {"size": self.size, "val_size": self.val_size}.items():
            if isinstance(size, int) and size < 1:
                raise UserError(f"data.batches.{name} is {size}: it must be at least 1.")
        if self.num_workers < 0:
            raise UserError(f"data.batches.num_workers is {self.num_workers}: it must be 0 or more.")

    def sizes(self, tokens: Sequence[int]) -> list[int]:
        """Samples of a training batch of each bucket on one rank, by its clips' latent tokens."""
        if isinstance(self.size, BatchBudget):
            return token_budget_batch_sizes(tokens, self.size.tokens, self.size.power)
        return [self.size] * len(tokens)

    def val_sizes(self, tokens: Sequence[int]) -> list[int]:
        """The same of a validation batch."""
        return self.sizes(tokens) if self.val_size is None else [self.val_size] * len(tokens)
