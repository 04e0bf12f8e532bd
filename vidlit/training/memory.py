"""Options that make a transformer fit into memory and run fast, and what applies them to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from vidlit.errors import UserError
from vidlit.training.blocks.block_swap import BUFFERS, swap_last_blocks
from vidlit.training.blocks.cast_once import cast_once
from vidlit.training.blocks.compiling import compile_blocks
from vidlit.training.blocks.float8_matmuls import multiply_in_float8
from vidlit.training.blocks.kept_dtypes import QUANTISED, FrozenDtype, lower_weights, store_frozen
from vidlit.training.blocks.narrow_stream import narrow_stream
from vidlit.training.blocks.recompute import recompute_blocks


@dataclass(frozen=True)
class Memory:
    """Options that make a model fit into memory, and run fast in what is left.

    Args:
        base_dtype: dtype of the weights that are not trained: ``bfloat16`` halves them, ``int8`` and ``float8``
            (torchao) quarter them, ``nf4`` takes an eighth. Trained weights stay in float32 where
            ``trainer.precision`` is not ``bf16-true``.
        gradient_checkpointing: blocks whose activations are recomputed in the backward pass, all but what attention
            gave: less memory, up to a quarter more time. ``true`` is all of them, ``false`` none, a share such as 0.5
            every other one, spread evenly, and a number k every k-th; ``auto`` is none on a CPU, on a GPU as few as
            the forecast says must be, and all where there is no forecast.
        compile: whether to compile each repeated block of the transformer (``torch.compile``): ``auto`` does on a CUDA
            GPU, where about a third of the time is saved. Blocks that cannot be compiled run as they are.
        cast_once: whether to keep a bfloat16 copy of each trained weight of the blocks under ``bf16-mixed``, made once
            a step, instead of casting it at every use: faster with accumulation and recomputation, for 2 bytes a
            weight; ``auto`` does on a GPU. It is for weights themselves, not for a LoRA, nor for shards.
        float8_matmuls: whether the blocks' large linear layers multiply in float8 in training (torchao), on GPUs from
            compute capability 8.9 on: products of twice the speed for some precision; checks and samples stay in
            bfloat16. It is for compiled blocks and weights kept in 16 or 32 bits, and has not been timed yet.
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
    gradient_checkpointing: bool | int | float | Literal["auto"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    offload_experts: bool = False
    cast_once: bool | Literal["auto"] = "auto"
    float8_matmuls: bool = False
    swap_blocks: int | Literal["auto"] = 0
    tiled_decoding: bool | Literal["auto"] = False

    def __post_init__(self) -> None:
        share = self.gradient_checkpointing
        if share != "auto" and (share < 0 or (isinstance(share, float) and share > 1)):
            raise UserError(
                f"model.memory.gradient_checkpointing is {share}: it is auto, true, false, a share of the blocks "
                "between 0 and 1, or a whole number k for every k-th block."
            )
        if self.float8_matmuls and self.base_dtype in QUANTISED:
            raise UserError(
                f"model.memory.float8_matmuls and base_dtype {self.base_dtype} exclude each other: what is kept in 8 "
                "or 4 bits is unpacked to bfloat16 to be multiplied. Choose base_dtype bfloat16, or set "
                "float8_matmuls to false."
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

    def settled(self, device: torch.device) -> Memory:
        """The same without ``auto``, for a device of which nothing is known but its kind."""
        share = device.type != "cpu" if self.gradient_checkpointing == "auto" else self.gradient_checkpointing
        compiles = device.type == "cuda" if self.compile == "auto" else self.compile
        casts = device.type != "cpu" if self.cast_once == "auto" else self.cast_once
        swapped = 0 if self.swap_blocks == "auto" else self.swap_blocks
        return replace(
            self,
            gradient_checkpointing=share,
            compile=compiles,
            cast_once=casts,
            swap_blocks=swapped,
            tiled_decoding=self.tiled_decoding is True,
        )

    def apply(
        self, transformer: nn.Module, device: torch.device, *, trains_in_bfloat16: bool, trains_whole: bool = False
    ) -> None:
        """Keep a transformer's weights and run its blocks as these options say, in place.

        Args:
            transformer: of which it is settled what is trained; not yet sharded.
            device: that it will run on.
            trains_in_bfloat16: keep trained weights in bfloat16, too.
            trains_whole: weights themselves are trained, and are not going to be sharded.
        """
        settled = self.settled(device)
        # In this order: each takes what stands before it for the block. What multiplies in float8 is not cast, what is
        # recomputed starts from an input that is narrow, and a compiler must see what is recomputed.
        store_frozen(transformer, settled.base_dtype)
        if trains_in_bfloat16:
            lower_weights(transformer)
        if settled.float8_matmuls:
            multiply_in_float8(transformer, device)
        if trains_whole and settled.cast_once:
            cast_once(transformer)
        narrow_stream(transformer)
        assert settled.gradient_checkpointing != "auto"
        assert settled.swap_blocks != "auto"
        swap_last_blocks(transformer, settled.swap_blocks)
        recompute_blocks(transformer, settled.gradient_checkpointing)
        if settled.compile:
            compile_blocks(transformer)
