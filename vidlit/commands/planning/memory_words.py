"""What `vidlit plan` says of memory: of every phase, whether it fits, what would make it fit, what else would."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vidlit.forecast.before_fit import words
from vidlit.forecast.card import GraphicsCard, needs
from vidlit.forecast.memory_forecast import CAPTIONS, TRAINING, MemoryForecast, foretell, gigabytes
from vidlit.forecast.remedies import Option, beyond, fit_to, resolved, single_changes
from vidlit.forecast.step_memory import CannotRunError
from vidlit.whole_files import write_whole

if TYPE_CHECKING:
    from rich.console import Console

_TIGHT = 0.05
"""Of a card: what fits with less left than that may still fail."""


@dataclass(frozen=True)
class MemoryPlan:
    """The forecast of a run, held against a card.

    Args:
        forecast: of the run as it is.
        card: to run on; ``None`` where there is none to judge by.
        chosen: options that the run leaves to the forecast, with what was chosen.
        changes: options that take less, each by itself, and the bytes that a card has to have then.
        costs: of these options, in words.
        room: options that would fit as well, and the bytes.
        fitted: options with which it fits, all together; ``None`` where that was not asked for.
        fitted_needs: the bytes that a card has to have with them.
    """

    forecast: MemoryForecast
    card: GraphicsCard | None
    chosen: Mapping[str, Any]
    changes: Mapping[str, float]
    costs: Mapping[str, str]
    room: Mapping[str, float]
    fitted: Mapping[str, Any] | None = None
    fitted_needs: float = 0.0

    @property
    def fits(self) -> bool | None:
        """Whether it does; ``None`` without a card."""
        return None if self.card is None else self.forecast.needs <= self.card.memory

    @property
    def captions_fit(self) -> bool:
        """Whether their encoder does, of which no option takes less."""
        return self.card is None or needs(self.forecast.phase(CAPTIONS).peak) <= self.card.memory

    @property
    def fitted_fits(self) -> bool:
        """Whether it fits with the options that were looked for, wherever captions are encoded."""
        return self.card is not None and self.fitted_needs <= self.card.memory

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return self.forecast.as_dict() | {
            "card": None if self.card is None else {"name": self.card.name, "memory_gb": self.card.memory / 1e9},
            "fits": self.fits,
            "chosen": dict(self.chosen),
            "captions_fit": self.captions_fit,
            "takes_less": {option: needed / 1e9 for option, needed in self.changes.items()},
            "costs": dict(self.costs),
            "would_fit_too": {option: needed / 1e9 for option, needed in self.room.items()},
            "fitted": None if self.fitted is None else dict(self.fitted),
            "fitted_needs_gb": self.fitted_needs / 1e9,
        }


def plan_memory(run: Option, card: GraphicsCard | None, *, fit: bool) -> MemoryPlan:
    """The forecast of a run.

    Args:
        run: as it is asked for.
        card: to run on.
        fit: look for options with which it fits.
    """
    with suppress(CannotRunError):  # the forecast says why
        run = resolved(run, None if card is None else card.memory)
    chosen, run = run.options, Option(run.module, run.setting, run.buckets)
    forecast = foretell(run.module, run.setting)
    if card is None or forecast.phase(TRAINING).why:
        return MemoryPlan(forecast, card, chosen, {}, {}, {})
    fits = run.needs <= card.memory
    found = [] if fits else single_changes(run, memory=card.memory)
    changes = {words(each): needed for each, needed in found}
    costs = {words(each): "; ".join(each.costs.values()) for each, _ in found}
    room = dict(beyond(run, card.memory)) if fits else {}
    if not fit:
        return MemoryPlan(forecast, card, chosen, changes, costs, room)
    fitted = fit_to(run, card.memory)
    return MemoryPlan(forecast, card, chosen, changes, {**costs, **fitted.costs}, room, fitted.options, fitted.needs)


def write_fitted(plan: MemoryPlan, path: Path) -> str:
    """Write the options that make it fit as a YAML file to give after one's own, if there are some.

    Args:
        plan: for which they were looked for.
        path: of the file.

    Returns:
        What is to be said of it.
    """
    assert plan.fitted is not None
    if not plan.fitted:
        return f"no option is needed, or would help, on {plan.card}: no file was written."
    nested: dict[str, Any] = {}
    for name, value in plan.fitted.items():
        *above, last = name.split(".")
        inner = nested
        for part in above:
            inner = inner.setdefault(part, {})
        inner[last] = value
    head = (
        f"# With these options it needs {plan.fitted_needs / 1e9:.1f} GB of {plan.card}: a forecast.\n"
        "# Give this file after your own: --config yours.yaml --config this.yaml\n"
    )
    write_whole(path, (head + yaml.safe_dump(nested, sort_keys=False)).encode())
    what = "with which it fits" if plan.fitted_fits else f"that take least, {plan.fitted_needs / 1e9:.1f} GB, too much"
    return f"{path} has the options {what}: give it after your own, as a second --config."


def print_memory(plan: MemoryPlan, console: Console | None = None) -> None:
    """Show it to a person.

    Args:
        plan: to show.
        console: to print to.
    """
    from rich.console import Console
    from rich.table import Table

    from vidlit.runs import wording

    console = console or Console()
    say = partial(wording.say, console=console)
    forecast, card = plan.forecast, plan.card
    say(
        f"memory of a GPU, a forecast, for {forecast.batch_size} clip{'s' * (forecast.batch_size > 1)} of "
        f"{forecast.bucket}, which take{'s' * (forecast.batch_size == 1)} most:"
    )
    table = Table("phase")
    table.add_column("GB at most", justify="right")
    table.add_column("of which")
    for phase in forecast.phases:
        if phase.held is None:
            table.add_row(phase.name, "unknown", phase.why[:80])
            continue
        parts = sorted(gigabytes(phase.held).items(), key=lambda row: -row[1])
        table.add_row(phase.name, f"{phase.peak / 1e9:.1f}", ", ".join(f"{kind} {size:.1f}" for kind, size in parts))
    console.print(table)
    for name, value in plan.chosen.items():
        say(f"{name} is auto: {value} was chosen")
    say(
        f"a card needs about {forecast.needs / 1e9:.1f} GB, {(forecast.needs - forecast.peak) / 1e9:.1f} GB of it for "
        "CUDA's context and what lies between tensors. Main memory while the base is loaded: "
        f"{forecast.main_memory / 1e9:.1f} GB"
    )
    if card is None:
        return
    left = (card.memory - forecast.needs) / 1e9
    if plan.fits:
        tight = ", which is tight" if left < _TIGHT * card.memory / 1e9 else ""
        say(f"It fits {card}, with {left:.1f} GB to spare{tight}.")
    else:
        say(f"It does not fit {card}: {-left:.1f} GB are missing.")
    if not plan.captions_fit:
        say(
            "Captions do not fit with any option: run `vidlit encode` with the same config on a larger card, or on the "
            "CPU (--trainer.accelerator cpu), before the fit."
        )
    for what, options in (("What takes less, and needs then", plan.changes), ("Room for", plan.room)):
        if options:
            say(f"{what}:")
            for option, needed in options.items():
                fits = " (fits)" if option in plan.changes and needed <= card.memory else ""
                costs = f"; cost: {plan.costs[option]}" if option in plan.costs else ""
                say(f"  {option}: {needed / 1e9:.1f} GB{fits}{costs}")
