import itertools
import math
import pickle
import tracemalloc
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from vidlit.data.batch_sampler import BucketSequence, DataRanks, ResolutionBatchSampler, token_budget_batch_sizes
from vidlit.errors import UserError

seeds = st.integers(0, 2**40)


def spread_out(sizes, seed=0):
    """Bucket numbers of clips, shuffled as a real index is, with gaps in the numbering."""
    buckets = np.repeat(np.arange(len(sizes)) * 3, sizes)
    return np.random.default_rng(seed).permutation(buckets)


@st.composite
def plans(draw, small):
    """(buckets, batch_size, num_replicas): with `small`, buckets of fewer clips than a global micro-batch too."""
    batch_size, num_replicas = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    least = 1 if small else batch_size * num_replicas
    sizes = draw(st.lists(st.integers(least, least + 40), min_size=1, max_size=5))
    return spread_out(sizes, draw(seeds)), batch_size, num_replicas


def ranks_of(buckets, batch_size, num_replicas, **options):
    """The samplers of all ranks."""
    return [
        ResolutionBatchSampler(buckets, batch_size, num_replicas=num_replicas, rank=rank, **options)
        for rank in range(num_replicas)
    ]


def global_batch(ranks, position):
    """All ranks' clips at a position."""
    return list(itertools.chain.from_iterable(rank.batch_at(position) for rank in ranks))


def walk(ranks, buckets, num_batches):
    """Global batches from 0 on, with the exposures after each."""
    counts = np.zeros(len(buckets), int)
    for position in range(num_batches):
        batch = global_batch(ranks, position)
        np.add.at(counts, batch, 1)
        yield position, batch, counts


# The guarantees


@settings(deadline=None, max_examples=150)
@given(plans(small=False), seeds, st.sampled_from(["repeat", "short", "error"]))
def test_every_prefix_exposes_clips_equally_and_no_batch_repeats_a_clip(plan, seed, small_bucket):
    buckets, batch_size, num_replicas = plan
    ranks = ranks_of(buckets, batch_size, num_replicas, seed=seed, small_bucket=small_bucket)
    sampler = ranks[0]
    num_batches = min(400, 4 * len(buckets))
    for position, batch, counts in walk(ranks, buckets, num_batches):
        assert len(batch) == len(set(batch)) == batch_size * num_replicas
        assert len(set(buckets[batch])) == 1
        assert np.ptp(counts) <= 2
        for bucket in np.unique(buckets):
            assert np.ptp(counts[buckets == bucket]) <= 1
        if position % 37 == 0 or position == num_batches - 1:
            np.testing.assert_array_equal(sampler.exposures(position + 1), counts)


@settings(deadline=None, max_examples=150)
@given(plans(small=True), seeds)
def test_small_buckets_repeat_as_little_as_possible_and_keep_pace(plan, seed):
    buckets, batch_size, num_replicas = plan
    ranks = ranks_of(buckets, batch_size, num_replicas, seed=seed)
    sampler = ranks[0]
    size, clips = batch_size * num_replicas, Counter(buckets.tolist())
    assert sampler.small_buckets == {bucket: n for bucket, n in clips.items() if n < size}
    bound = math.ceil(max(1, size / min(clips.values()))) + 1
    for position, batch, counts in walk(ranks, buckets, 150):
        bucket = buckets[batch[0]]
        times = Counter(batch)
        assert len(batch) == size
        assert set(buckets[batch]) == {bucket}
        assert max(times.values()) <= math.ceil(size / clips[bucket])
        assert min(times[c] for c in np.flatnonzero(buckets == bucket)) >= size // clips[bucket]
        assert np.ptp(counts) <= bound
        for number in clips:
            assert np.ptp(counts[buckets == number]) <= 1
        large = np.array([clips[b] >= size for b in buckets.tolist()])
        assert not large.any() or np.ptp(counts[large]) <= 2
        if position % 50 == 49:
            np.testing.assert_array_equal(sampler.exposures(position + 1), counts)


