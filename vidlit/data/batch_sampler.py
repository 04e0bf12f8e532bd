"""Which clips make up which batch: an endless training order and a finite validation order.

Let ``G`` be a bucket's global micro-batch (samples over all ranks), ``n`` its clips, and ``g = G / n`` what one batch
adds to the bucket's mean exposure ``e``. Why training exposes all clips equally, at every moment:

* *Within a bucket*: clips come from an endless stream of passes (:class:`~vidlit.data.passes.Passes`), so after any
  number of batches each has been taken ``floor(e)`` or ``ceil(e)`` times.
* *Between buckets*: batch ``k`` of a bucket has virtual time ``(k + u) * g`` with a random ``u`` within ``1/2 +- s/2``,
  ``s = clip(1/g - 1, 0, 1)``, and batches go in order of time. When at time ``t`` a bucket has had ``K`` batches, then
  ``(K - 1 + u) * g <= t <= (K + u') * g``, hence ``|e - t| <= max(1, g) / 2``. So ``e`` of two buckets with ``g <= 1``
  differs by at most 1, and exposures of two clips by less than 1 + 2: by at most 2. Where small buckets (``g > 1``) are
  filled with repeats, by at most ``ceil(max g) + 1``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

from vidlit.data.passes import Passes
from vidlit.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_BLOCK = 1024  # positions whose buckets are found at once


class DataRanks(NamedTuple):
    """Which samples a rank works on: a group of context-parallel ranks, one after the other, works on the same."""

    size: int
    """Number of groups, each with samples of its own; all ranks without context parallel."""
    rank: int
    """Which of the groups this rank is in."""
    peers: int
    """Ranks of a group."""
    peer: int
    """Which of them this one is."""

    @classmethod
    def of(cls, trainer: Trainer | None) -> DataRanks:
        """Those of a Trainer and of the model it has: everything that shares samples over ranks asks here."""
        spread = trainer.distributed_sampler_kwargs if trainer is not None else None
        if trainer is None or not spread:
            return cls(1, 0, 1, 0)
        ranks, rank = int(spread["num_replicas"]), int(spread["rank"])
        # One process has all tokens, whatever the model was trained with.
        peers = getattr(trainer.lightning_module, "context_parallel", 1) if ranks > 1 else 1
        return cls(ranks // peers, rank // peers, peers, rank % peers)


def token_budget_batch_sizes(tokens: Sequence[int], budget: float, power: float = 1.0) -> list[int]:
    """Batch size of each bucket under a budget: the largest ``B`` with ``B * tokens**power <= budget``.

    Args:
        tokens: latent tokens of one sample, for each bucket.
        budget: what one rank can hold, in tokens (to the ``power``).
        power: 1 where memory grows with tokens, up to 2 where the time of attention shall be even.

    Raises:
        UserError: a bucket's single sample exceeds the budget.
    """
    sizes = []
    for bucket, count in enumerate(tokens):
        cost = float(count) ** power
        if cost > budget:
            raise UserError(
                f"token budget {budget:g} is less than one sample of bucket {bucket} "
                f"({count} tokens, cost {cost:g}): raise the budget to {math.ceil(cost)} or remove the bucket"
            )
        sizes.append(int(budget // cost))
    return sizes


class ResolutionBatchSampler(Sampler[list[int]]):
    """Endless batches of one resolution each, that expose every clip equally often.

    A pure function of (seed, position, rank), so a run resumes with one number: the position, counted in micro-batches,
    the same on all ranks. At each position all ranks get the same bucket and the same number of samples. The sequence
    of global batches depends on ``batch_size * num_replicas`` only: resumed with another number of ranks it goes on
    unchanged as long as :attr:`global_batch_sizes` stay the same.

    Where every bucket holds at least a global micro-batch, no batch holds a clip twice, and in any prefix exposures of
    two clips of a bucket differ by at most 1, of any two clips by at most 2 (proof: top of this file).

    A position is found in O(buckets), wherever it is. The first batch of a pass waits for the shuffle of its bucket,
    the others take microseconds. Memory is 8 bytes a clip, and 16 more of the bucket that is being shuffled.

    Args:
        buckets: bucket number of each clip, (N,) non-negative integers.
        batch_size: samples per rank and micro-batch; one number, or one for each bucket number (see
            :func:`token_budget_batch_sizes`).
        num_replicas: ranks that hold different samples (data parallel size, not tensor or context parallel).
        rank: this one's, from 0.
        seed: non-negative.
        start: position of the first batch that iterating gives.
        small_bucket: what to do with a bucket of fewer clips than a global micro-batch. ``repeat`` fills its batches
            with as few repeats as possible and visits it as much less often. ``short`` gives fewer samples, without
            repeats: as many as there are on each rank, at most ``clips // num_replicas`` (with fewer clips than ranks,
            one each, repeated), so there the sequence depends on the number of ranks. ``error`` refuses.
        bucket_names: what to call the buckets in messages, by bucket number.

    Raises:
        UserError: an argument is out of range, there are no clips, or a bucket is too small under ``error``.

    Example:
        >>> sampler = ResolutionBatchSampler([0, 0, 0, 1, 1, 1], batch_size=1, num_replicas=2, rank=1)
        >>> sampler.exposures(6)
        array([2, 2, 2, 2, 2, 2])
    """

    def __init__(
        self,
        buckets: ArrayLike,
        batch_size: int | Sequence[int],
        *,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
        start: int = 0,
        small_bucket: Literal["repeat", "short", "error"] = "repeat",
        bucket_names: Sequence[str] | None = None,
    ) -> None:
        numbers, members = _group(buckets)
        if not numbers:
            raise UserError("no clips to train on: every clip was dropped, quarantined, or is for validation or test")
        _check_ranks(num_replicas, rank)
        if seed < 0 or start < 0:
            raise UserError(f"seed and start must not be negative, got seed={seed}, start={start}")
        if small_bucket not in ("repeat", "short", "error"):
            raise UserError(f"small_bucket must be repeat, short or error, got {small_bucket!r}")
        counts = [len(clips) for clips in members]
        per_rank = _sizes(batch_size, numbers)
        small = [i for i, n in enumerate(counts) if n < per_rank[i] * num_replicas]
        if small and small_bucket == "error":
            names = [bucket_names[number] if bucket_names else str(number) for number in numbers]
            raise UserError(_too_small(small, names, counts, per_rank, num_replicas))
        if small_bucket == "short":
            per_rank = [max(1, min(b, n // num_replicas)) for b, n in zip(per_rank, counts, strict=True)]

        self.start = start
        self.num_clips = sum(counts)
        self.small_buckets = {numbers[i]: counts[i] for i in small}
        """Clips of each bucket that holds less than ``batch_size * num_replicas``."""
        self.global_batch_sizes = {n: b * num_replicas for n, b in zip(numbers, per_rank, strict=True)}
        """Samples of one position over all ranks, by bucket number."""
        self._rank = rank
        self._per_rank = per_rank
        self._streams = [
            Passes(clips, b * num_replicas, seed, number)
            for clips, b, number in zip(members, per_rank, numbers, strict=True)
        ]
        self._step = np.array([b * num_replicas / n for b, n in zip(per_rank, counts, strict=True)])  # g
        self._spread = np.clip(1 / self._step - 1, 0, 1)
        self._salt = np.random.SeedSequence(seed).generate_state(len(numbers), np.uint64)
        self._block: tuple[int | None, list[int], list[int]] = (None, [], [])

    def __iter__(self) -> Iterator[list[int]]:
        """This rank's batches from ``start`` on, without end."""
        position = self.start
        while True:
            yield self.batch_at(position)
            position += 1

    def batch_at(self, position: int) -> list[int]:
        """This rank's clips at a position."""
        bucket, visit = self._visit_at(position)
        stream, size = self._streams[bucket], self._per_rank[bucket]
        clips: list[int] = stream.take(visit * stream.batch_size + self._rank * size, size).tolist()
        return clips

    def visits_at(self, position: int) -> list[int]:
        """How often each clip of :meth:`batch_at` was in a batch before: every pass holds it once."""
        bucket, visit = self._visit_at(position)
        stream, size = self._streams[bucket], self._per_rank[bucket]
        first = visit * stream.batch_size + self._rank * size
        return [place // len(stream.clips) for place in range(first, first + size)]

    @property
    def batches_per_pass(self) -> float:
        """Positions in which the mean exposure rises by one."""
        return float((1 / self._step).sum())

    @property
    def mean_batch_size(self) -> float:
        """Samples of a position over all ranks, on average: buckets may have batches of their own size."""
        return self.num_clips / self.batches_per_pass

    def exposures(self, num_batches: int) -> NDArray[np.int64]:
        """How often each clip has been in a batch, over all ranks, before position ``num_batches``.

        Takes one shuffle of every bucket, however large ``num_batches`` is.

        Returns:
            (N,) counts, in the order of ``buckets``.
        """
        visits, buckets, _ = self._merge(num_batches, 0)
        visits += np.bincount(buckets[: num_batches - visits.sum()], minlength=len(visits))
        counts = np.empty(self.num_clips, np.int64)
        for stream, visit in zip(self._streams, visits.tolist(), strict=True):
            passes, rest = divmod(visit * stream.batch_size, len(stream.clips))
            counts[stream.clips] = passes
            if rest:
                counts[stream.take(passes * len(stream.clips), rest)] += 1
        return counts

    def _visit_at(self, position: int) -> tuple[int, int]:
        """Index of the bucket at a position, and how often it had its turn before."""
        block, offset = divmod(position, _BLOCK)
        if block != self._block[0]:
            first = block * _BLOCK
            done, buckets, visits = self._merge(first, _BLOCK)
            chosen = slice(first - int(done.sum()), first - int(done.sum()) + _BLOCK)
            self._block = (block, buckets[chosen].tolist(), visits[chosen].tolist())
        return self._block[1][offset], self._block[2][offset]

    def _merge(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The part of the merged order that holds positions ``first`` to ``first + count``, and a little around it.

        Returns:
            batches of each bucket before that part, (buckets,); bucket and number of each batch in it, in order.
        """
        if first < 0:
            raise ValueError(f"positions count from 0, got {first}")
        # A bucket's batches before time t are t / g, give or take one, so positions are known up to the bucket count.
        margin = len(self._step) + 1
        before = self._batches_before(max(0.0, (first - margin) / self.batches_per_pass))
        here = self._batches_before((first + count + margin) / self.batches_per_pass) - before
        bucket = np.repeat(np.arange(len(here)), here)
        visit = np.arange(len(bucket)) + np.repeat(before - here.cumsum() + here, here)
        time, tie = self._virtual_time(bucket, visit)
        order = np.lexsort((bucket, tie, time))
        return before, bucket[order], visit[order]

    def _batches_before(self, time: float) -> NDArray[np.int64]:
        """Number of each bucket's batches whose virtual time is less than ``time``."""
        near = np.floor(time / self._step).astype(np.int64)
        bucket = np.arange(len(near))
        done = near - 1
        for visit in (near - 1, near, near + 1):  # batch `visit` lies between visit * g and (visit + 1) * g
            done += (visit < 0) | (self._virtual_time(bucket, visit)[0] < time)
        return done

    def _virtual_time(
        self, bucket: NDArray[np.int64], visit: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.uint64]]:
        """When each batch is due, in passes, and a random number that orders those due at once."""
        word = _mix(self._salt[bucket] + visit.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        jitter = (word >> np.uint64(11)) * 2.0**-53 - 0.5
        return (visit + (0.5 + jitter * self._spread[bucket])) * self._step[bucket], word


class BucketSequence(Sampler[list[int]]):
    """Every clip exactly once, in batches of one bucket, shared out over ranks: for validation.

    Each clip belongs to one rank. Batches of a bucket differ by at most one sample; ranks differ by at most one batch,
    and by none if there are clips enough to split some batches.

    Args:
        buckets: bucket number of each clip, (N,) non-negative integers.
        batch_size: samples per batch at most; one number, or one for each bucket number.
        num_replicas: ranks that hold different samples.
        rank: this one's, from 0.
        even: where a rank is a batch short, give it a batch of one clip again, so that all make the same number of
            steps. FSDP needs that, and DDP of a model with buffers, or they hang. What collects the results must
            then count a clip once.

    Raises:
        UserError: an argument is out of range.
    """

    def __init__(
        self,
        buckets: ArrayLike,
        batch_size: int | Sequence[int],
        *,
        num_replicas: int = 1,
        rank: int = 0,
        even: bool = False,
    ) -> None:
        numbers, members = _group(buckets)
        _check_ranks(num_replicas, rank)
        sizes = _sizes(batch_size, numbers)
        counts = np.array([len(clips) for clips in members], np.int64)
        pieces = np.array([math.ceil(n / b) for n, b in zip(counts.tolist(), sizes, strict=True)], np.int64)
        lacking = int(-pieces.sum() % num_replicas)
        if lacking <= (counts - pieces).sum():
            for _ in range(lacking):
                pieces[np.argmax(counts / pieces)] += 1  # largest batches are split first
        batches = [
            piece.tolist()
            for clips, n in zip(members, pieces.tolist(), strict=True)
            for piece in np.array_split(clips, n)
        ]
        if even and batches:
            batches += [batches[-1][:1]] * (-len(batches) % num_replicas)
        self._batches: list[list[int]] = batches[rank::num_replicas]

    def __iter__(self) -> Iterator[list[int]]:
        """This rank's batches, bucket after bucket."""
        return iter(self._batches)

    def __len__(self) -> int:
        """This rank's number of batches."""
        return len(self._batches)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finalizer of SplitMix64 (Steele, Lea, Flood 2014): numbers in a row to numbers as if random."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _group(buckets: ArrayLike) -> tuple[list[int], list[NDArray[np.unsignedinteger]]]:
    """Bucket numbers that occur, in order, and each one's clips, in order."""
    array = np.asarray(buckets)
    if array.size == 0:
        return [], []
    if array.ndim != 1 or array.dtype.kind not in "iu" or array.min() < 0:
        raise UserError("buckets must be one non-negative integer for each clip")
    array = array.astype(np.min_scalar_type(array.max()), copy=False)  # up to 16 bits sort in linear time
    clips = np.argsort(array, kind="stable").astype(np.min_scalar_type(len(array)))
    numbers, counts = np.unique(array, return_counts=True)
    return numbers.tolist(), np.split(clips, counts.cumsum()[:-1])


def _sizes(batch_size: int | Sequence[int], numbers: list[int]) -> list[int]:
    """Batch size of each bucket that occurs."""
    sizes = [int(batch_size[n] if isinstance(batch_size, Sequence) else batch_size) for n in numbers]
    if min(sizes, default=1) < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}")
    return sizes


def _check_ranks(num_replicas: int, rank: int) -> None:
    if not 0 <= rank < num_replicas:
        raise UserError(f"rank must be at least 0 and less than num_replicas, got {rank} of {num_replicas}")


def _too_small(small: list[int], names: list[str], counts: list[int], per_rank: list[int], num_replicas: int) -> str:
    """Says which buckets hold less than a global micro-batch, and what to do."""
    large = [i for i in range(len(names)) if i not in small]
    lines = []
    for i in small:
        line = f"bucket {names[i]} holds {counts[i]} of the {per_rank[i] * num_replicas} clips a batch needs"
        if large:
            line += f" (merge it into {names[min(large, key=lambda j: abs(j - i))]})"
        lines.append(line)
    largest_fit = min(counts[i] for i in small) // num_replicas
    lower = f"lower batch_size from {max(per_rank)} to {largest_fit}, " if largest_fit else ""
    return (
        f"{'; '.join(lines)}. batch_size x ranks is the least a bucket must hold: merge buckets, {lower}"
        "add clips, or set small_bucket to repeat or short"
    )
