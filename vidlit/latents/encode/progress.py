"""How far encoding is, for people: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LINE_SECONDS = 30.0


class EncodeProgress:
    """Shows clips that are done, with the time that is left.

    Args:
        total: clips to encode.
        what: said of them, where they are not all.
    """

    def __init__(self, total: int, what: str = "") -> None:
        self.total, self.what = total, what
        self.done = self.failed = 0
        self.began = self.last_line = time.monotonic()
        self.console = Console(stderr=True)
        self.bar: Progress | None = None

    def __enter__(self) -> Self:
        if self.console.is_interactive:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=self.console)
            self.bar.start()
            self.task = self.bar.add_task(f"Encoding clips{self.what}", total=self.total)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self, done: int, failed: int) -> None:
        """Count clips.

        Args:
            done: clips that are encoded or quarantined.
            failed: of these, the quarantined ones.
        """
        self.done += done
        self.failed += failed
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done)
        elif (now := time.monotonic()) - self.last_line > _LINE_SECONDS and self.done:
            self.last_line = now
            left = (self.total - self.done) * (now - self.began) / self.done
            left_text = f"{left:.0f} s" if left < 100 else f"{left / 60:.0f} min"
            self.console.print(
                f"encoded {self.done} of {self.total} clips, {self.failed} quarantined, about {left_text} left"
            )
