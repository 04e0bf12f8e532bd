"""An endless stream of passes over some clips, each a fresh permutation, where no batch holds a clip twice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Passes:
    """The order in which the clips of one bucket are taken, in batches that may straddle two passes.

    What is left at the end of a pass begins the next batch. The rest of that batch, the head of the next pass, is drawn
    from clips outside this tail, or, where these are too few, from all of them and then others. So with ``n`` clips and
    batches of ``G <= n`` no batch holds a clip twice; with ``G > n`` each clip is in it ``floor(G / n)`` or
    ``ceil(G / n)`` times.

    A pass depends on (seed, bucket, pass) and on the tail of the pass before. If ``n >= 2 * G``, tails are as shuffled,
    so one pass back is enough to know; if ``n < 2 * G``, passes are short and are followed back to the last one that
    begins with a batch, at most ``G`` of them. The latest pass is kept, so going on in order never goes back.

    Permutations are the sort order of raw 64-bit words of PCG64 seeded through ``SeedSequence``: NumPy keeps both fixed
    over its versions, and does not promise that of ``Generator.permutation``.

    Args:
        clips: the bucket's clips, (n,) distinct integers.
        batch_size: ``G``.
        seed: of the run.
        bucket: the bucket's number.
    """

    def __init__(self, clips: NDArray[np.unsignedinteger], batch_size: int, seed: int, bucket: int) -> None:
        self.clips = clips
        self.batch_size = batch_size
        self._seed = seed
        self._bucket = bucket
        self._pass = -1
        self._order: NDArray[np.unsignedinteger] | None = None

    def take(self, first: int, count: int) -> NDArray[np.unsignedinteger]:
        """Clips ``first`` to ``first + count`` of the stream, (count,)."""
        index, offset = divmod(first, len(self.clips))
        order = self.order(index)[offset : offset + count]
        while len(order) < count:
            index += 1
            order = np.concatenate([order, self.order(index)[: count - len(order)]])
        clips: NDArray[np.unsignedinteger] = self.clips[order]
        return clips

    def order(self, index: int) -> NDArray[np.unsignedinteger]:
        """The permutation of pass ``index``, (n,) numbers below ``n``."""
        if index == self._pass and self._order is not None:
            return self._order
        if self._head(index) >= len(self.clips):  # inside one batch: no pass depends on it, so keep the one we have
            return self._permutation(index, None)
        chain, source = [index], self._source(index)
        short = len(self.clips) < 2 * self.batch_size
        while source is not None and source != self._pass and (short or len(chain) < 2):
            chain.append(source)
            source = self._source(source)
        order = self._order if source == self._pass else None
        for number in reversed(chain):
            order = self._permutation(number, order)
        assert order is not None
        self._pass, self._order = index, order
        return order

    def _head(self, index: int) -> int:
        """How many clips of the stream, from the beginning of a pass, complete the batch begun before it."""
        return -index * len(self.clips) % self.batch_size

    def _source(self, index: int) -> int | None:
        """The pass in which the batch begins that pass ``index`` completes, or ``None`` if there is no such batch."""
        n, head = len(self.clips), self._head(index)
        source, offset = divmod(index * n + head - self.batch_size, n)
        return source if 0 < head < n and offset else None

    def _permutation(self, index: int, source_order: NDArray[np.unsignedinteger] | None) -> NDArray[np.unsignedinteger]:
        """Pass ``index`` as shuffled, its head kept apart from its source's tail if the source's order is given."""
        n, size = len(self.clips), self.batch_size
        words = np.random.PCG64(np.random.SeedSequence(self._seed, spawn_key=(self._bucket, index)))
        order = _shuffle(n, words)
        if source_order is None:
            return order
        tail = source_order[(index * n + self._head(index) - size) % n :]
        head = min(self._head(index), n - len(tail))
        wrong = np.flatnonzero(np.isin(order[:head], tail))
        if len(wrong):
            # Swap with random ones from further back, so that those moved do not gather behind the head. Long passes
            # have enough of them before their own tail: n - G - (length of it) or more.
            end = n - (index + 1) * n % size if n >= 2 * size else n
            right = head + np.flatnonzero(np.isin(order[head:end], tail, invert=True))
            right = right[_shuffle(len(right), words)[: len(wrong)]]
            order[wrong], order[right] = order[right], order[wrong]
        return order


def _shuffle(n: int, words: np.random.PCG64) -> NDArray[np.unsignedinteger]:
    """A random permutation of ``range(n)``: the order of random words, whose low bits carry the index."""
    bits = np.uint64((n - 1).bit_length())
    keys = np.asarray(words.random_raw(n), np.uint64)
    keys >>= bits
    keys <<= bits
    keys |= np.arange(n, dtype=np.uint64)
    keys.sort()  # all distinct, so every sorting algorithm gives the same
    keys &= (np.uint64(1) << bits) - np.uint64(1)
    return keys.astype(np.min_scalar_type(n))