@settings(deadline=None, max_examples=60)
@given(plans(small=True), seeds)
def test_short_gives_equal_work_without_repeats(plan, seed):
    buckets, batch_size, num_replicas = plan
    ranks = ranks_of(buckets, batch_size, num_replicas, seed=seed, small_bucket="short")
    clips = Counter(buckets.tolist())
    bound = math.ceil(max(1, num_replicas / min(clips.values()))) + 1
    for _, batch, counts in walk(ranks, buckets, 100):
        n = clips[buckets[batch[0]]]
        assert len(batch) == num_replicas * max(1, min(batch_size, n // num_replicas))
        assert n < num_replicas or len(set(batch)) == len(batch)
        assert np.ptp(counts) <= bound
    np.testing.assert_array_equal(ranks[0].exposures(100), counts)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 40)), min_size=1, max_size=5), st.integers(1, 3), seeds)
def test_batch_size_per_bucket(rows, num_replicas, seed):
    """A token budget gives each bucket a size of its own; the guarantees are the same."""
    sizes = [batch_size for batch_size, _ in rows]
    buckets = np.concatenate([[i] * (b * num_replicas + extra) for i, (b, extra) in enumerate(rows)])
    ranks = ranks_of(buckets, sizes, num_replicas, seed=seed, small_bucket="error")
    assert ranks[0].global_batch_sizes == {i: b * num_replicas for i, b in enumerate(sizes)}
    for _, batch, counts in walk(ranks, buckets, 150):
        assert len(batch) == len(set(batch)) == ranks[0].global_batch_sizes[buckets[batch[0]]]
        assert np.ptp(counts) <= 2


@settings(deadline=None, max_examples=100)
@given(plans(small=True), seeds, st.data())
def test_order_is_a_function_of_the_position(plan, seed, data):
    buckets, batch_size, num_replicas = plan

    def new(**more):
        return ResolutionBatchSampler(buckets, batch_size, num_replicas=num_replicas, seed=seed, **more)

    ranks = ranks_of(buckets, batch_size, num_replicas, seed=seed)
    walked = [global_batch(ranks, position) for position in range(250)]
    start = data.draw(st.integers(0, 240))
    resumed = itertools.islice(new(start=start, rank=num_replicas - 1), 10)
    assert list(resumed) == [batch[-batch_size:] for batch in walked[start : start + 10]]
    jumping = new()
    for position in data.draw(st.lists(st.integers(0, 249), max_size=20)):
        assert jumping.batch_at(position) == walked[position][:batch_size]
        jumping.exposures(position // 2)  # must not disturb


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4), st.integers(1, 4), st.lists(st.integers(1, 60), min_size=1, max_size=4), seeds)
def test_ranks_share_out_a_sequence_that_only_the_global_batch_determines(batch_size, num_replicas, sizes, seed):
    buckets, size = spread_out(sizes), batch_size * num_replicas
    alone = ResolutionBatchSampler(buckets, size, seed=seed)
    ranks = ranks_of(buckets, batch_size, num_replicas, seed=seed)
    for position in [*range(40), 10**6 + 1]:
        shares = [rank.batch_at(position) for rank in ranks]
        assert {len(share) for share in shares} == {batch_size}
        assert list(itertools.chain(*shares)) == alone.batch_at(position)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 70), st.integers(1, 30), seeds)
