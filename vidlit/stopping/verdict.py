"""What a signal reports after a check, and how the verdicts of all signals become one decision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Action = Literal["continue", "warn", "stop"]
Mode = Literal["stop", "warn", "off"]

_SEVERITY: dict[Action, int] = {"continue": 0, "warn": 1, "stop": 2}


@dataclass(frozen=True)
class Verdict:
    """One signal's finding after one check.

    Args:
        signal: Name of the signal, such as "copies".
        action: What the signal asks for.
        reason: One plain sentence with the numbers, for the user.
        evidence: The numbers behind the sentence; always finite, so that they can be written as JSON.
    """

    signal: str
    action: Action
    reason: str
    evidence: dict[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """What all signals together decide after one check.

    Args:
        action: The strongest action that any signal is allowed to ask for.
        signals: The signals that ask for it, in the order of their verdicts; empty on "continue".
        reason: Their reasons, joined; of all signals on "continue".
        verdicts: The verdicts after the policy: none of a signal that is "off", no "stop" of one set to "warn".
    """

    action: Action
    signals: tuple[str, ...]
    reason: str
    verdicts: tuple[Verdict, ...]


def join_verdicts(verdicts: Iterable[Verdict], modes: Mapping[str, Mode]) -> Decision:
    """Joins verdicts into the strongest action that their modes allow.

    Args:
        verdicts: One verdict per signal; any order, any number.
        modes: What each signal may do, by name: "stop" the run, at most "warn", or be "off". Memorising is a policy,
            not a law: who wants one subject learned closely sets "copies" to "warn" or "off".

    Raises:
        ValueError: If a verdict's signal has no mode.
    """
    heard: list[Verdict] = []
    for verdict in verdicts:
        if verdict.signal not in modes:
            raise ValueError(f"no mode for signal {verdict.signal!r}; known: {', '.join(modes)}")
        mode = modes[verdict.signal]
        if mode == "warn" and verdict.action == "stop":
            verdict = replace(verdict, action="warn")
        if mode != "off":
            heard.append(verdict)
    actions: list[Action] = ["continue", *(verdict.action for verdict in heard)]
    action = max(actions, key=_SEVERITY.__getitem__)
    deciding = [verdict for verdict in heard if verdict.action == action]
    return Decision(
        action=action,
        signals=() if action == "continue" else tuple(verdict.signal for verdict in deciding),
        reason=" ".join(verdict.reason for verdict in deciding),
        verdicts=tuple(heard),
    )
