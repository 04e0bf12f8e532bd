"""Pages of runs that are kept up to date while somebody looks at them: what has changed is read again and sent."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from vidlit.data.usage import ShownClip
from vidlit.errors import UserError
from vidlit.report.comparison import row_of
from vidlit.report.page import View, section, view_of
from vidlit.report.videos import clip_file
from vidlit.runs.record import RunRecord, damage_told

_KEPT_VERSIONS = 32
"""Of a page, whose readers are sent what has changed since; others are sent all of it."""
_KEPT_PAGES = 64
"""Each holds all that it shows; one that is asked for again is read again."""
_DEPTH = 4
"""Folders below the one that is watched: a fold's run lies at name/kfold_5/fold_0."""
_NO_RUNS = {"checkpoints", "weights", "samples", "test", "wandb", "mlruns", "lightning_logs"}
_LARGEST_PREVIEW = 384
"""Pixels of a clip's longer side: enough to look at, and made in a fraction of a second beside a training."""
_MOST_PREVIEWS = 200


class LivePage:
    """A page that is read again when its files have changed.

    Args:
        stamp: says something else when they have.
        read: makes the page.
    """

    def __init__(self, stamp: Callable[[], str], read: Callable[[], View]) -> None:
        self._stamp, self._read = stamp, read
        self._stamped: str | None = None
        self._view: View | None = None
        self._version = ""
        self._digests: dict[str, dict[str, str]] = {}
        self._lock = threading.Lock()

    def now(self) -> tuple[str, View]:
        """Its version, and the page.

        Raises:
            UserError: files of the run are damaged, and it was never read before.
        """
        with self._lock:
            stamped = self._stamp()
            if stamped != self._stamped or self._view is None:
                try:
                    view = self._read()
                except UserError:  # half written, perhaps: the next look may find it whole
                    if self._view is None:
                        raise
                    return self._version, self._view
                parts = {name: _digest(part) for name, part in view.parts().items()}
                self._stamped, self._view, self._version = stamped, view, _digest(parts)
                self._digests[self._version] = parts
                while len(self._digests) > _KEPT_VERSIONS:
                    del self._digests[next(iter(self._digests))]
            return self._version, self._view

    def since(self, version: str) -> dict[str, Any]:
        """Its version, and the parts that are others than in an earlier one; ``None`` for those that are gone."""
        now, view = self.now()
        with self._lock:
            before, after = self._digests.get(version, {}), self._digests.get(now, {})
        parts = {name: part for name, part in view.parts().items() if before.get(name) != after.get(name)}
        return {"version": now, "parts": parts | dict.fromkeys(set(before) - set(after))}


class WatchedRuns:
    """The runs in a folder, or one run, each by the way to it from there.

    Args:
        root: a folder of runs, or a run.

    Raises:
        UserError: there is no such folder.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise UserError(f"{root}: no such folder. Give a run directory, or a folder of runs, such as runs.")
        self.root = root  # as it was given: so are the paths that pages show
        self._pages: dict[tuple[str, ...], LivePage] = {}
        self._lock = threading.Lock()

    @property
    def single(self) -> str | None:
        """The name of the only run, where the folder is one."""
        return self.root.resolve().name if _is_run(self.root) else None

    def find(self) -> dict[str, Path]:
        """All runs, those written last first."""
        if self.single:
            return {self.single: self.root}
        found = {path.relative_to(self.root).as_posix(): path for path in _runs_below(self.root, _DEPTH)}
        return dict(sorted(found.items(), key=lambda each: -RunRecord(each[1]).last_written.timestamp()))

    def record(self, name: str) -> RunRecord:
        """A run as it is now.

        Raises:
            KeyError: there is none of that name in the folder.
        """
        path = self.root if name == self.single else (self.root / name)
        inside = path.resolve().is_relative_to(self.root.resolve())
        if not (inside and ".." not in Path(name).parts and name == Path(name).as_posix() and _is_run(path)):
            raise KeyError(name)
        return RunRecord(path)

    def page(self, *names: str) -> LivePage:
        """The page of a run, of several side by side, or, without a name, of all as a list."""
        with self._lock:
            page = self._pages.pop(names, None) or (self._of_runs(names) if names else self._list())
            self._pages[names] = page  # the latest one last
            while len(self._pages) > _KEPT_PAGES:
                del self._pages[next(iter(self._pages))]
            return page

    def _of_runs(self, names: tuple[str, ...]) -> LivePage:
        for name in names:
            self.record(name)  # it is there
        addresses = Served(names, self)

        def read() -> View:
            return view_of([self.record(name) for name in names], addresses)

        return LivePage(lambda: "|".join(_stamp(self.record(name)) for name in names), read)

    def _list(self) -> LivePage:
        def read() -> View:
            rows = []
            for name in self.find():
                try:
                    with damage_told(self.root / name):
                        row = row_of(self.record(name), name)
                except UserError:
                    row = {"name": name, "stands": "damaged", "numbers": [""] * 5, "going": False}
                    row |= {"band": "", "trained": "", "colour": ""}
                rows.append(row | {"id": name, "address": f"run?{urlencode({'run': name})}"})
            heading = f"Runs in {self.root.resolve().name}"
            return View(
                heading,
                {"table": section("table", runs=rows, warnings=(), heading=heading, compare=True)},
                data={"kind": "list"},
            )

        return LivePage(lambda: "|".join(_stamp(RunRecord(path)) for path in self.find().values()), read)


class Served:
    """Addresses of what a server of :class:`WatchedRuns` hands out.

    Args:
        names: of the runs that the page shows.
        runs: where they are.
    """

    def __init__(self, names: tuple[str, ...], runs: WatchedRuns) -> None:
        self._names = {runs.record(name).path.resolve(): name for name in names}

    def of_video(self, path: Path) -> str:
        """A video of a run's."""
        resolved = path.resolve()
        holding = (each for each in self._names if resolved.is_relative_to(each))
        folder = max(holding, key=lambda each: len(each.parts))  # a refit lies in the folder of its run
        asked = {"run": self._names[folder], "path": resolved.relative_to(folder).as_posix()}
        return f"video?{urlencode(asked | {'at': path.stat().st_mtime_ns})}"

    def of_clip(self, run: RunRecord, number: int, clip: ShownClip) -> str:
        """A clip, cut and scaled as the model is given it."""
        if "://" in str((run.config.get("data") or {}).get("source")):
            return ""
        return f"clip?{urlencode({'run': self._names[run.path.resolve()], 'number': number})}"