def test_each_pass_takes_every_clip_once_in_a_new_order(n, size, seed):
    sampler = ResolutionBatchSampler([0] * n, size, seed=seed)
    stream = list(itertools.chain.from_iterable(map(sampler.batch_at, range(6 * n // size + 1))))
    passes = [tuple(stream[i : i + n]) for i in range(0, len(stream) - n + 1, n)]
    assert all(sorted(one) == list(range(n)) for one in passes)
    if n >= size + 20:  # chance of two equal passes is below 1e-18
        assert len(set(passes)) == len(passes)


@pytest.mark.parametrize(("n", "size"), [(7, 4), (11, 8), (13, 9)])
def test_a_pass_is_random_but_for_the_head_it_must_mend(n, size):
    """Where a clip was in one pass says nothing of where it is in the next, except that the old tail skips the head."""
    runs, index = 1500, 2
    moved = np.zeros((n, n))  # place in pass 1, place in pass 2
    for seed in range(runs):
        sampler = ResolutionBatchSampler([0] * n, size, seed=seed)
        stream = list(itertools.chain.from_iterable(map(sampler.batch_at, range(-(-3 * n // size)))))
        before, now = np.argsort(stream[n : 2 * n]), np.argsort(stream[2 * n : 3 * n])
        moved[before, now] += 1
    tail, head = index * n % size, -index * n % size
    expected = np.zeros((n, n))
    expected[n - tail :, head:] = runs / (n - head)
    expected[: n - tail, :head] = runs / (n - tail)
    expected[: n - tail, head:] = runs * (1 - head / (n - tail)) / (n - head)
    assert tail * head > 0
    assert (moved[expected == 0] == 0).all()
    chi2 = ((moved - expected)[expected > 0] ** 2 / expected[expected > 0]).sum()
    assert chi2 < n * n + 6 * math.sqrt(2 * n * n)


# Order of the buckets


def test_buckets_are_mixed_and_not_periodic():
    buckets = spread_out([400, 400, 200])
    samplers = [ResolutionBatchSampler(buckets, 4, seed=seed) for seed in range(2)]
    orders = [[buckets[sampler.batch_at(p)[0]] for p in range(250)] for sampler in samplers]
    assert orders[0] != orders[1]
    for order in orders:
        assert Counter(order) == pytest.approx({0: 100, 3: 100, 6: 50}, abs=1)
        assert all(order[period:] != order[:-period] for period in range(1, 100))
        assert max(len(list(run)) for _, run in itertools.groupby(order)) <= 6


def test_buckets_of_one_batch_take_turns_in_random_order():
    buckets = np.repeat([0, 1, 2], 4)
    sampler = ResolutionBatchSampler(buckets, 4)
    rounds = [tuple(buckets[sampler.batch_at(3 * i + j)[0]] for j in range(3)) for i in range(200)]
    assert all(sorted(turn) == [0, 1, 2] for turn in rounds)
    assert len(set(rounds)) == 6


# Arithmetic of exposures


@pytest.mark.parametrize(("videos", "exposures"), [(100, 100), (500, 20), (1000, 10)])
@pytest.mark.parametrize("shapes", [1, 3])
def test_ten_thousand_steps_at_batch_size_one(videos, exposures, shapes):
    sampler = ResolutionBatchSampler(np.arange(videos) % shapes, batch_size=1)
    counts = sampler.exposures(10_000)
    assert counts.sum() == 10_000
    assert counts.mean() == exposures
    assert abs(counts - exposures).max() <= (0 if shapes == 1 else 1)


def test_nobody_is_dropped():
    """69 clips in 6 shapes, a peer's published case: with global batches of 4, 8, 16 it never saw 9, 13, 37 of them."""
    buckets = spread_out([30, 17, 11, 6, 4, 1])
    for size in (4, 8, 16):
        sampler = ResolutionBatchSampler(buckets, size)
        counts = sampler.exposures(round(10 * sampler.batches_per_pass))
        assert counts.min() >= 10 - size // 2 - 1
        large = ~np.isin(buckets, list(sampler.small_buckets))
        assert abs(counts[large] - 10).max() <= 1


def test_exposures_far_away_take_no_time():
    buckets = spread_out([1000, 300, 7])
    ranks = ranks_of(buckets, 4, 2)
    sampler = ranks[0]
    counts = sampler.exposures(10**9)
    assert counts.sum() == 8 * 10**9
    assert np.ptp(counts) <= 3
    more = counts.copy()
    for position in range(10**9, 10**9 + 300):
        np.add.at(more, global_batch(ranks, position), 1)
    np.testing.assert_array_equal(sampler.exposures(10**9 + 300), more)


# Reproducibility


def test_order_never_changes():
    """Written down once: a new NumPy, platform or edit that changes these batches breaks every running fit's resume."""
    sampler = ResolutionBatchSampler([0, 1, 1, 0, 0, 1, 2, 1, 0, 1], 2, seed=7)
    assert [sampler.batch_at(p) for p in [0, 1, 2, 3, 4, 5, 1000, 10**6]] == [
        [8, 3],
        [9, 7],
        [2, 1],
        [0, 4],
        [6, 6],
        [5, 1],
        [5, 2],
        [4, 0],
    ]
    assert ResolutionBatchSampler(np.zeros(1000, int), 5, seed=2**63).batch_at(10**12) == [
        248,
        873,
        802,
        373,
        419,
    ]


def test_through_a_loader_with_workers_and_after_a_resume():
    buckets = spread_out([20, 9])
    straight = ResolutionBatchSampler(buckets, 2, num_replicas=2, rank=1, seed=3)
    resumed = ResolutionBatchSampler(buckets, 2, num_replicas=2, rank=1, seed=3, start=13)
    for sampler, workers in [(straight, 0), (resumed, 2)]:
        loader = DataLoader(range(29), batch_sampler=sampler, num_workers=workers)
        batches = [batch.tolist() for batch in itertools.islice(loader, 20)]
        assert batches == [straight.batch_at(sampler.start + i) for i in range(20)]


def test_pickled_sampler_goes_on():
    sampler = ResolutionBatchSampler(spread_out([20, 9]), 2)
    sampler.batch_at(11)
    assert pickle.loads(pickle.dumps(sampler)).batch_at(12) == sampler.batch_at(12)


def test_memory_per_clip():
    buckets = np.random.default_rng(0).integers(0, 8, 500_000)
    tracemalloc.start()
    sampler = ResolutionBatchSampler(buckets, 4)
    for position in range(3 * 8):
        sampler.batch_at(position)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held <= 12 * len(buckets)
    assert peak <= 30 * len(buckets)


# Messages


def test_small_bucket_error_says_what_to_merge():
    buckets = np.repeat([0, 1, 2], [40, 3, 30])
    names = ["9x32x32", "17x32x32", "17x48x80"]
    with pytest.raises(UserError) as error:
        ResolutionBatchSampler(buckets, 2, num_replicas=3, small_bucket="error", bucket_names=names)
    text = str(error.value)
    assert "bucket 17x32x32 holds 3 of the 6 clips a batch needs (merge it into 9x32x32)" in text
    assert "lower batch_size from 2 to 1" in text
    with pytest.raises(UserError, match="bucket 1 holds 3"):
        ResolutionBatchSampler(buckets, 2, num_replicas=3, small_bucket="error")
    ResolutionBatchSampler(buckets, 1, num_replicas=3, small_bucket="error")


@pytest.mark.parametrize(
    ("buckets", "options", "message"),
    [
        ([], {}, "no clips to train on"),
        ([-1], {}, "non-negative integer"),
        ([0.5], {}, "non-negative integer"),
        ([[0]], {}, "non-negative integer"),
        ([0], {"batch_size": 0}, "batch_size must be at least 1"),
        ([0, 1], {"batch_size": [1, 0]}, "batch_size must be at least 1"),
        ([0], {"num_replicas": 2, "rank": 2}, "rank"),
        ([0], {"rank": -1}, "rank"),
        ([0], {"num_replicas": 0}, "rank"),
        ([0], {"seed": -1}, "seed=-1"),
        ([0], {"start": -1}, "start=-1"),
        ([0], {"small_bucket": "drop"}, "small_bucket must be repeat, short or error"),
    ],
)
def test_arguments_out_of_range(buckets, options, message):
    with pytest.raises(UserError, match=message):
        ResolutionBatchSampler(buckets, **{"batch_size": 1, **options})


def test_positions_count_from_zero():
    for ask in (ResolutionBatchSampler([0], 1).batch_at, ResolutionBatchSampler([0], 1).exposures):
        with pytest.raises(ValueError, match="-1"):
            ask(-1)


def test_token_budget():
    assert token_budget_batch_sizes([100, 200, 400], 800) == [8, 4, 2]
    assert token_budget_batch_sizes([100, 200, 400], 400**2, power=2) == [16, 4, 1]
    with pytest.raises(UserError, match=r"one sample of bucket 1 .* raise the budget to 200"):
        token_budget_batch_sizes([100, 200], 199)


# Validation


@settings(deadline=None, max_examples=150)
@given(st.lists(st.integers(1, 30), max_size=5), st.integers(1, 6), st.integers(1, 5), seeds)
def test_bucket_sequence_gives_every_clip_once(sizes, batch_size, num_replicas, seed):
    buckets = spread_out(sizes, seed)
    ranks = [BucketSequence(buckets, batch_size, num_replicas=num_replicas, rank=r) for r in range(num_replicas)]
    shares = [list(rank) for rank in ranks]
    assert [len(rank) for rank in ranks] == [len(share) for share in shares]
    batches = list(itertools.chain(*shares))
    assert sorted(itertools.chain(*batches)) == list(range(len(buckets)))
    assert all(1 <= len(batch) <= batch_size and len(set(buckets[batch])) == 1 for batch in batches)
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1
    least = sum(math.ceil(n / batch_size) for n in sizes)
    if math.ceil(least / num_replicas) * num_replicas <= len(buckets):
        assert len(set(lengths)) == 1
    assert max(lengths) == math.ceil(least / num_replicas)  # splitting batches costs no step
    assert shares == [list(rank) for rank in ranks]  # a second time the same


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 3), st.integers(1, 5))
def test_even_bucket_sequence_repeats_only_where_a_rank_is_short(sizes, batch_size, num_replicas):
    buckets = spread_out(sizes)
    plain, even = (
        [
            list(BucketSequence(buckets, batch_size, num_replicas=num_replicas, rank=r, even=e))
            for r in range(num_replicas)
        ]
        for e in (False, True)
    )
    assert len({len(share) for share in even}) == 1
    for without, with_repeat in zip(plain, even, strict=True):
        assert with_repeat[: len(without)] == without
        assert all(len(batch) == 1 for batch in with_repeat[len(without) :])


def test_bucket_sequence_sizes_per_bucket():
    assert list(BucketSequence([0, 0, 0, 1, 1], [3, 1])) == [[0, 1, 2], [3], [4]]
    with pytest.raises(UserError, match="batch_size"):
        BucketSequence([0], 0)
    with pytest.raises(UserError, match="rank"):
        BucketSequence([0], 1, rank=1)


def test_ranks_that_share_samples_count_once():
    def at(rank, ranks, degree):
        spread = {"num_replicas": ranks, "rank": rank} if ranks else None
        module = SimpleNamespace(context_parallel=degree)
        return DataRanks.of(SimpleNamespace(distributed_sampler_kwargs=spread, lightning_module=module))

    assert [at(rank, 4, 2) for rank in range(4)] == [(2, 0, 2, 0), (2, 0, 2, 1), (2, 1, 2, 0), (2, 1, 2, 1)]
    assert [at(rank, 2, 1) for rank in range(2)] == [(2, 0, 1, 0), (2, 1, 1, 0)]
    assert at(0, 1, 2) == at(0, 0, 2) == DataRanks.of(None) == (1, 0, 1, 0)
