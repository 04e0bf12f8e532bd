"""``log.txt`` of a run: what it printed, as plain text, for those who were not there."""

from __future__ import annotations

import os
import re
import shlex
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, cast

from vidlit import __version__
from vidlit.errors import Interrupted, explain_bug, explain_error
from vidlit.runs.directory import RunDirectory, append_text
from vidlit.runs.redaction import redact_text

BAR_SECONDS = 10.0
"""A bar draws itself anew many times a second; as often as this one of its pictures is kept."""
MOST_AT_ONCE, LINES_PER_SECOND = 2000, 0.5
"""Lines that may come at once, and how many a second for weeks: a warning at each step must not fill a disk."""
MOST_CHARACTERS = 1000
"""Of a line; the rest is cut."""

_TOKENS = re.compile(
    r"(?P<up>\x1b\[(?P<lines>\d*)A)|(?P<ignored>\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b.)"
    r"|(?P<end>\r*\n)|(?P<back>\r)|(?P<text>[^\x1b\r\n]+)"
)
"""What a stream to a terminal consists of."""
_BAR = re.compile("[━╸╺█▏▎▍▌▋▊▉]+")


class TerminalText:
    """Reads what is sent to a terminal, and tells the lines that stay there from a bar that is drawn over and over."""

    def __init__(self) -> None:
        self._done: list[str] = []
        """Whole lines, of which a bar may take the last ones back."""
        self._line = ""
        self._kept_at = -BAR_SECONDS

    def feed(self, text: str) -> list[str]:
        """Take what was written at once.

        Returns:
            Lines that stay; of a bar one of its pictures now and then.
        """
        lines: list[str] = []
        drawn: list[str] = []  # what is drawn over
        for token in _TOKENS.finditer(text):
            match token.lastgroup:
                case "up":
                    count = max(1, int(token["lines"] or 1))
                    drawn = [*self._done[-count:], *drawn]
                    self._done = self._done[:-count]
                case "back":
                    drawn, self._line = [*drawn, self._line], ""
                case "end":
                    self._done.append(self._line)
                    self._line = ""
                case "text":
                    if drawn:  # what stands above it is out of a bar's reach
                        lines += [*self._done, *self._picture(drawn)]
                        self._done, drawn = [], []
                    self._line += token["text"]
        lines += self._picture(drawn)
        if not self._line:  # no bar is open
            lines += self._done
            self._done = []
        return lines

    def skip_picture(self) -> None:
        """Keep no picture for a while: something better was said."""
        self._kept_at = time.monotonic()

    def rest(self) -> list[str]:
        """What is left when all has been written."""
        left, self._done, self._line = [*self._done, self._line], [], ""
        return [line for line in left if line]

    def _picture(self, drawn: Sequence[str]) -> list[str]:
        """A bar in words, where it is time for one."""
        told = " ".join(_BAR.sub(" ", " ".join(drawn)).split())
        if not told or time.monotonic() - self._kept_at < BAR_SECONDS:
            return []
        self._kept_at = time.monotonic()
        return [told]


class RunLog:
    """Copies what this process prints into ``log.txt`` of a run directory while it is open.

    Lines get the time; keys and passwords are left out; a bar is a line each ten seconds. A run that goes on adds to
    the file. Where it cannot be written, or anything else goes wrong, there is no log, and the run goes on.

    Args:
        directory: of the run.
        words: of the command line, said first.
    """

    def __init__(self, directory: RunDirectory, words: Sequence[str]) -> None:
        self._path = directory.log
        self._words = words
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._streams: list[tuple[str, _Copied]] = []
        self._works = True
        self._allowed, self._since, self._left_out = float(MOST_AT_ONCE), time.monotonic(), 0

    def __enter__(self) -> Self:
        """Begin to copy."""
        self.write([f"vidlit {__version__}: vidlit {shlex.join(self._words)}"], always=True)
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # a process without a console
                continue
            copied = _Copied(getattr(sys, name), self)
            self._streams.append((name, copied))
            setattr(sys, name, copied)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write how it ended, and copy no more."""
        for name, copied in self._streams:
            if getattr(sys, name) is copied:  # else another one stands before it, whose turn comes later
                setattr(sys, name, copied.stream)
            self.write(copied.text.rest(), always=True)
            copied.log = None
        if error is not None:
            self.write(_told(error), always=True)

    def take(self, text: TerminalText, written: str) -> None:
        """Write what stays of something that was printed; whatever goes wrong, it was printed."""
        if not self._works or os.getpid() != self._process:  # a loader's worker, that was forked
            return
        try:
            with self._lock:
                lines = text.feed(written)
            if lines:
                self.write(lines)
        except Exception as error:
            self._give_up(error)

    def write(self, lines: Sequence[str], *, always: bool = False) -> None:
        """Add lines.

        Args:
            lines: without the time.
            always: these, too, where there were too many before.
        """
        if not self._works or not lines:
            return
        try:
            with self._lock:
                kept = list(lines) if always else self._affordable(lines)
                if not kept:
                    return
                whole = redact_text("\n".join(line.rstrip()[:MOST_CHARACTERS] for line in kept))
                now = time.strftime("%Y-%m-%d %H:%M:%S")
                append_text(self._path, "".join(f"{now} {line}".rstrip() + "\n" for line in whole.split("\n")))
        except Exception as error:
            self._give_up(error)

    def _affordable(self, lines: Sequence[str]) -> list[str]:
        now = time.monotonic()
        self._allowed = min(float(MOST_AT_ONCE), self._allowed + LINES_PER_SECOND * (now - self._since))
        self._since = now
        count = min(len(lines), int(self._allowed))
        self._allowed -= count
        told = [f"[{self._left_out} lines left out]"] if self._left_out and count else []
        self._left_out = len(lines) - count + (0 if told else self._left_out)
        return [*told, *lines[:count]]

    def _give_up(self, error: Exception) -> None:
        self._works = False
        stream = self._streams[-1][1].stream if self._streams else sys.stderr
        print(f"vidlit: warning: {self._path} is written no more ({error}); the run goes on.", file=stream)


def note(line: str) -> None:
    """Write a line into the log that is open, if one is, in the place of a bar's pictures for a while."""
    copied = getattr(sys.stdout, "rich_proxied_file", sys.stdout)  # rich puts its own stream before it
    if isinstance(copied, _Copied) and copied.log is not None:
        copied.text.skip_picture()
        copied.log.write([line])


class _Copied:
    """A stream whose text a log gets, too."""

    def __init__(self, stream: Any, log: RunLog) -> None:
        self.stream = stream
        self.log: RunLog | None = log
        self.text = TerminalText()

    def write(self, text: str) -> int:
        written = self.stream.write(text)
        if self.log is not None:
            self.log.take(self.text, text)
        return cast("int", written)

    def writelines(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _told(error: BaseException) -> list[str]:
    """How a run ended that an error ended: the line that the command prints, of a bug where it was, too."""
    if isinstance(error, Interrupted):
        return [f"vidlit: {error}; saved. {error.advice}"]
    if not isinstance(error, Exception):
        return [f"vidlit: ended by {type(error).__name__}"]
    told = explain_error(error)
    trace = "".join(traceback.format_exception(error)).rstrip().split("\n") if told is None else []
    return [*trace, f"vidlit: error: {told or explain_bug(error)}"]
