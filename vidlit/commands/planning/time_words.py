"""What `vidlit plan` says of time and cost."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vidlit.errors import UserError
from vidlit.training.flops import PEAK_TERAFLOPS, known_card

if TYPE_CHECKING:
    from rich.console import Console

    from vidlit.forecast.time_forecast import TimeForecast


def check_card(name: str) -> str:
    """A GPU's name as the table of peaks has it.

    Raises:
        UserError: it does not.
    """
    known = known_card(name)
    if known is None:
        raise UserError(f"--gpu {name}: how fast it is is not known. Known are {', '.join(PEAK_TERAFLOPS)}.")
    return known


def print_time(time: TimeForecast, console: Console | None = None) -> None:
    """Show it to a person.

    Args:
        time: to show.
        console: to print to.
    """
    from vidlit.runs import wording

    say = partial(wording.say, console=console)
    seconds, operations = time.seconds_per_step, f"{time.tera_operations_per_step:,.3g} TFLOP a step"
    if seconds is None or time.efficiency is None:
        say(f"time: {operations}; how long that takes is not said, for {time.source}: name it with --gpu H100")
        return
    gpus = f"{time.gpus} x {time.gpu}" if time.gpus > 1 else time.gpu
    say(
        f"time, an estimate: {_seconds(seconds)} a step ({operations}) on {gpus}, at {100 * time.efficiency:.1f} % of "
        f"its peak, {time.source}"
    )
    ends = [
        (f"to step {time.max_steps:,}", time.hours_to_max_steps, time.checks_share),
        (
            f"to step {time.typical_stop_step:,}, by when each recording was seen {time.typical_stop_exposures:.0f} "
            "times and runs typically stop by themselves",
            time.hours_to_typical_stop,
            time.checks_share_to_typical_stop,
        ),
    ]
    for where, hours, checks in ends if time.typical_stop_step < time.max_steps else ends[:1]:
        cost = time.cost(hours)
        paid = "" if cost is None else f", {cost:.2f} at {time.gpu_price:g} a GPU hour"
        audits = f" and audits (at most {100 * time.audits_share:.0f} %)" if time.audits_share else ""
        say(f"  {_seconds(3600 * (hours or 0))} {where}{paid}, checks ({100 * checks:.0f} %){audits} with it")
    say("  encoding before it and samples at the end are not in it, nor what several GPUs have to tell each other")


def _seconds(seconds: float) -> str:
    if seconds < 0.1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
