"""Simulated fine-tuning runs with a known answer. Frozen before any rule was tuned on them: do not edit, add.

Time ``u`` runs from 0 to 1 over the run that a curve was drawn for; curves are log-ratios to step 0 in units of the
gain; :mod:`benchmarks.stopping.schedules` scales them and puts checks on them. A run has held-out and probe source
videos whose curves differ (each has its own share of the fall and of the rise) and jitter between checks, most of it
common to all videos (the weights really move), the rest of each video's own. Clips of one video are summed up in its
mean: what they share is the video's jitter, what they do not share is averaged into it.

What each scenario calls right:

- ``overfit``, ``slow overfit``, ``early hump``, ``heavy tails, overfit``: the oracle is the minimum of the noise-free
  curve. A stop before it is premature; after it, its distance is the overshoot.
- ``plateau, probe falls``: right from the first check within 1 % of the final loss on; before is premature.
- ``still improving``, ``heavy tails, improving``, ``learning-rate bend``: it falls to the end, every stop is false.
- ``plateau, probe flat``: nothing is gained by going on, nothing is memorised either; every stop is false.
- ``double descent``: a rise of 2-8 % of the gain that passes, then a lower minimum at the end; every stop is premature.
- ``deep double descent``: the same with 20-50 %, for longer than the first descent. No rule that stops an overfitting
  run soon after its turn can wait for this second descent, because it has not happened yet; shown, not aimed at.
- ``no gain``: the loss only rises; a stop is right at any time. ``nothing to learn``: it stays at the base model's;
  every stop is false.

Added when checks came to be spaced by cost, drawn at that schedule alone (:mod:`benchmarks.stopping.schedules`):

- ``late hump``: a rise of 10-20 % of the gain that passes within a tenth of the run, well before the minimum.
- ``half improve, half worsen``: every second recording never rises, the others rise twice as much; their mean turns.
- ``slow drift``: still improving, while the weights wander by 3 % of the gain over a tenth of the run. A stop is right
  where 2 % of the final gain are left.
- ``late fall``: flat from a fifth of the run on, while training clips fall on, until at half of it or later a quarter
  more is learnt. As with deep double descent a stop before is premature, and nothing tells it; shown, not aimed at.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SCENARIOS = (
    "overfit",
    "slow overfit",
    "early hump",
    "heavy tails, overfit",
    "plateau, probe falls",
    "still improving",
    "heavy tails, improving",
    "plateau, probe flat",
    "learning-rate bend",
    "double descent",
    "deep double descent",
    "no gain",
    "nothing to learn",
)
WITH_ORACLE = ("overfit", "slow overfit", "early hump", "heavy tails, overfit")
NEVER_RIGHT = (
    "still improving",
    "heavy tails, improving",
    "plateau, probe flat",
    "learning-rate bend",
)
ADDED = ("late hump", "half improve, half worsen", "slow drift", "late fall")
SHOWN_ONLY = ("deep double descent", "no gain", "nothing to learn")  # no target of the issue speaks of these
JITTERS = (0.01, 0.03, 0.08)  # standard deviation of the mean log-ratio between checks, in gains
WARMUP = 0.05  # share of the run that is warm-up; told to the rule
COMMON_SHARE = 0.6  # of the jitter's variance; common jitter is real, the oracle's clips have it too


def videos_around(rng: np.random.Generator, fall: Array, rise: Array, videos: int) -> Array:
    """Each video has its own share of the fall (deviation 0.3) and of the rise (0.5), mean 1: (R, J + 1, V)."""
    shares = [np.exp(rng.normal(-(s**2) / 2, s, (len(fall), 1, videos))) for s in (0.3, 0.5)]
    return fall[..., None] * shares[0] + rise[..., None] * shares[1]


def _uniform(rng: np.random.Generator, runs: int, low: float, high: float) -> Array:
    return rng.uniform(low, high, (runs, 1))


def _turning(rng, runs, u, turn, sharpness, power):
    """A saturating fall and a power-law rise that meet at a minimum near ``turn`` (low, high)."""
    at = _uniform(rng, runs, *turn)
    k = _uniform(rng, runs, *sharpness)
    p = _uniform(rng, runs, *power)
    fall = -(1.0 - np.exp(-k * u / at))
    rise = k * np.exp(-k) / p * (u / at) ** p
    rise = rise / (1.0 + rise / 3.0)  # no loss rises without end
    return fall, rise, at


def _probe(rng, runs, u, fall):
    """The train probe: follows the held-out fall, then goes on."""
    return _uniform(rng, runs, 1.0, 1.3) * fall - _uniform(rng, runs, 0.3, 1.5) * u


def _flat(rng, runs, u):
    return np.zeros((runs, len(u)))


def _overfit(rng, runs, u):
    fall, rise, _ = _turning(rng, runs, u, (0.1, 0.45), (1.5, 2.5), (1.5, 2.5))
    return fall, rise, _probe(rng, runs, u, fall), _flat(rng, runs, u), np.ones_like(u)


def _slow_overfit(rng, runs, u):
    fall, rise, _ = _turning(rng, runs, u, (0.15, 0.45), (3.0, 4.0), (1.2, 1.8))
    return fall, rise, _probe(rng, runs, u, fall), _flat(rng, runs, u), np.ones_like(u)


def _early_hump(rng, runs, u):
    """The first steps disturb the model before they teach it; training clips feel 30 to 100 % of it too."""
    fall, rise, _ = _turning(rng, runs, u, (0.25, 0.5), (1.5, 2.5), (1.5, 2.5))
    centre = _uniform(rng, runs, 0.5, 1.5) * WARMUP
    width = _uniform(rng, runs, 0.3, 0.6) * WARMUP
    hump = _uniform(rng, runs, 0.1, 0.5) * np.exp(-0.5 * ((u - centre) / width) ** 2)
    hump[:, 0] = 0.0
    shared = _uniform(rng, runs, 0.3, 1.0) * hump
    return fall, rise + hump, _probe(rng, runs, u, fall), shared, np.ones_like(u)


def _improving(rng, runs, u):
    tau = _uniform(rng, runs, 0.02, 0.3)
    logarithmic = -np.log1p(u / tau) / np.log1p(1.0 / tau)
    exponential = -(1.0 - np.exp(-u / _uniform(rng, runs, 0.3, 1.0)))
    fall = np.where(rng.random((runs, 1)) < 0.5, logarithmic, exponential)
    zero = _flat(rng, runs, u)
    return fall, zero, _probe(rng, runs, u, fall), zero, np.ones_like(u)


def _plateau(rng, runs, u):
    fall = -(1.0 - np.exp(-u / _uniform(rng, runs, 0.03, 0.12)))
    zero = _flat(rng, runs, u)
    return fall, zero, _probe(rng, runs, u, fall), zero, np.ones_like(u)


def _flat_probe(rng, runs, u):
    fall = -(1.0 - np.exp(-u / _uniform(rng, runs, 0.03, 0.12)))
    zero = _flat(rng, runs, u)
    return fall, zero, _uniform(rng, runs, 1.0, 1.3) * fall, zero, np.ones_like(u)


def _bend(rng, runs, u):
    """Improving slowly at a constant rate; when the rate decays the loss drops faster and the jitter shrinks."""
    bend = _uniform(rng, runs, 0.55, 0.75)
    tau = _uniform(rng, runs, 0.02, 0.2)
    before = -np.log1p(u / tau) / np.log1p(1.0 / tau)
    drop = -_uniform(rng, runs, 0.1, 0.25) * (1.0 - np.exp(-np.maximum(u - bend, 0.0) / 0.05))
    zero = _flat(rng, runs, u)
    loudness = np.where(u < bend, 1.2, 0.4)
    return before + drop, zero, _probe(rng, runs, u, before + drop), zero, loudness


def _double_descent(rng, runs, u, height=(0.02, 0.08), length=(0.25, 0.5)):
    first = _uniform(rng, runs, 0.12, 0.25)
    duration = _uniform(rng, runs, *length) * first * 2.0
    fall = -(1.0 - np.exp(-4.0 * u / first)) - _uniform(rng, runs, 0.1, 0.3) * np.clip(
        (u - first - duration) / (1.0 - first - duration), 0.0, 1.0
    )
    phase = np.clip((u - first) / duration, 0.0, 1.0)
    rise = _uniform(rng, runs, *height) * np.sin(np.pi * phase) ** 2
    return fall, rise, _probe(rng, runs, u, fall), _flat(rng, runs, u), np.ones_like(u)


def _deep_double_descent(rng, runs, u):
    return _double_descent(rng, runs, u, height=(0.2, 0.5), length=(0.5, 1.2))


def _late_hump(rng, runs, u):
    fall, rise, at = _turning(rng, runs, u, (0.25, 0.5), (1.5, 2.5), (1.5, 2.5))
    hump = _uniform(rng, runs, 0.1, 0.2) * np.exp(-0.5 * ((u / at - _uniform(rng, runs, 0.3, 0.5)) / 0.06) ** 2)
    return fall, rise + hump, _probe(rng, runs, u, fall), _flat(rng, runs, u), np.ones_like(u)


def _late_fall(rng, runs, u):
    fall, zero, _, _, loudness = _plateau(rng, runs, u)
    fall = fall - 0.25 * (1.0 - np.exp(-np.maximum(u - _uniform(rng, runs, 0.5, 0.7), 0.0) / 0.08))
    return fall, zero, _probe(rng, runs, u, fall), zero, loudness


def _no_gain(rng, runs, u):
    rise = _uniform(rng, runs, 0.3, 2.0) * u ** _uniform(rng, runs, 0.5, 1.5)
    zero = _flat(rng, runs, u)
    return zero, rise, zero, 0.5 * rise, np.ones_like(u)


def _nothing(rng, runs, u):
    zero = _flat(rng, runs, u)
    return zero, zero, zero, zero, np.ones_like(u)


SHAPES = {
    "overfit": _overfit,
    "slow overfit": _slow_overfit,
    "early hump": _early_hump,
    "heavy tails, overfit": _overfit,
    "plateau, probe falls": _plateau,
    "still improving": _improving,
    "heavy tails, improving": _improving,
    "plateau, probe flat": _flat_probe,
    "learning-rate bend": _bend,
    "double descent": _double_descent,
    "deep double descent": _deep_double_descent,
    "no gain": _no_gain,
    "nothing to learn": _nothing,
    "late hump": _late_hump,
    "half improve, half worsen": _overfit,
    "slow drift": _improving,
    "late fall": _late_fall,
}
