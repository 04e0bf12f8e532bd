"""What the signals as they ship say of audited runs, against what was true."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vidlit.stopping.copies import MIN_COPIES, AuditHistory, judge_copies
from vidlit.stopping.lost_diversity import judge_diversity

Row = dict[str, Any]
SHARE = 0.25
"""Of the training prompts that are copies (two at least), or of the pairs of samples that are alike: shows a sign."""
PLENTY = "honest"
"""How the names of kinds begin that have plenty of data or are a short fine-tune."""


class Outcome(NamedTuple):
    """Steps at which one run first showed a sign, and at which its signal first warned and first stopped; its last."""

    shown: int | None
    warned: int | None
    stopped: int | None
    last: int

    @property
    def in_time(self) -> bool:
        """Whether the signal spoke by the first audit that shows the sign."""
        return self.shown is not None and self.warned is not None and self.warned <= self.shown

    @property
    def early(self) -> bool:
        """Whether it stopped before the sign showed, or without."""
        return self.stopped is not None and (self.shown is None or self.stopped < self.shown)


def first(steps: Sequence[int], flags: Iterable[bool]) -> int | None:
    """The first step that is flagged; step 0, the base model's, never is."""
    return next((step for step, flag in zip(steps, flags, strict=True) if step and flag), None)


def steps(row: Row) -> list[int]:
    """Of all audits."""
    return [audit["step"] for audit in row["audits"]]


def copied(row: Row) -> list[bool]:
    """At which audits samples of other noise are copies that those of step 0 were not."""
    near = np.array([audit["near"] for audit in row["audits"]], dtype=bool)
    least = max(MIN_COPIES, SHARE * near.shape[1])
    return [bool(count >= least) for count in (near & ~near[0]).sum(axis=1)]


def collapsed(row: Row) -> list[bool]:
    """At which audits samples of other noise are alike."""
    return [audit["alike"] >= SHARE for audit in row["audits"]]


def say_of_copies(row: Row) -> list[str]:
    """The action of the copies signal at each audit."""
    distances, ratios = (np.array([audit[key] for audit in row["audits"]]) for key in ("distances", "ratios"))
    names = tuple(map(str, range(len(row["groups"]))))
    return [
        judge_copies(
            AuditHistory(
                steps=tuple(steps(row)[:seen]),
                distances=distances[:seen],
                ratios=ratios[:seen],
                trained=np.array(row["trained"], dtype=bool),
                groups=tuple(map(str, row["groups"])),
            ),
            names,
            names,
        ).action
        for seen in range(1, len(row["audits"]) + 1)
    ]


def say_of_diversity(row: Row) -> list[str]:
    """The action of the diversity signal at each audit."""
    varieties = [audit["variety"] for audit in row["audits"]]
    return [
        judge_diversity(steps(row)[:seen], varieties[:seen], row["few_held_out"]).action
        for seen in range(1, len(varieties) + 1)
    ]


SIGNS: dict[str, tuple[Callable[[Row], list[bool]], Callable[[Row], list[str]]]] = {
    "copies": (copied, say_of_copies),
    "diversity": (collapsed, say_of_diversity),
}


def outcome(row: Row, sign: str) -> Outcome:
    """What one run showed of one sign, and when its signal spoke."""
    shown, say = SIGNS[sign]
    said, at = say(row), steps(row)
    return Outcome(
        first(at, shown(row)),
        first(at, (action != "continue" for action in said)),
        first(at, (action == "stop" for action in said)),
        at[-1],
    )


def run_line(row: Row) -> str:
    """One run, for the eye."""
    told = [f"{row['kind']}, {row['clips']}, seed {row['seed']}: best loss at {row['best_step']}"]
    for sign in SIGNS:
        shown, warned, stopped = ("-" if step is None else step for step in outcome(row, sign)[:3])
        told.append(f"{sign} shown {shown}, warned {warned}, stopped {stopped}")
    return "; ".join(told)


def summary_table(rows: Sequence[Row]) -> str:
    """Two tables in Markdown: by kind, and against the aims, on seeds to choose and on seeds to report."""
    return f"{_by_kind(rows)}\n{_aims(rows)}"


