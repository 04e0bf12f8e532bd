"""The history as the rule sees it: 16 to 32 evenly spaced means, whatever the spacing of the checks.

On checks as they come, dense at first and sparse later, the same rule misses nearly half of the simulated runs that
overfit: what it calls jitter, half a run and a stretch must mean the same time everywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vidlit.stopping.curves import Array
from vidlit.stopping.schedule import MAX_ROWS


def row_length(steps: NDArray[np.int64]) -> int:
    """Steps d of a row: the largest spacing so far, doubled until 32 rows hold the run.

    Where the spacing doubles by itself (:class:`vidlit.stopping.schedule.CheckSchedule`) it is the present spacing.

    Args:
        steps: Optimizer steps of the checks (J,), starting with 0, increasing.
    """
    length = int(np.diff(steps).max(initial=1))
    while steps[-1] > MAX_ROWS * length:
        length *= 2
    return length


def row_numbers(steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which row each check (J,) belongs to: i for those in ``((i - 1) d, i d]``, 0 for step 0. No row is empty."""
    numbers: NDArray[np.int64] = -(-steps // row_length(steps))
    return numbers


def condense(values: Array, rows: NDArray[np.int64]) -> Array:
    """Means of the checks of each row.

    Args:
        values: (..., J, V).
        rows: Row of each check (J,), not falling; a row that has none is left out.

    Returns:
        (..., I, V).
    """
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    counts = np.diff(starts, append=len(rows))
    means: Array = np.add.reduceat(values, starts, axis=-2) / counts[:, None]
    return means
