"""A clip cut out of a longer video that is in the folder, too: found by hashes of frames that agree on one offset.

The beginning of every video is hashed densely, the rest of a long one at its key frames, which decode at little cost.
A pair of videos is looked at closely once two frames of one share a quarter of their bits with two of the other at the
same offset: sorting finds these. Beyond 65,536 frames they must share more bits, so that the number of frames that
share them by chance, and with it the cost, grows with the number of frames and not with its square; an excerpt of few
frames that was encoded anew may then be missed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set

import numpy as np
from numpy.typing import NDArray

DENSE_SECONDS = 20.0
"""Beginning of a video that is hashed at :data:`DENSE_RATE`."""
DENSE_RATE = 4.0
"""Hashes a second there."""
MAX_DISTANCE = 8.0
"""Bits of 64 that frames of an excerpt differ by from the long video's, on average."""

_SPACING = 0.45  # seconds between frames of the long video that are searched for
_SLACK = 0.2  # seconds that two frames of one moment of a video may be apart
_BANDS, _NARROWEST = 4, 16  # bits of a band; more where there are so many frames that all would share some
_COMMON = 1000  # a picture shared by so many says nothing: a logo, a title card
_LEAST = 2  # frames of the long video within the excerpt

Timeline = Sequence[tuple[float, str | None]]
"""(seconds, hash) of frames in order; ``None`` for one too flat or dark to tell from another."""


def find_excerpts(timelines: Mapping[str, Timeline], new: Set[str] | None = None) -> list[tuple[str, str, float]]:
    """Pairs of videos of which one holds the beginning of the other, at whatever time.

    Args:
        timelines: by video.
        new: videos of which each pair has one at least; ``None`` for all.

    Returns:
        (first, second, mean distance in bits), sorted.
    """
    videos = sorted(timelines)
    is_new = np.array([new is None or video in new for video in videos], bool)
    if not is_new.any():
        return []
    known = [[frame for frame in timelines[video] if frame[1] is not None] for video in videos]
    times = [np.array([time for time, _ in frames], np.float64) for frames in known]
    bits = [np.array([int(text or "0", 16) for _, text in frames], np.uint64) for frames in known]
    del known
    dense = [each <= DENSE_SECONDS for each in times]
    sparse = [_thinned(each) for each in times]
    pairs: dict[tuple[str, str], float] = {}
    for film, excerpt, offset in _candidates(times, bits, sparse, dense, is_new):
        distance = _distance(
            times[film][sparse[film]] - offset,
            bits[film][sparse[film]],
            times[excerpt][dense[excerpt]],
            bits[excerpt][dense[excerpt]],
        )
        if distance <= MAX_DISTANCE:
            pair = (videos[min(film, excerpt)], videos[max(film, excerpt)])
            pairs[pair] = min(distance, pairs.get(pair, distance))
    return sorted((*pair, distance) for pair, distance in pairs.items())


