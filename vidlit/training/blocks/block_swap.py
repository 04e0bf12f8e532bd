"""Frozen weights of some blocks in main memory, each on the device for as long as its block runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass, transform_subclass

from vidlit.errors import UserError
from vidlit.training.blocks.kept_dtypes import plain_tensors
from vidlit.training.blocks.repeated import repeated_blocks

BUFFERS = 2
"""On the device: one block is computed with while the next one's weights come. So many blocks save nothing."""
_ALIGNED = 512
"""Bytes; what CUDA's allocator aligns tensors to, and more than any kernel asks for."""
_CHUNK = 2**25
"""Bytes of main memory that are pinned at once: torch rounds what it pins up to a power of two, which would take up to
twice as much of a whole block; and long enough for the full speed of a copy."""


def swap_last_blocks(transformer: nn.Module, number: int) -> None:
    """Keep the frozen weights of the last blocks in main memory, in place; trained ones stay on the device.

    Args:
        transformer: of which it is settled what is trained and in how many bits weights are kept.
        number: of blocks.

    Raises:
        UserError: there are not as many.
    """
    blocks = repeated_blocks(transformer)
    if number > len(blocks):
        raise UserError(f"model.memory.swap_blocks is {number}, but the transformer has {len(blocks)} blocks.")
    if number:
        BlockSwap(blocks[len(blocks) - number :])


class BlockSwap:
    """Blocks that take turns in two buffers on the device.

    The frozen weights of a block are views of its buffer, for good: what changes is whose the buffer's bytes are. So
    whatever holds on to a weight, autograd or a compiled graph, keeps nothing alive and reads what is right whenever it
    is the block's turn. Turns begin when a block is called, and when the gradient of what it gave arrives: autograd
    runs the nodes of a block, which were made after those of the block before it, before any of those, and recomputes
    what is inside the block while it does. On a GPU copies run on a stream of their own, one block ahead, in the order
    of the pass; on a CPU they are plain copies.

    Args:
        blocks: in the order of the forward pass, none of them inside another.
    """

    def __init__(self, blocks: list[nn.Module]) -> None:
        self.blocks = [_Weights(block) for block in blocks]
        self.device = torch.device("cpu")
        self._stream: torch.cuda.Stream | None = None
        self._allocate()
        for number, block in enumerate(blocks):
            own_class: Any = type(block)
            block.__class__ = _swapped(own_class)
            vars(block).update(swap=self, swap_number=number)

    def _allocate(self) -> None:
        """Buffers on the device, which every block's weights become views of; nothing is in them yet."""
        size = max(block.num_bytes for block in self.blocks)
        self._buffers = [torch.empty(size, dtype=torch.uint8, device=self.device) for _ in range(BUFFERS)]
        self._holds: list[int | None] = [None] * BUFFERS
        self._ready: list[torch.cuda.Event] = []
        if self.device.type == "cuda":
            cuda: Any = torch.cuda
            self._stream = cuda.Stream(self.device)
            self._ready = [cuda.Event() for _ in range(BUFFERS)]
            for buffer in self._buffers:
                buffer.record_stream(self._stream)  # once freed, it is reused only when copies into it are over
            for block in self.blocks:
                block.pin()
        else:
            self._stream = None
        for number, block in enumerate(self.blocks):
            block.become_views(self._buffers[number % BUFFERS])

    def move(self, device: torch.device) -> None:
        """Have the buffers on another device."""
        if device != self.device:
            self.device = device
            self._allocate()

    def on_call(self, number: int) -> None:
        """Have a block's weights on the device for what is computed next, and the next block's on their way."""
        self._take_turn(number)
        if number + 1 < len(self.blocks):
            self._copy(number + 1)

    def after_call(self, number: int, given: Any, taken: tuple[Any, ...]) -> None:
        """Await the gradients of what a block gave; without any, the first block is next."""
        tensors: list[Any] = list(given) if isinstance(given, tuple) else [given]
        made = [each for each in tensors if isinstance(each, Tensor) and each.requires_grad]
        awaited: list[Any] = [each for each in made if not any(each is other for other in taken)]
        for each in awaited:
            each.register_hook(partial(self._on_gradient, number))
        if not awaited and number + 1 == len(self.blocks):
            self._copy(0)

    def _on_gradient(self, number: int, gradient: Tensor) -> None:
        self._take_turn(number)
        if number > 0:
            self._copy(number - 1)

    def _take_turn(self, number: int) -> None:
        self._copy(number)
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_event(self._ready[number % BUFFERS])

    @torch.no_grad()
    def _copy(self, number: int) -> None:
        """Fill a block's buffer, if it is not in it, once all that has been asked of the device so far is done."""
        place = number % BUFFERS
        if self._holds[place] == number:
            return
        self._holds[place] = number
        chunks = self.blocks[number].chunks
        parts = _chunks(self._buffers[place][: self.blocks[number].num_bytes])
        if self._stream is None:
            for part, chunk in zip(parts, chunks, strict=True):
                part.copy_(chunk)
            return
        self._stream.wait_stream(torch.cuda.current_stream(self.device))  # the buffer may be in use until then
        with torch.cuda.stream(self._stream):
            for part, chunk in zip(parts, chunks, strict=True):
                part.copy_(chunk, non_blocking=True)
            self._ready[place].record(self._stream)


