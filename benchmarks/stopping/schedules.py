"""The rule at the schedule that ships, on users' runs in optimizer steps: what it stops, and what that costs.

The curves are those of :mod:`benchmarks.stopping.curves`, whose unit is the run that they were drawn for, ``steps`` of
a user. Here checks fall where a schedule puts them, and

- jitter is correlated in time, over ``MEMORY`` optimizer steps;
- a check costs its evaluations, and fewer of them are noisier: each recording's own jitter is that of 4 noise levels in
  the frozen curves and has ``TWO_LEVELS`` times the variance at 2;
- ``max_steps`` may be set too high, 10 times.

Reported are

- cost: training until the stop and all checks, over training until the minimum of the noise-free curve without any
  check, which only an oracle could do; overshoot: the same without the checks, less one;
- missed: runs that overfit, or lie on a plateau, and are not stopped within ``max_steps``;
- premature: stopped before it was right; false: stopped where every stop is wrong;
- regret: what the kept weights lose against the lowest point of the noise-free curve, as a share of the gain, on clips
  that no rule sees (they share the common jitter, since the weights do).

Scenarios for which nothing was aimed at are shown apart: premature or false stops, and where runs without gain end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.stopping.curves import (
    ADDED,
    COMMON_SHARE,
    JITTERS,
    NEVER_RIGHT,
    SCENARIOS,
    SHAPES,
    SHOWN_ONLY,
    WARMUP,
    WITH_ORACLE,
    Array,
    videos_around,
)
from benchmarks.stopping.rules import OTHERS, ask_at_every_check, first_of, twelve_lines
from vidlit.stopping import rows, rule, schedule
from vidlit.stopping.curves import without_jumps
from vidlit.stopping.schedule import (
    TRAINING_EVALUATIONS,
    CheckSchedule,
    check_schedule,
    scored_train_clips,
    scored_val_clips,
)

MEMORY, LONG_MEMORY = 6.0, 20.0
"""Optimizer steps over which jitter is correlated: of training from scratch, and of LoRA, as measured on real clips
(``python -m benchmarks.stopping --real``)."""
TWO_LEVELS = 1.16
"""Variance of a recording's own jitter at 2 noise levels over that at 4, measured there, too."""
FINE = 2000  # points on which the noise-free curve is known
PLATEAU = "plateau, probe falls"
HALF, DRIFT = "half improve, half worsen", "slow drift"
ALL = (*SCENARIOS, *ADDED)
NOTHING = ("no gain", "nothing to learn")
SHOWN = (*SHOWN_ONLY, "late fall")  # apart: nothing was aimed at
TURNING = (*WITH_ORACLE, "late hump", HALF)
AIMED_AT = tuple(scenario for scenario in ALL if scenario not in SHOWN)
WITH_NOTHING = (*AIMED_AT, "nothing to learn")
CONSTANTS = {  # other values of the rule's and the schedule's
    "SETTLING": (1, 2),
    "SURE": (2.0,),
    "STRETCH": (2, 5),
    "PLATEAU_PACE": (0.1, 0.25),
    "PLATEAU_Z": (1.0, 2.0),
    "PLATEAU_TOLERANCE": (0.01, 0.1),
    "FIRST_SHARE": (0.15, 0.6),
    "MAX_ROWS": (24, 48),
}
DRIFTS, DRIFT_MEMORY = 0.03, 0.1  # of the gain, of the run
METRICS = ("cost", "overshoot", "missed overfit", "missed plateau", "premature", "false", "nothing", "end", "regret")


@dataclass(frozen=True)
class User:
    """Somebody's run.

    Args:
        batch: samples of a step.
        steps: for which the curves were drawn; ``max_steps``, where it is not too high.
        groups: recordings of the validation clips.
    """

    batch: int
    steps: int
    groups: int


USERS = (User(1, 500, 6), User(1, 2000, 12), User(4, 2000, 8), User(8, 10_000, 50))


