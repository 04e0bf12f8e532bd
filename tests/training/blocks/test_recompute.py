from itertools import pairwise

import pytest

from vidlit.training.blocks.recompute import chosen_blocks


@pytest.mark.parametrize(
    ("share", "numbers"),
    [
        (False, []),
        (True, [0, 1, 2, 3, 4, 5, 6, 7]),
        (1, [0, 1, 2, 3, 4, 5, 6, 7]),
        (3, [0, 3, 6]),
        (20, [0]),
        (0.0, []),
        (1.0, [0, 1, 2, 3, 4, 5, 6, 7]),
        (0.5, [0, 2, 4, 6]),
        (0.25, [0, 4]),
        (0.75, [0, 2, 3, 4, 6, 7]),
    ],
)
def test_blocks_that_are_recomputed_are_spread_evenly(share, numbers):
    assert chosen_blocks(8, share) == numbers


def test_a_share_is_kept_to_within_half_a_block():
    for num_blocks in (1, 7, 28, 30, 48):
        for percent in range(101):
            chosen = chosen_blocks(num_blocks, percent / 100)
            assert abs(len(chosen) - num_blocks * percent / 100) <= 0.5
            gaps = {after - before for before, after in pairwise(chosen)}
            assert not gaps or max(gaps) - min(gaps) <= 1