class _Weights:
    """The frozen weights of a block: their bytes in main memory, and the parameters that are views of a buffer."""

    def __init__(self, block: nn.Module) -> None:
        self.parameters = {
            (module, name): parameter
            for module in block.modules()
            for name, parameter in module.named_parameters(recurse=False)
            if not parameter.requires_grad
        }
        tensors = [each for parameter in self.parameters.values() for each in plain_tensors(parameter.detach())]
        self.num_bytes = sum(map(_room, tensors))
        held = torch.zeros(self.num_bytes, dtype=torch.uint8, device="cpu")  # Lightning makes models on the GPU
        for tensor, view in zip(tensors, _views(held, tensors), strict=True):
            view.copy_(tensor)
        self.chunks = [chunk.clone() for chunk in _chunks(held)]

    def pin(self) -> None:
        """Lock the bytes into main memory, which copies beside the computation need."""
        for number, chunk in enumerate(self.chunks):
            self.chunks[number] = chunk.pin_memory()

    def become_views(self, buffer: Tensor) -> None:
        """Make the parameters views of a buffer (num_bytes or more,) uint8."""
        tensors = [each for parameter in self.parameters.values() for each in plain_tensors(parameter.detach())]
        views = _views(buffer, tensors)
        for (module, name), parameter in list(self.parameters.items()):
            viewed = nn.Parameter(_rebuilt(parameter.detach(), views), requires_grad=False)
            self.parameters[module, name] = module._parameters[name] = viewed

    def set_aside(self) -> None:
        """Take the parameters out of their modules until they :meth:`become_views` or are put back."""
        for module, name in self.parameters:
            module._parameters[name] = None

    def put_back(self) -> None:
        """Undo :meth:`set_aside`."""
        for (module, name), parameter in self.parameters.items():
            module._parameters[name] = parameter


class _Swapped(nn.Module):
    """What a swapped block does beside what its own class does."""

    swap: BlockSwap
    swap_number: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run when it is its turn."""
        self.swap.on_call(self.swap_number)
        given = super().__call__(*args, **kwargs)
        self.swap.after_call(self.swap_number, given, (*args, *kwargs.values()))
        return given

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move what is trained to another device as ever, and what is frozen by moving the buffers."""
        weights = self.swap.blocks[self.swap_number]
        parent: Any = super()
        weights.set_aside()
        try:
            parent._apply(fn, recurse)
        finally:
            weights.put_back()
        self.swap.move(fn(torch.empty(0, device=self.swap.device)).device)
        return self


@cache
def _swapped(block_class: Any) -> Any:
    """A class of blocks that are swapped: hooks of a module would be compiled with it, and this is to stay outside.

    One for all blocks of a kind: compiled code is used again for the same class only.
    """
    return type(block_class.__name__, (_Swapped, block_class), {})


def _rebuilt(tensor: Tensor, parts: Iterator[Tensor]) -> Tensor:
    """A tensor like another, made of others of the same shapes; the inverse of :func:`plain_tensors`."""
    if not is_traceable_wrapper_subclass(tensor):
        return next(parts)
    rebuilt: Tensor = transform_subclass(tensor, lambda _, inner: _rebuilt(inner, parts))
    return rebuilt


def _room(tensor: Tensor) -> int:
    return -(-tensor.nbytes // _ALIGNED) * _ALIGNED


def _chunks(held: Any) -> tuple[Tensor, ...]:
    chunks: tuple[Tensor, ...] = held.split(_CHUNK)
    return chunks


def _views(buffer: Tensor, tensors: list[Tensor]) -> Iterator[Tensor]:
    """Places in a buffer of bytes for tensors, one behind the other."""
    start = 0
    for tensor in tensors:
        # Through `data`, which counts its own versions: for autograd, a buffer that is filled again changes no weight.
        yield buffer.data[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        start += _room(tensor)