@dataclass(frozen=True)
class Way:
    """A way to check.

    Args:
        ships: as `fit` does; else 16 checks of 8 + 8 clips at 4 noise levels, as it did before.
        condensed: whether the rule sees evenly spaced means.
        rule: of :data:`benchmarks.stopping.rules.OTHERS`; ours by default.
        too_high: ``max_steps`` over the user's ``steps``.
        memory: of the jitter, in optimizer steps.
    """

    ships: bool = True
    condensed: bool = True
    rule: str = ""
    too_high: int = 1
    memory: float = MEMORY

    def schedule(self, user: User) -> tuple[list[int], int, int, int]:
        """Steps of all checks with step 0, validation clips, training clips, noise levels."""
        planned = user.steps * self.too_high
        if not self.ships:
            return [0, *CheckSchedule(planned // 16, doubles=False).checks(planned)], 8, 8, 4
        val = scored_val_clips(user.groups)
        train = scored_train_clips(val)
        return [0, *check_schedule(user.batch, 2 * (val + train)).checks(planned)], val, train, 2


TWELVE = "twelve lines"
SHIPS = "**doubling, as it ships**"
WAYS = {
    "16 checks, as before": Way(ships=False, condensed=False),
    SHIPS: Way(),
    "the same on checks as they come": Way(condensed=False),
    "the same, longer jitter": Way(memory=LONG_MEMORY),
    "16 checks, `max_steps` 10 times too high": Way(ships=False, condensed=False, too_high=10),
    "doubling, 10 times too high": Way(too_high=10),
    "the twelve-line rule at the same checks": Way(rule=TWELVE),
    **{f"{rule} at the same checks": Way(rule=rule) for rule in OTHERS},
}


def measure_all(runs: int, seed: int) -> dict[str, Any]:
    """Mean over cells and worst cell of every number, by way to check."""
    return {name: _summary(dict(_cells(way, runs, seed))) for name, way in WAYS.items()}


def measure_shown(runs: int, seed: int) -> dict[str, Any]:
    """Mean over cells and worst cell of what each scenario apart has, as it ships."""
    return {scenario: _summary(dict(_cells(Way(), runs, seed, (scenario,)))) for scenario in SHOWN}


def measure_constants(runs: int, seed: int) -> dict[str, Any]:
    """The same for other values of the rule's constants, one at a time."""
    found = {"as they ship": _summary(dict(_cells(Way(), runs, seed, WITH_NOTHING)))}
    for name, values in CONSTANTS.items():
        for value in values:
            with ExitStack() as stack:
                for module in (rule, schedule, rows):
                    if hasattr(module, name):
                        stack.enter_context(patch.object(module, name, value))
                found[f"`{name}` {value:g}"] = _summary(dict(_cells(Way(), runs, seed, WITH_NOTHING)))
    return found


def _cells(
    way: Way, runs: int, seed: int, scenarios: tuple[str, ...] = AIMED_AT
) -> Iterator[tuple[str, dict[str, float]]]:
    for scenario in scenarios:
        if way.too_high > 1 and scenario not in (*TURNING, PLATEAU):
            continue  # a curve that improves to the end of its run has no meaning beyond it
        for user in USERS:
            for jitter in JITTERS:
                found = one_cell(scenario, user, jitter, way, runs, seed)
                yield f"{scenario}, batch {user.batch}, {user.steps} steps, jitter {jitter:g}", found


def one_cell(scenario: str, user: User, jitter: float, way: Way, runs: int, seed: int) -> dict[str, float]:
    """Draws runs and stops them; means over them."""
    key = [seed, ALL.index(scenario), USERS.index(user), round(1000 * jitter)]
    checks, num_val, num_train, levels = way.schedule(user)
    steps = np.array(checks)
    fine = np.linspace(0.0, way.too_high, FINE * way.too_high + 1)
    truth_fine = np.add(*SHAPES[scenario](np.random.default_rng(key), runs, fine)[:2])
    rng = np.random.default_rng(key)
    u = steps / user.steps
    memory = way.memory / user.steps
    fall, rise, probe_fall, probe_rise, loudness = SHAPES[scenario](rng, runs, u)
    lowest = truth_fine.min(axis=1)
    gain = np.where(scenario in NOTHING, 1.0, -lowest)[:, None]
    heavy = scenario.startswith("heavy")
    level = jitter * gain * loudness
    own = math.sqrt((1.0 - COMMON_SHARE) * 12 * (TWO_LEVELS if levels == 2 else 1.0)) * level[..., None]
    common = [math.sqrt(COMMON_SHARE) * level * _noise(rng, (runs, len(u)), u, memory, heavy) for _ in range(2)]
    common[1] = 0.5 * common[0] + math.sqrt(0.75) * common[1]
    if scenario == DRIFT:
        wander = DRIFTS * gain * _noise(rng, (runs, len(u)), u, DRIFT_MEMORY, heavy=False)
        common = [each + wander - wander[:, :1] for each in common]
    sides = []
    for (a, b), shared, videos in (
        ((fall, rise), common[0], min(user.groups, num_val)),
        ((probe_fall, probe_rise), common[1], num_train),
    ):
        noise = _noise(rng, (runs, len(u), videos), u, memory, heavy)
        of_each = videos_around(rng, a, b, videos)
        if scenario == HALF:
            of_each += b[..., None] * (np.resize((2.0, 0.0), videos) * (videos / (2.0 * (-(-videos // 2)))) - 1.0)
        side = of_each + shared[..., None] + own * noise
        side[:, 0] = 0.0
        sides.append(side)
    population = fall + rise + common[0]
    population[:, 0] = 0.0

    size = np.exp(rng.uniform(np.log(0.005), np.log(0.5), (runs, 1, 1))) / gain[..., None]
    val, probe = (side * size for side in sides)
    if way.rule == TWELVE:
        stop = ask_at_every_check(steps, val, probe, warmup_steps=0, judge=twelve_lines)
    elif way.rule:
        stop = first_of(OTHERS[way.rule](steps, val.mean(axis=2)))
    else:
        warmup = math.ceil(WARMUP * user.steps)
        stop = ask_at_every_check(steps, val, probe, warmup_steps=warmup, condensed=way.condensed)
    stopped = stop < len(steps) - 1
    ranked = np.where(np.arange(len(steps)) <= stop[:, None], without_jumps(val.mean(axis=2), val), np.inf)
    kept = population[np.arange(runs), ranked.argmin(axis=1)]
    end = np.where(stopped, steps[stop], user.steps * way.too_high)

    if scenario == "no gain":
        return {"end": float((end / user.steps).mean())}
    if scenario == "nothing to learn":
        return {"nothing": float(stopped.mean())}
    found = {"regret": float((np.maximum(kept - lowest, 0.0) / -lowest).mean())}
    if scenario in NEVER_RIGHT:
        return {**found, "false": float(stopped.mean())}
    if scenario in TURNING:
        oracle = np.maximum(fine[truth_fine.argmin(axis=1)] * user.steps, 1.0)
        right_from = oracle
        each = (num_val + num_train) * levels / (TRAINING_EVALUATIONS * user.batch)
        found["cost"] = float(((end + each * (stop + 1)) / oracle).mean())
        found["overshoot"] = float((end / oracle - 1.0).mean())
        found["missed overfit"] = float((~stopped).mean())
    elif scenario == PLATEAU:
        right_from = fine[(truth_fine <= 0.99 * lowest[:, None]).argmax(axis=1)] * user.steps
        found["missed plateau"] = float((~stopped).mean())
    elif scenario == DRIFT:
        right_from = fine[(truth_fine <= 0.98 * lowest[:, None]).argmax(axis=1)] * user.steps
    else:  # double descent, late fall: no stop is right
        right_from = np.full(runs, np.inf)
    return {**found, "premature": float((stopped & (end < right_from)).mean())}


def _noise(rng: np.random.Generator, shape: tuple[int, ...], u: Array, memory: float, heavy: bool) -> Array:
    """Jitter of unit scale at times ``u`` (J,), correlated along axis 1; heavy as in the frozen curves."""
    white: Array = rng.standard_t(2.5, shape) / 1.2 if heavy else rng.standard_normal(shape)
    if heavy:
        white = white * np.where(rng.random(shape) < 0.02, 6.0, 1.0)
    for j, rho in enumerate(np.exp(-np.diff(u) / memory), start=1):
        white[:, j] = rho * white[:, j - 1] + math.sqrt(1.0 - rho * rho) * white[:, j]
    return white


def _summary(cells: dict[str, dict[str, float]]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for metric in METRICS:
        values: dict[str, float] = {cell: found[metric] for cell, found in cells.items() if metric in found}
        if values:
            worst = max(values, key=values.__getitem__)
            mean = float(np.mean(list(values.values())))
            summary[metric] = {"mean": mean, "worst": values[worst], "worst_cell": worst}
    # A rise that passes cannot be told from the start of a lasting one: premature without it, too.
    plain = {cell: found["premature"] for cell, found in cells.items() if "premature" in found and "double" not in cell}
    if plain:
        mean = float(np.mean(list(plain.values())))
        summary["premature, no double descent"] = {"mean": mean, "worst": max(plain.values())}
    return summary


COLUMNS = {
    "cost": "cost",
    "overshoot": "overshoot",
    "missed overfit": "missed overfit",
    "missed plateau": "missed plateau",
    "premature": "premature",
    "premature, no double descent": "premature, no double descent",
    "false": "false",
    "nothing": "stopped, nothing to learn",
    "end": "stopped at, of the run, no gain",
    "regret": "regret",
}


def table(found: dict[str, Any], what: str = "checks") -> list[str]:
    """Markdown: a row for each of what was measured; columns that none has are left out."""
    shown = {metric: head for metric, head in COLUMNS.items() if any(metric in metrics for metrics in found.values())}
    lines = [f"| {what} | " + " | ".join(shown.values()) + " |", "|---" * (len(shown) + 1) + "|"]
    for name, metrics in found.items():
        cells = [_mean_and_worst(metrics[metric]) if metric in metrics else "" for metric in shown]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return lines


def _mean_and_worst(metric: dict[str, float]) -> str:
    digits = 0 if metric["worst"] > 1.0 else 1
    return f"{metric['mean']:.{digits}%} / {metric['worst']:.{digits}%}"