class ClipPreviews:
    """Clips of the data as mp4 files, made when somebody asks for one, and kept while the server runs."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vidlit_watch_")
        self._one_at_a_time = threading.Lock()  # a training needs the cores

    def make(self, run: RunRecord, number: int) -> Path:
        """The so-many'th of :attr:`RunRecord.dataset` as a file.

        Raises:
            KeyError: there is none, or its file is not there.
            UserError: the file cannot be read any more.
        """
        from vidlit.video.frames import ClipRequest
        from vidlit.video.isolation import IsolatedReader
        from vidlit.video.mp4 import write_mp4

        if not 0 <= number < len(run.dataset):
            raise KeyError(number)
        clip = run.dataset[number]
        file = clip_file(run, clip)
        if file is None:
            raise KeyError(clip.file)
        frames, height, width = (int(part) for part in clip.bucket.split("x"))
        scale = min(1.0, _LARGEST_PREVIEW / max(height, width))
        height, width = (max(2, 2 * round(side * scale / 2)) for side in (height, width))
        named = _digest([str(file), file.stat().st_mtime_ns, *clip])
        path = Path(self._folder.name) / f"{named}.mp4"
        with self._one_at_a_time:
            if not path.is_file():
                with IsolatedReader() as reader:
                    decoded = reader.read_clip(ClipRequest(file, clip.start, frames, clip.fps, height, width))
                write_mp4(path, decoded, clip.fps)
                made = sorted(Path(self._folder.name).glob("*.mp4"), key=lambda each: each.stat().st_mtime)
                for old in made[:-_MOST_PREVIEWS]:
                    old.unlink(missing_ok=True)
        return path


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, default=str).encode(), digest_size=12).hexdigest()


def _is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in ("config.yaml", "metrics.csv", "summary.json"))


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    try:
        with os.scandir(folder) as found:
            children = sorted((child.name, child.path) for child in found if child.is_dir(follow_symlinks=False))
    except OSError:
        return
    for name, place in children:
        path = Path(place)
        if name in _NO_RUNS or name.startswith("."):
            continue
        if _is_run(path):
            yield path
        if depth > 1:
            yield from _runs_below(path, depth - 1)


def _stamp(run: RunRecord) -> str:
    """Something else whenever a file that a page is made from has changed."""
    said: list[Any] = [_is_running(run)]
    with os.scandir(run.path) as files:
        said += sorted((file.name, *_times(file)) for file in files if file.is_file())
    samples = run.path / "samples"
    if samples.is_dir():
        with os.scandir(samples) as folders:
            said += sorted((folder.name, *_times(folder)) for folder in folders)
    return _digest(said)


def _is_running(run: RunRecord) -> bool | None:
    """Which time alone may change, of a run on another machine; ``None`` where its files do not say."""
    with suppress(UserError):
        return run.is_running
    return None


def _times(file: os.DirEntry[str]) -> tuple[int, int]:
    try:
        found = file.stat()
    except OSError:  # gone since it was listed
        return 0, 0
    return found.st_size, found.st_mtime_ns
