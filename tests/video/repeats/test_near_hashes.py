"""The pairs that comparing all would give, of hashes at every distance, alone and in crowds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidlit.video.repeats.near_hashes import MOST_BITS, near_pairs, near_pairs_with


def found(hashes):
    blocks = list(near_pairs(hashes))
    assert all((block[:, 0] < block[:, 1]).all() for block in blocks)
    return {pair for block in blocks for pair in map(tuple, block.tolist())}


def all_pairs(hashes):
    near = np.argwhere(np.bitwise_count(hashes[:, None] ^ hashes) <= MOST_BITS)
    return {(i, j) for i, j in near.tolist() if i < j}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.sets(st.integers(0, 63), max_size=9)), min_size=1, max_size=40),
    st.integers(0, 2**32),
)
def test_pairs_are_those_that_comparing_all_would_give(members, seed):
    centres = np.random.default_rng(seed).integers(0, 2**64, 6, dtype=np.uint64).tolist()
    hashes = np.array([centres[one] ^ sum(1 << bit for bit in flipped) for one, flipped in members], np.uint64)
    assert found(hashes) == all_pairs(hashes)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sets(st.integers(0, 63), max_size=9), st.booleans()), min_size=1, max_size=16
    ),
    st.integers(0, 2**32),
)
def test_pairs_with_new_ones_are_those_that_comparing_all_would_give(members, seed):
    centres = np.random.default_rng(seed).integers(0, 2**64, 6, dtype=np.uint64).tolist()
    hashes = np.array([centres[one] ^ sum(1 << bit for bit in flipped) for one, flipped, _ in members], np.uint64)
    new = np.array([is_new for *_, is_new in members])
    blocks = list(near_pairs_with(hashes, new))
    pairs = {pair for block in blocks for pair in map(tuple, block.tolist())}
    assert pairs == {(i, j) for i, j in all_pairs(hashes) if new[i] or new[j]}


@pytest.mark.parametrize("flipped", range(MOST_BITS + 2))
def test_every_distance_up_to_the_limit_is_found(flipped):
    """Whichever bits it is: spread over the bands, or all in one."""
    generator = np.random.default_rng(flipped)
    hashes = generator.integers(0, 2**64, 400, dtype=np.uint64)
    for row in range(0, 400, 2):
        bits = range(row % 55, row % 55 + flipped) if row % 4 else generator.choice(64, flipped, replace=False)
        hashes[row + 1] = hashes[row] ^ np.uint64(sum(1 << int(bit) for bit in bits))
    pairs = found(hashes)
    assert all(((row, row + 1) in pairs) == (flipped <= MOST_BITS) for row in range(0, 400, 2))
    assert pairs == all_pairs(hashes)


def test_a_crowd_is_held_together_at_the_cost_of_its_number():
    """5,000 hashes of one picture are 12 million pairs."""
    generator = np.random.default_rng(0)
    crowd = np.uint64(0x5EED) ^ (np.uint64(1) << generator.integers(0, 64, 5000).astype(np.uint64))
    others = generator.integers(0, 2**64, 500, dtype=np.uint64)
    pairs = found(np.concatenate([crowd, others]))
    parent = list(range(5500))

    def root(row):
        while parent[row] != row:
            row = parent[row]
        return row

    for one, other in sorted(pairs):
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    assert {root(row) for row in range(5000)} == {0}
    assert {root(row) for row in range(5000, 5500)} == set(range(5000, 5500))
    assert len(pairs) < 1_500_000
