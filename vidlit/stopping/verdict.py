"""What a signal reports after a check, and how the verdicts of all signals become one decision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Action = Literal["continue", "warn", "stop"]
Mode = Literal["stop", "warn", "off"]
StopAt = Literal["first", "last"]
"""Of several parts of a model, the one that stops the run when it asks for it."""

_SEVERITY: dict[Action, int] = {"continue": 0, "warn": 1, "stop": 2}


@dataclass(frozen=True)
class Verdict:
    """One signal's finding after one check.

    Args:
        signal: Name of the signal, such as "copies".
        action: What the signal asks for.
        reason: One plain sentence with the numbers, for the user.
        evidence: The numbers behind the sentence; always finite, so that they can be written as JSON.
        fatal: Training has broken down; no mode but "off" makes less of it.
    """

    signal: str
    action: Action
    reason: str
    evidence: dict[str, float | int | str] = field(default_factory=dict)
    fatal: bool = False


@dataclass(frozen=True)
class Decision:
    """What all signals together decide after one check.

    Args:
        action: The strongest action that any signal is allowed to ask for.
        signals: The signals that ask for it, in the order of their verdicts; empty on "continue".
        reason: Their reasons, joined; of all signals on "continue".
        verdicts: The verdicts after the policy: none of a signal that is "off", no "stop" of one set to "warn" that
            is not fatal.
    """

    action: Action
    signals: tuple[str, ...]
    reason: str
    verdicts: tuple[Verdict, ...]


def join_parts(parts: Mapping[str, Verdict], stop_at: StopAt = "last") -> Verdict:
    """One verdict on a run of several parts that are judged apart, such as two experts, or video and sound.

    Each part has a curve, a verdict and a best step of its own. A run of one part has that part's verdict.

    Args:
        parts: One verdict a part, of one signal, by the part's name.
        stop_at: Stop when the "first" part asks for it, or the "last"; until then a part that is done is a warning.

    Returns:
        The verdict, with the sentences of the parts that decide it, each after its name, and all evidence under
        ``<part>/<name>``.

    Raises:
        ValueError: If there is no part.
    """
    if not parts:
        raise ValueError("a run has one part at least")
    if len(parts) == 1:
        return next(iter(parts.values()))
    actions = [verdict.action for verdict in parts.values()]
    fatal = any(verdict.fatal for verdict in parts.values())
    action = max(actions, key=_SEVERITY.__getitem__)
    if action == "stop" and stop_at == "last" and not fatal and any(each != "stop" for each in actions):
        action = "warn"
    heard = {name: verdict for name, verdict in parts.items() if _SEVERITY[verdict.action] >= _SEVERITY[action]}
    return Verdict(
        next(iter(parts.values())).signal,
        action,
        " ".join(f"{name}: {verdict.reason}" for name, verdict in heard.items()),
        {f"{name}/{key}": value for name, verdict in parts.items() for key, value in verdict.evidence.items()},
        fatal,
    )


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
        if mode == "warn" and verdict.action == "stop" and not verdict.fatal:
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
