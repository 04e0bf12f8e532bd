"""A bar while videos are sampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def track_sampling(chunks: Sequence[list[int]], shown: bool) -> Iterator[list[int]]:
    """Go through the rows of videos to sample, with a bar and the time left on a terminal.

    Args:
        chunks: rows that are sampled at once.
        shown: whether this rank shows anything.
    """
    console = Console()
    if not (shown and console.is_interactive):
        yield from chunks
        return
    columns = (TextColumn("sampling"), MofNCompleteColumn(), BarColumn(bar_width=20), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=sum(len(rows) for rows in chunks))
        for rows in chunks:
            yield rows
            bar.update(task, advance=len(rows))
