"""T-LoRA (https://arxiv.org/abs/2507.05964): an adapter with fewer ranks the more noise there is.

At high noise, where the layout of a video is decided, an adapter memorises first; there it gets half of its ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vidlit.diffusion.noising import level_of_sample
from vidlit.diffusion.streams import by_stream

if TYPE_CHECKING:
    from vidlit.diffusion.batch import Conditioning

Velocity = Tensor | dict[str, Tensor]
"""Of the picture, or of each stream."""
_ATTRIBUTE = "rank_by_noise"


class RankByNoise:
    """A mask on the ranks of an adapter, set before each call of its transformer.

    Args:
        rank: of the adapter, all of it without noise.
        min_rank: what is left of it where all is noise; half of it in the paper.
    """

    def __init__(self, rank: int, min_rank: int) -> None:
        self.rank, self.min_rank = rank, min_rank
        self.mask: Tensor | None = None
        """(B, rank) of the samples of the latest call; ``None`` for all ranks."""

    def watch(self, transformer: nn.Module, layers: list[nn.Module]) -> None:
        """Mask what layers give, those of an adapter's transformer that go down to its rank."""
        vars(transformer)[_ATTRIBUTE] = self
        for layer in layers:
            layer.register_forward_hook(self.masked)

    def ranks(self, sigmas: Tensor) -> Tensor:
        """How many ranks (B,) there are at noise levels (B,): equation 5 with an exponent of 1."""
        return ((1 - sigmas.float()) * (self.rank - self.min_rank)).floor() + self.min_rank

    def set(self, mask: Tensor | None, gradient: Any = None) -> None:
        """Use a mask from here on."""
        self.mask = mask

    def masked(self, layer: nn.Module, inputs: Any, given: Tensor) -> Tensor:
        """A layer's output (B, ..., rank) without the ranks that a sample has not."""
        if self.mask is None:
            return given
        return given * self.mask.view(len(self.mask), *(1,) * (given.dim() - 2), self.rank).to(given.dtype)


def ask(
    velocity: Callable[[nn.Module, Tensor, Tensor, Conditioning], Velocity],
    transformer: nn.Module,
    noisy: Tensor,
    sigmas: Tensor,
    conditioning: Conditioning,
) -> Velocity:
    """Call a family's ``velocity``, of a transformer whose adapter may go by noise; arguments as there."""
    by_noise: RankByNoise | None = getattr(transformer, _ATTRIBUTE, None)
    if by_noise is None:
        return velocity(transformer, noisy, sigmas, conditioning)
    ranks = by_noise.ranks(level_of_sample(sigmas))
    mask = torch.arange(by_noise.rank, device=ranks.device) < ranks[:, None]
    by_noise.set(mask)
    made = velocity(transformer, noisy, sigmas, conditioning)
    awaited: list[Any] = [each for each in by_stream(made).values() if each.requires_grad]
    for each in awaited:  # what is recomputed for the gradient is as it was, whatever was asked since
        each.register_hook(partial(by_noise.set, mask))
    return made
