"""Bytes that tensors hold while something runs: how many at most, in which stage of it, and what they are."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_iter

if TYPE_CHECKING:  # torch has no types for its modes: to the checker this is a context manager
    from contextlib import ExitStack as _Mode
else:
    _Mode = TorchDispatchMode

aten = torch.ops.aten
FROZEN, TRAINED, GRADIENTS, MOMENTS, AVERAGES, ACTIVATIONS, TEMPORARIES = KINDS = (
    "frozen weights",
    "trained weights",
    "gradients",
    "moments",
    "averages",
    "activations",
    "temporaries",
)
"""What bytes are held for. Activations are what a forward pass made: kept for the backward pass, or at work in it."""
_ROUNDED_TO = 512
"""Bytes that CUDA's allocator rounds a tensor up to."""


@dataclass(frozen=True)
class Held:
    """Bytes that were held at one moment, by kind.

    Args:
        kinds: of :data:`KINDS`; those that are missing held nothing.
    """

    kinds: Mapping[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Of all kinds."""
        return sum(self.kinds.values())

    def of(self, *kinds: str) -> float:
        """Of some kinds."""
        return sum(self.kinds.get(kind, 0.0) for kind in kinds)

    def plus(self, other: Held, times: float = 1.0) -> Held:
        """With so many times what another holds; a linear combination serves to go from a few blocks to many."""
        names = {*self.kinds, *other.kinds}
        return Held({kind: self.kinds.get(kind, 0.0) + times * other.kinds.get(kind, 0.0) for kind in names})

    def scaled(self, factors: Mapping[str, float]) -> Held:
        """With kinds multiplied, each by its factor."""
        return Held({kind: size * factors.get(kind, 1.0) for kind, size in self.kinds.items()})

    def without(self, *kinds: str) -> Held:
        """Without some kinds."""
        return Held({kind: size for kind, size in self.kinds.items() if kind not in kinds})


class TensorMemory(_Mode):
    """Counts the storages of all tensors that are made while it is open, real ones or fake ones.

    A storage counts from the operation that makes it to the moment when nothing refers to it any more, autograd
    included: as a GPU's allocator counts it. Each stage keeps the largest sum that it saw. Fake tensors have no values:
    where one is asked for, as to tell whether a gradient is finite, a harmless answer is given.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peaks: dict[str, Held] = {}
        """The most that was held in each stage."""
        self.kind, self.stage = FROZEN, "build"
        """Of what is made from now on; the stage that it counts to."""
        self.answer = False
        """What a question of yes or no to a fake tensor gets."""
        self.number = 1
        """What a question for a whole number gets."""
        self._sizes: dict[int, tuple[int, str]] = {}
        self._nowhere: weakref.WeakSet[Any] = weakref.WeakSet()
        self._now: dict[str, int] = defaultdict(int)
        self._total = self._most = 0

    def enter(self, stage: str, kind: str | None = None) -> None:
        """Begin a stage, or go on with one; what is held already counts to it, too."""
        self.stage, self.kind = stage, kind or self.kind
        self._most = int(self.peaks[stage].total) if stage in self.peaks else -1
        self._look()

    def name(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Say what tensors are that are held already."""
        for tensor in tensors:
            key = self._key(tensor)
            if key is not None and key in self._sizes:
                size, before = self._sizes[key]
                self._now[before] -= size
                self._now[kind] += size
                self._sizes[key] = size, kind

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """Count some tensors no more: they are elsewhere."""
        for tensor in tensors:
            key = self._key(tensor)
            if key is not None and key in self._sizes:
                size, kind = self._sizes[key]
                self._now[kind] -= size
                self._total -= size
                self._sizes[key] = 0, kind

    @property
    def now(self) -> Held:
        """What is held now."""
        return Held({kind: float(size) for kind, size in self._now.items() if size})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = self._answered(func, *args) if args and isinstance(args[0], FakeTensor) else None
        if made is None:
            made = func(*args, **(kwargs or {}))
        if func is aten.bitwise_not.default and made.dtype == torch.bool:
            self._nowhere.add(made.untyped_storage())
        for tensor in tree_iter(made):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return made

    def _answered(self, func: Any, given: FakeTensor, *others: Any) -> Any:
        """What an operation gives that depends on values; ``None`` for one that does not.

        A mask is true everywhere, as that of prompts without padding is, and its opposite nowhere.
        """
        if func is aten._local_scalar_dense.default and given.constant is None:
            return self.answer if given.dtype == torch.bool else 1.0 if given.is_floating_point() else self.number
        if func is aten.nonzero.default:
            return torch.zeros(given.numel(), given.dim(), dtype=torch.int64)
        if func is aten.index.Tensor and len(others[0]) == 1 and others[0][0].dtype == torch.bool:
            mask = others[0][0]
            chosen = given.flatten(0, mask.dim() - 1)
            return (chosen[:0] if mask.untyped_storage() in self._nowhere else chosen).clone()
        return None

    def _count(self, tensor: Tensor) -> None:
        key = self._key(tensor)
        if key is None or key in self._sizes:
            return
        storage = tensor.untyped_storage()
        size = -(-storage.nbytes() // _ROUNDED_TO) * _ROUNDED_TO
        self._sizes[key] = size, self.kind
        self._now[self.kind] += size
        self._total += size
        weakref.finalize(storage, self._forget, key)
        self._look()

    def _forget(self, key: int) -> None:
        size, kind = self._sizes.pop(key)
        self._now[kind] -= size
        self._total -= size

    def _look(self) -> None:
        if self._total > self._most:
            self._most = self._total
            self.peaks[self.stage] = self.now

    @staticmethod
    def _key(tensor: Tensor) -> int | None:
        if is_traceable_wrapper_subclass(tensor):  # quantised ones wrap others, which are counted themselves
            return None
        return int(tensor.untyped_storage()._cdata)


def highest(peaks: Iterable[Held]) -> Held:
    """The one that holds most; nothing where there are none."""
    return max(peaks, key=lambda held: held.total, default=Held())
