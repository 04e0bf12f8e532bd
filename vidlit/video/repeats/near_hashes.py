"""Pairs of perceptual hashes that differ by few bits, found without comparing all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_BITS = 8
"""What two hashes may differ by at most, to be found for certain."""
_BANDS = ((0, 22), (22, 21), (43, 21))  # first bit and width: of 8 differing bits one band has at most 2
_MOST_ALIKE = 16  # hashes of one key that are all compared; of more each with its next ones, and with the first

_AT_ONCE = 4096  # new hashes, each with 254 bands: 8 MB of them


def near_pairs(hashes: NDArray[np.uint64]) -> Iterator[NDArray[np.int64]]:
    """Pairs of rows whose hashes differ by at most :data:`MOST_BITS` bits.

    By the pigeonhole principle one of three bands differs by two bits at most. Each band is written down as it is and
    with each of its bits changed: bands that differ by one bit meet where one has it changed, and by two where each has
    changed one. Sorting brings them together, so the cost grows with the number of hashes times its logarithm, and
    with the number of pairs that are near in a band.

    Args:
        hashes: (N,).

    Yields:
        (M, 2) rows, the lower one first, without repeats; a pair may come again in another block. Complete where no
        more than 16 hashes share a band; of more, each is compared with its neighbours and the first.
    """
    for first_bit, width in _BANDS:
        band = ((hashes >> np.uint64(first_bit)) & np.uint64(2**width - 1)).astype(np.uint32)
        changes = np.array([0, *(1 << bit for bit in range(width))], np.uint32)
        keys = (band[None] ^ changes[:, None]).ravel()
        order = np.argsort(keys, kind="stable")
        keys, rows = keys[order], (order % len(hashes)).astype(np.int32)
        starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        sizes = np.diff(np.append(starts, len(keys)))
        large = np.repeat(sizes > _MOST_ALIKE, sizes)
        if large.any():
            leader = rows[np.repeat(starts, sizes)]
            yield from _near(hashes, leader[large], rows[large])
        for step in range(1, min(int(sizes.max(initial=1)), _MOST_ALIKE + 1)):
            together = np.flatnonzero(keys[step:] == keys[:-step])
            if len(together) == 0:
                break
            yield from _near(hashes, rows[together], rows[together + step])


def near_pairs_with(hashes: NDArray[np.uint64], new: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:
    """As :func:`near_pairs`, of pairs of which one at least is new: the others were compared before.

    A band of a new hash is written down with every two of its bits changed, and looked up among those of the old ones,
    which are sorted as they are: what the old ones cost is one sort a band.

    Args:
        hashes: (N,).
        new: (N,), which of them.
    """
    old_rows, new_rows = np.flatnonzero(~new), np.flatnonzero(new)
    for block in near_pairs(hashes[new_rows]):
        yield new_rows[block]
    for first_bit, width in _BANDS:
        mask = np.uint64(2**width - 1)
        band = (hashes >> np.uint64(first_bit)) & mask
        one = np.array([0, *(1 << bit for bit in range(width))], np.uint64)
        changes = np.unique(one[:, None] ^ one)  # none, one or two bits
        order = old_rows[np.argsort(band[old_rows], kind="stable")]
        for start in range(0, len(new_rows), _AT_ONCE):
            rows = new_rows[start : start + _AT_ONCE]
            wanted = (band[rows][:, None] ^ changes).ravel()
            first = np.searchsorted(band[order], wanted, "left")
            count = np.searchsorted(band[order], wanted, "right") - first
            count = np.minimum(count, _MOST_ALIKE)  # of more that are alike, the first ones are tied to the others
            place = np.arange(count.sum()) - np.repeat(count.cumsum() - count - first, count)
            yield from _near(hashes, np.repeat(np.repeat(rows, len(changes)), count), order[place])


def _near(
    hashes: NDArray[np.uint64], first: NDArray[np.integer[Any]], second: NDArray[np.integer[Any]]
) -> Iterator[NDArray[np.int64]]:
    near = (np.bitwise_count(hashes[first] ^ hashes[second]) <= MOST_BITS) & (first != second)
    if near.any():
        one, other = first[near].astype(np.int64), second[near].astype(np.int64)
        pairs = np.unique(np.minimum(one, other) * len(hashes) + np.maximum(one, other))
        yield np.stack([pairs // len(hashes), pairs % len(hashes)], axis=1)