def _by_kind(rows: Sequence[Row]) -> str:
    heads = ("shown", "warned in time", "stopped", "others warned", "others stopped")
    lines = [
        "| kind | clips | runs | " + " | ".join(f"{sign}: {head}" for sign in SIGNS for head in heads) + " |",
        "|---|---|" + "---:|" * (1 + len(SIGNS) * len(heads)),
    ]
    for kind, clips in dict.fromkeys((row["kind"], row["clips"]) for row in rows):
        mine = [row for row in rows if (row["kind"], row["clips"]) == (kind, clips)]
        cells = [kind, clips, len(mine)]
        for sign in SIGNS:
            found = [outcome(row, sign) for row in mine]
            shown, others = _sides(found)
            cells += [
                len(shown),
                _of(each.in_time for each in shown),
                _of(each.stopped is not None for each in shown),
                _of(each.warned is not None for each in others),
                _of(each.stopped is not None for each in others),
            ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def _aims(rows: Sequence[Row]) -> str:
    sets = {
        "seeds to choose": [row for row in rows if row["seed"] % 2 == 0],
        "seeds to report": [row for row in rows if row["seed"] % 2],
        "all": list(rows),
    }
    lines = ["| aim | " + " | ".join(sets) + " |", "|---|" + "---:|" * len(sets)]

    def line(aim: str, measure: Callable[[list[Row]], Iterable[bool]]) -> None:
        lines.append(f"| {aim} | " + " | ".join(_of(measure(mine)) for mine in sets.values()) + " |")

    def shown(sign: str, what: Callable[[Outcome], bool], *kinds: str) -> Callable[[list[Row]], list[bool]]:
        return lambda mine: [
            what(each) for each in _sides([outcome(row, sign) for row in mine if row["kind"] in kinds or not kinds])[0]
        ]

    def going_on(sign: str) -> Callable[[list[Row]], list[bool]]:
        return lambda mine: [
            stopped(each) for each in _sides([outcome(row, sign) for row in mine])[0] if each.shown != each.last
        ]

    def others(sign: str, what: Callable[[Outcome], bool]) -> Callable[[list[Row]], list[bool]]:
        return lambda mine: [what(each) for each in _sides([outcome(row, sign) for row in mine])[1]]

    def in_time(each: Outcome) -> bool:
        return each.in_time

    def warned(each: Outcome) -> bool:
        return each.warned is not None

    def stopped(each: Outcome) -> bool:
        return each.stopped is not None

    line("copies: runs warned by the first audit that shows them (90 %)", shown("copies", in_time))
    line("... stopped (75 %)", shown("copies", stopped))
    line("... of those that went on after that audit", going_on("copies"))
    line("... stopped before they showed", shown("copies", lambda each: each.early))
    for motion in ("still", "moving"):
        line(f"... {motion} clips: warned in time", shown("copies", in_time, f"copying, {motion}"))
        line(f"... {motion} clips: stopped", shown("copies", stopped, f"copying, {motion}"))
    line("runs without copies: stopped (1 %)", others("copies", stopped))
    line("... warned", others("copies", warned))
    line("collapse: runs warned by the first audit that shows it", shown("diversity", in_time))
    line("... stopped", shown("diversity", stopped))
    line("... of those that went on after that audit", going_on("diversity"))
    line("... stopped before it showed", shown("diversity", lambda each: each.early))
    line("runs without collapse: stopped", others("diversity", stopped))
    line("... warned", others("diversity", warned))
    line("audits on plenty of data or up to the best step: stopped by diversity (2 %)", _sound_audits("stop"))
    line("... or warned", _sound_audits("warn", "stop"))
    return "\n".join(lines) + "\n"


def _sound_audits(*actions: str) -> Callable[[list[Row]], list[bool]]:
    """Which audits that must be quiet diversity answers so: of plenty of data, or up to the best step; never step 0."""
    return lambda rows: [
        action in actions
        for row in rows
        for step, action in zip(steps(row), say_of_diversity(row), strict=True)
        if step and (row["kind"].startswith(PLENTY) or step <= row["best_step"])
    ]


def _sides(found: list[Outcome]) -> tuple[list[Outcome], list[Outcome]]:
    return [each for each in found if each.shown is not None], [each for each in found if each.shown is None]


def _of(flags: Iterable[bool]) -> str:
    counted = list(flags)
    return f"{sum(counted)} of {len(counted)}" if counted else "-"
