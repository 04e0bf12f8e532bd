"""Memory that batches are read into: one block a batch, used again when nothing holds that batch any more.

Fresh memory costs as much as the read itself: the system hands it out page by page, and zeroes each.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

Layout = tuple[tuple[int, ...], torch.dtype]
"""Shape and dtype of a tensor."""

_ALIGNMENT = 64  # bytes; what torch's own allocator gives
_WAITING_BYTES = 2**28  # memory that is kept for the next batches


_waiting: list[NDArray[np.uint8]] = []  # of this process
_taking = threading.Lock()
_sent: list[Tensor] = []  # by this worker: byte 0 is set while the training process holds the batch


class _Lent(np.ndarray[Any, np.dtype[np.uint8]]):
    """The part of some memory that holds a batch; hands the memory back at its end."""

    whole: NDArray[np.uint8] | None = None
    hand_back: Callable[[NDArray[np.uint8]], None]
    holder: int

    def __del__(self) -> None:
        # A worker forked while a batch is in use holds a copy of this, too, whose end says nothing.
        if self.whole is not None and self.holder == os.getpid():
            self.hand_back(self.whole)


def batch_memory(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An empty tensor for a batch: in a worker in shared memory, as torch's own collate has it.

    Nothing is copied on the way out then, and the worker's heap does not grow: large aligned blocks fragment it.
    """
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    return _new_shared(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)


class Block:
    """Tensors side by side in one piece of memory; in a loader's worker one that the training process sees, too.

    A tensor keeps the array that it was made from, and so do its views and slices. When the last of them is gone, so
    is the array, and the memory is free for another batch.

    Args:
        layouts: of the tensors.
    """

    def __init__(self, layouts: Sequence[Layout]) -> None:
        size = _ALIGNMENT
        for shape, dtype in layouts:
            size += _aligned(math.prod(shape) * dtype.itemsize)
        if get_worker_info() is None:
            self._shared, memory = None, _take(size)
            self._lend(layouts, memory, _waiting.append)
        else:
            self._shared = _take_shared(size)
            self._lend(layouts, self._shared.numpy(), None)  # the training process hands it back

    def _lend(
        self,
        layouts: Sequence[Layout],
        memory: NDArray[np.uint8],
        hand_back: Callable[[NDArray[np.uint8]], None] | None,
    ) -> None:
        self.layouts = layouts
        self._memory = memory[_ALIGNMENT:].view(_Lent)
        if hand_back is not None:
            self._memory.whole, self._memory.hand_back, self._memory.holder = memory, hand_back, os.getpid()

    def parts(self) -> list[memoryview]:
        """The memory of each tensor, to fill."""
        view, start, parts = self._memory.data, 0, []
        for shape, dtype in self.layouts:
            size = math.prod(shape) * dtype.itemsize
            parts.append(view[start : start + size])
            start += _aligned(size)
        return parts

    def tensors(self) -> list[Tensor]:
        """The tensors."""
        start, tensors = 0, []
        for shape, dtype in self.layouts:
            count = math.prod(shape)
            tensors.append(torch.frombuffer(self._memory, dtype=dtype, count=count, offset=start).view(shape))
            start += _aligned(count * dtype.itemsize)
        return tensors

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive, (self.layouts, self._shared)


def _receive(layouts: Sequence[Layout], shared: Tensor) -> Block:
    """A worker's block in the training process. The worker may fill it again once it is told so."""
    block = Block.__new__(Block)
    block._shared = shared
    block._lend(layouts, shared.numpy(), _hand_back)
    return block


def _hand_back(memory: NDArray[np.uint8]) -> None:
    memory[0] = 0


def _take(size: int) -> NDArray[np.uint8]:
    """Memory of at least ``size`` bytes, with anything in it."""
    with _taking:
        for place, memory in enumerate(_waiting):
            if size <= memory.nbytes <= 2 * size:
                return _waiting.pop(place)
        while sum(memory.nbytes for memory in _waiting) > _WAITING_BYTES:
            _waiting.pop(0)
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    return memory[-memory.ctypes.data % _ALIGNMENT :]


def _take_shared(size: int) -> Tensor:
    """The same in shared memory, marked as lent."""
    waiting = [shared for shared in _sent if not shared[0]]
    for shared in waiting:
        if size <= shared.nbytes <= 2 * size:
            break
    else:
        if sum(shared.nbytes for shared in waiting) > _WAITING_BYTES:
            _sent[:] = [shared for shared in _sent if shared[0]]
        shared = _new_shared(size)
        _sent.append(shared)
    shared[0] = 1
    return shared


def _new_shared(size: int) -> Tensor:
    if hasattr(os, "memfd_create"):  # torch would take it from /dev/shm, of which a container may have a few MB
        descriptor = os.memfd_create("batch")
        os.ftruncate(descriptor, size)
        storage = torch.UntypedStorage._new_shared_fd_cpu(descriptor, size)  # type: ignore[attr-defined]  # no types
        os.close(descriptor)  # the storage has its own
    else:
        storage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]  # torch has no types for it
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