def _thinned(times: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rows at least a spacing apart."""
    kept, last = [], -np.inf
    for row, time in enumerate(times.tolist()):
        if time - last >= _SPACING:
            kept.append(row)
            last = time
    return np.array(kept, np.int64)


def _candidates(
    times: list[NDArray[np.float64]],
    bits: list[NDArray[np.uint64]],
    sparse: list[NDArray[np.int64]],
    dense: list[NDArray[np.bool_]],
    is_new: NDArray[np.bool_],
) -> list[tuple[int, int, float]]:
    """(long video, excerpt, seconds at which the excerpt begins in it) that two frames or more agree on."""
    film = np.repeat(np.arange(len(times)), [len(rows) for rows in sparse])
    film_time = np.concatenate([time[rows] for time, rows in zip(times, sparse, strict=True)])
    film_bits = np.concatenate([code[rows] for code, rows in zip(bits, sparse, strict=True)])
    excerpt = np.repeat(np.arange(len(times)), [int(rows.sum()) for rows in dense])
    excerpt_time = np.concatenate([time[rows] for time, rows in zip(times, dense, strict=True)])
    excerpt_bits = np.concatenate([code[rows] for code, rows in zip(bits, dense, strict=True)])
    width = max(_NARROWEST, math.ceil(math.log2(max(1, len(excerpt_bits)))))
    hits = []
    # New films are sought in all excerpts, and the other films in new excerpts.
    for films, excerpts in ((is_new[film], np.ones(len(excerpt), bool)), (~is_new[film], is_new[excerpt])):
        of_film, of_excerpt = np.flatnonzero(films), np.flatnonzero(excerpts)
        if not (len(of_film) and len(of_excerpt)):
            continue
        for a, b in _sharing_a_band(film_bits[of_film], excerpt_bits[of_excerpt], width):
            a, b = of_film[a], of_excerpt[b]
            other = film[a] != excerpt[b]
            hits.append(a[other] * len(excerpt_bits) + b[other])  # one number sorts many times faster than two
    if not hits:
        return []
    a, b = np.divmod(np.unique(np.concatenate(hits)), max(1, len(excerpt_bits)))
    del hits
    # Two frames must agree: most videos that share anything share one frame, by chance.
    both = film[a] * len(times) + excerpt[b]
    order = np.argsort(both, kind="stable")
    again = np.zeros(len(a) + 1, bool)
    again[1:-1] = both[order][1:] == both[order][:-1]
    twice = order[again[1:] | again[:-1]]
    a, b = a[twice], b[twice]
    if len(a) == 0:
        return []
    step = np.round((film_time[a] - excerpt_time[b]) / _SLACK).astype(np.int64)
    first_step = step.min()
    num_steps = int(step.max() - first_step) + 2
    # A frame counts once for its own step and the next, so that two that differ by rounding meet.
    place = (film[a] * len(times) + excerpt[b]) * num_steps + (step - first_step)
    place, frame = np.concatenate([place, place + 1]), np.concatenate([a, a])
    order = np.lexsort((frame, place))
    place, frame = place[order], frame[order]
    again = (place[1:] == place[:-1]) & (frame[1:] == frame[:-1])
    places, number = np.unique(place[np.concatenate([[True], ~again])], return_counts=True)
    pairs, steps = np.divmod(places[number >= _LEAST], num_steps)
    films, excerpts = np.divmod(pairs, len(times))
    found = zip(films.tolist(), excerpts.tolist(), (steps + first_step).tolist(), strict=True)
    return [(one, other, (at - 0.5) * _SLACK) for one, other, at in found]


def _sharing_a_band(
    film_bits: NDArray[np.uint64], excerpt_bits: NDArray[np.uint64], width: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows of films and of excerpts that are equal in a band of their bits, band by band."""
    for band in range(_BANDS):  # side by side at 16 bits; wider ones overlap
        shift, mask = np.uint64(round(band * (64 - width) / (_BANDS - 1))), np.uint64(2**width - 1)
        wanted, offered = (film_bits >> shift) & mask, (excerpt_bits >> shift) & mask
        order = np.argsort(offered, kind="stable")
        first = np.searchsorted(offered[order], wanted, "left")
        count = np.searchsorted(offered[order], wanted, "right") - first
        count[count > _COMMON] = 0
        a = np.repeat(np.arange(len(wanted)), count)
        yield a, order[np.arange(len(a)) - np.repeat(count.cumsum() - count - first, count)]


def _distance(
    film_time: NDArray[np.float64],
    film_bits: NDArray[np.uint64],
    excerpt_time: NDArray[np.float64],
    excerpt_bits: NDArray[np.uint64],
) -> float:
    """Mean bits between frames of the long video and of the excerpt, over its span; infinite if too few."""
    inside = (film_time >= excerpt_time[0] - _SLACK) & (film_time <= excerpt_time[-1] + _SLACK)
    apart = np.abs(film_time[inside, None] - excerpt_time)
    differing = np.where(apart <= 2 * _SLACK, np.bitwise_count(film_bits[inside, None] ^ excerpt_bits), 255)
    nearest = differing.min(axis=1)
    nearest = nearest[nearest < 255]  # where the excerpt is too dark to tell, nothing is known
    return float(nearest.mean()) if len(nearest) >= _LEAST else np.inf
