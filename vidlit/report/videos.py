"""Sample videos inside the page: as data while there is room, as links to their files after that."""

from __future__ import annotations

import base64
import os
import re
from dataclasses import dataclass
from pathlib import Path

from vidlit.runs.record import RunRecord

_AUDIT = re.compile(r"audit_(\d+)_")
_OVER_TIME = re.compile(r"(prompt|audit)_(\d+)_")
"""What is sampled again and again; of the user's own prompts also at the end."""
MAX_PROMPTS = 6
"""Audited prompts shown over time."""
MAX_AUDITS = 6
"""Audits shown of each, spread over the run."""


@dataclass(frozen=True)
class ShownVideo:
    """One video of the page."""

    source: str
    """A data address, or a path relative to the page."""
    caption: str
    step: int


@dataclass(frozen=True)
class Copy:
    """A sample that came near to a training clip."""

    video: ShownVideo | None
    pair: bool
    """Whether the video already shows the training clip beside it."""
    sample: str
    nearest: str
    ratio: float
    limit: float
    step: int


class VideoBudget:
    """Turns files into addresses: inlined until the budget is spent.

    Args:
        page: file the page is written to; links are relative to it.
        megabytes: of video files that may be inlined.
    """

    def __init__(self, page: Path, megabytes: float) -> None:
        self._folder = page.resolve().parent
        self._left = megabytes * 1e6

    def show(self, path: Path, caption: str, step: int) -> ShownVideo:
        """A video for the page."""
        size = path.stat().st_size
        if size <= self._left:
            self._left -= size
            source = "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
        else:
            source = Path(os.path.relpath(path.resolve(), self._folder)).as_posix()
        return ShownVideo(source, caption, step)


def kept_samples(run: RunRecord, budget: VideoBudget) -> list[ShownVideo]:
    """Videos made with the weights that are kept; where there are none, the latest that are no audit's."""
    made = {
        step: [path for path in paths if not _AUDIT.match(path.name) and not is_pair(path)]
        for step, paths in run.samples.items()
    }
    made = {step: paths for step, paths in made.items() if paths}
    if not made:
        return []
    step = run.summary.get("kept_step")
    step = step if step in made else max(made)
    return [budget.show(path, run.caption(path), step) for path in made[step]]


def over_time(run: RunRecord, budget: VideoBudget) -> list[list[ShownVideo]]:
    """The same prompt and noise at one audit after another: a row for each prompt, the user's own first."""
    return [*_over_time(run, budget, "prompt"), *_over_time(run, budget, "audit")]


def _over_time(run: RunRecord, budget: VideoBudget, kind: str) -> list[list[ShownVideo]]:
    audits: dict[int, dict[int, Path]] = {}
    for step, paths in run.samples.items():
        found = {path: _OVER_TIME.match(path.name) for path in paths if not is_pair(path)}
        numbered = {int(told[2]): path for path, told in found.items() if told is not None and told[1] == kind}
        if numbered:
            audits[step] = numbered
    steps = _spread(sorted(audits), MAX_AUDITS)
    prompts = _spread(sorted({number for found in audits.values() for number in found}), MAX_PROMPTS)
    rows = [
        [
            budget.show(audits[step][number], run.caption(audits[step][number]), step)
            for step in steps
            if number in audits[step]
        ]
        for number in prompts
    ]
    return [row for row in rows if row]


def near_copies(run: RunRecord, budget: VideoBudget) -> list[Copy]:
    """The nearest sample of each audit that found copies, and of the last one in any case: it shows how far it is."""
    shown: dict[str, Copy] = {}
    verdicts = run.verdicts("copies")
    for verdict in verdicts:
        evidence = verdict.evidence
        if "sample" not in evidence or not (evidence["copies"] or verdict is verdicts[-1]):
            continue
        sample, pair, step = str(evidence["sample"]), evidence.get("pair"), int(evidence["step"])
        caption, path = run.caption(run.path / sample), run.path / str(pair or sample)
        video = budget.show(path, caption, step) if run.holds(path) else None
        nearest, ratio, limit = str(evidence["nearest_clip"]), float(evidence["ratio"]), float(evidence["limit"])
        shown[sample] = Copy(video, pair is not None, caption, nearest, ratio, limit, step)
    return list(shown.values())


def is_pair(path: Path) -> bool:
    """Whether a file shows a sample beside its nearest training clip."""
    return path.stem.startswith("audit_pair_")


def _spread(values: list[int], count: int) -> list[int]:
    """At most ``count`` of them, first and last among them."""
    if len(values) <= count:
        return values
    return [values[round(k * (len(values) - 1) / (count - 1))] for k in range(count)]
