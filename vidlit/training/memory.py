"""Options that make a transformer fit into memory, and what applies them to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from vidlit.errors import UserError
from vidlit.training.blocks.block_swap import BUFFERS, swap_last_blocks
from vidlit.training.blocks.kept_dtypes import FrozenDtype, lower_weights, store_frozen
from vidlit.training.blocks.recompute import checkpoint_blocks
from vidlit.training.blocks.repeated import repeated_blocks


@dataclass(frozen=True)
class Memory:
    """Options that make a model fit into memory.

    Args:
        base_dtype: dtype of the weights that are not trained: ``bfloat16`` halves them, ``int8`` and ``float8``
            (torchao) quarter them, ``nf4`` takes an eighth. Trained weights stay in float32 where
            ``trainer.precision`` is not ``bf16-true``.
        gradient_checkpointing: whether to recompute activations in the backward pass: less memory, about a third more
            time. A number k does it in every k-th block only.
        compile: whether to compile each repeated block of the transformer (``torch.compile``).
        offload_experts: whether only the expert that is asked is on the device while the other waits on the CPU, for a
            base with two (Wan 2.2 A14B): half the memory of the weights. Each then trains for ten steps in a row.
        swap_blocks: number of blocks whose weights, as far as they are not trained, wait in main memory until the block
            runs: the last ones, 3 or more, for two are always on the device. ``auto`` for as many as do not fit, where
            a forecast says so; 0 for none.
        tiled_decoding: whether samples and audits are decoded in tiles, which takes less memory and shows a little
            where tiles meet; ``auto`` where a forecast says that they do not fit whole.

    Raises:
        UserError: an option is out of range.
    """

    base_dtype: FrozenDtype = "float32"
    gradient_checkpointing: bool | int = False
    compile: bool = False
    offload_experts: bool = False
    swap_blocks: int | Literal["auto"] = 0
    tiled_decoding: bool | Literal["auto"] = False

    def __post_init__(self) -> None:
        if self.gradient_checkpointing < 0:
            raise UserError(
                f"model.memory.gradient_checkpointing is {self.gradient_checkpointing}: it is true, false, or a number "
                "of blocks, 1 or more."
            )
        if self.swap_blocks != "auto" and (self.swap_blocks < 0 or 0 < self.swap_blocks <= BUFFERS):
            raise UserError(
                f"model.memory.swap_blocks is {self.swap_blocks}: it is auto, 0 for none, or a number above {BUFFERS}, "
                f"for the weights of {BUFFERS} blocks are on the device at any time."
            )

    @property
    def lowers_base(self) -> bool:
        """Are frozen weights kept in fewer bits than trained ones?"""
        return self.base_dtype != "float32"

    @property
    def changes_base(self) -> bool:
        """Are frozen weights of the transformer not to be read as they are?"""
        return self.lowers_base or self.swaps

    @property
    def swaps(self) -> bool:
        """Do frozen weights of some blocks wait in main memory?"""
        return self.swap_blocks not in (0, "auto")

    def apply(self, transformer: nn.Module, *, trains_in_bfloat16: bool) -> None:
        """Keep a transformer's weights and run its blocks as these options say, in place.

        Args:
            transformer: of which it is settled what is trained; not yet sharded.
            trains_in_bfloat16: keep trained weights in bfloat16, too.
        """
        store_frozen(transformer, self.base_dtype)
        if trains_in_bfloat16:
            lower_weights(transformer)
        if isinstance(self.swap_blocks, int) and self.swap_blocks:
            swap_last_blocks(transformer, self.swap_blocks)
        if self.gradient_checkpointing:
            checkpoint_blocks(transformer, int(self.gradient_checkpointing))
        if self.compile:
            for block in repeated_blocks(transformer):
                block.compile()
