"""Train, validation and test by recording, never by clip: clips of one recording would give the answer away."""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vidlit.errors import UserError
from vidlit.video.sources import Clip


class Split(NamedTuple):
    """Clips of each side; no group is on two of them."""

    train: list[Clip]
    val: list[Clip]
    test: list[Clip]


@dataclass(frozen=True)
class Fold:
    """One of several equal parts of the recordings, each used for validation in a run of its own.

    Args:
        number: number of the fold, from 0.
        of: number of folds.

    Raises:
        UserError: there is no such part.
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of or self.of < 2:
            raise UserError(f"fold {self.number} of {self.of}: folds count from 0, and there must be 2 or more.")


@dataclass(frozen=True)
class Splitting:
    """Which recordings are for training, for validation and for the test.

    A recording is one video, or all files of one ``group``; its clips stay on one side of the split.

    Args:
        val_fraction: share of the recordings for validation, at least one. At 0, or with a single recording, there are
            no validation clips, and only exposures and copies can stop the run.
        test_fraction: share of the recordings for the test, at least one; none at 0.
        fold: part of the recordings for validation instead of ``val_fraction``; set by ``vidlit kfold``.
        train_on_val: whether to train on the validation clips, too; set by ``--refit`` for its second phase.
        max_val_clips: largest number of validation clips scored at a check, spread over recordings; ``None`` for one of
            each recording, from 4 to 16. A quarter as many training clips are scored beside them, at least 4.
        tie_near_duplicates: whether to find videos that show the same and keep them on one side of the split. Identical
            files always stay together.

    Raises:
        UserError: an option is out of range.
    """

    val_fraction: float = 0.2
    test_fraction: float = 0.0
    fold: Fold | None = None
    train_on_val: bool = False
    max_val_clips: int | None = None
    tie_near_duplicates: bool = True

    def __post_init__(self) -> None:
        val, test = self.val_fraction, self.test_fraction
        if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
            raise UserError(
                f"data.split: val_fraction {val} and test_fraction {test} must leave something to train on: 0 or more "
                "each, together below 1."
            )
        if self.max_val_clips is not None and self.max_val_clips < 1:
            raise UserError(
                f"data.split.max_val_clips is {self.max_val_clips}: it must be at least 1, or null for 4 to 16."
            )


def split_by_video(clips: Sequence[Clip], splitting: Splitting, seed: int) -> Split:
    """Split by whole recordings.

    Groups are ranked by a hash of (seed, group), the first ones are for validation: the same on every machine, and
    adding a video moves few others. A single recording is for training.

    Args:
        clips: to split.
        splitting: how. The test's videos are the same with ``train_on_val``, too.
        seed: another seed chooses other videos.

    Raises:
        UserError: there are too few recordings.
    """
    val_fraction, test_fraction, fold = splitting.val_fraction, splitting.test_fraction, splitting.fold
    groups = sorted({clip.source.group for clip in clips}, key=lambda group: _rank(seed, group))
    num_val = max(1, round(val_fraction * len(groups))) if val_fraction else 0
    num_test = max(1, round(test_fraction * len(groups))) if test_fraction else 0
    if len(groups) == 1 and not num_test and fold is None:
        num_val = 0
    if len(groups) <= num_val + num_test:
        raise UserError(
            f"{len(groups)} recording{'s' * (len(groups) != 1)} cannot be split into training, {num_val} for "
            f"validation and {num_test} for the test. Add clips of other videos; or, if one file holds unrelated "
            "scenes, cut it and give each scene its own `group` in metadata.csv"
            + ("; or lower --data.split.test_fraction." if num_test else ".")
        )
    test = groups[num_val : num_val + num_test]
    val = groups[:num_val]
    if fold is not None:
        rest = [group for group in groups if group not in set(test)]
        if len(rest) < fold.of:
            raise UserError(f"{len(rest)} recordings cannot be divided into {fold.of} folds: choose fewer.")
        val = rest[fold.number :: fold.of]
    held_out = dict.fromkeys([] if splitting.train_on_val else val, "val") | dict.fromkeys(test, "test")
    sides: dict[str, list[Clip]] = {"train": [], "val": [], "test": []}
    for clip in clips:
        sides[held_out.get(clip.source.group, "train")].append(clip)
    return Split(**sides)


def spread_over_videos(clips: Sequence[Clip], num_clips: int, seed: int) -> list[Clip]:
    """Some of the clips, spread evenly over recordings: what is scored at every check.

    Args:
        clips: of one side of the split.
        num_clips: wanted; fewer where there are not as many.
        seed: another seed picks others.
    """
    by_group: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        by_group[clip.source.group].append(clip)
    # Groups in turn, in the order of their ranks: of a million clips only those of the groups that get their turn are
    # ranked.
    waiting = deque(sorted(by_group, key=lambda group: _rank(seed, group)))
    chosen: list[Clip] = []
    ranked: dict[str, list[Clip]] = {}
    while waiting and len(chosen) < num_clips:
        group = waiting.popleft()
        if group not in ranked:
            members = sorted(by_group[group], key=lambda clip: _rank(seed, clip.clip_id))
            ranked[group] = members[::-1]
        chosen.append(ranked[group].pop())
        if ranked[group]:
            waiting.append(group)
    return sorted(chosen, key=lambda clip: clip.clip_id)


def _rank(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=16).digest()
