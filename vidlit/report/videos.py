"""The videos of a page: samples by prompt and step, near copies, and where a browser finds each file."""

from __future__ import annotations

import base64
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from vidlit.data.usage import ShownClip
from vidlit.runs.record import RunRecord

_NAME = re.compile(r"(?:(audit|prompt)_)?(\d+)(?:_|$)")
"""Of a sample: what it was made for, and the number of its prompt."""


class Addresses(Protocol):
    """Where a browser finds the files that a page shows."""

    def of_video(self, path: Path) -> str:
        """A video of the run's."""

    def of_clip(self, run: RunRecord, number: int, clip: ShownClip) -> str:
        """A clip of the data, the so-many'th of :attr:`RunRecord.dataset`; empty where it cannot be shown."""


class InPage:
    """Addresses for a file that opens from disk: data while there is room, links to files after that.

    Args:
        page: file the page is written to; links are relative to it.
        megabytes: of video files that may be put into the page.
    """

    def __init__(self, page: Path, megabytes: float) -> None:
        self._folder = page.resolve().parent
        self._left = megabytes * 1e6
        self._known: dict[Path, str] = {}

    def of_video(self, path: Path) -> str:
        """The file's content, or the way to it."""
        if path not in self._known:
            size = path.stat().st_size
            if size <= self._left:
                self._left -= size
                self._known[path] = "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
            else:
                self._known[path] = self._way_to(path)
        return self._known[path]

    def of_clip(self, run: RunRecord, number: int, clip: ShownClip) -> str:
        """The way to the file that it is cut from, and its time there."""
        path = clip_file(run, clip)
        if path is None:
            return ""
        frames = int(clip.bucket.partition("x")[0])
        return f"{self._way_to(path)}#t={clip.start:g},{clip.start + frames / clip.fps:g}"

    def _way_to(self, path: Path) -> str:
        return quote(Path(os.path.relpath(path.resolve(), self._folder)).as_posix())


def clip_file(run: RunRecord, clip: ShownClip) -> Path | None:
    """The file that a clip was cut from, where it still lies in the folder that the run's config names."""
    source = (run.config.get("data") or {}).get("source")
    if not source or "://" in str(source):
        return None
    folder = Path(str(source)).expanduser()
    folder = (folder if folder.is_dir() else folder.parent).resolve()
    path = (folder / clip.file).resolve()
    return path if path.is_file() and path.is_relative_to(folder) else None


@dataclass(frozen=True)
class Copy:
    """A sample that came near to a training clip."""

    source: str
    """Address of the video; empty where there is none."""
    pair: bool
    """Whether the video already shows the training clip beside it."""
    sample: str
    nearest: str
    ratio: float
    limit: float
    step: int


def samples(run: RunRecord, addresses: Addresses, *, latest: bool = False) -> list[dict[str, Any]]:
    """Every prompt with its videos over the steps, as JSON takes it.

    Of each prompt: ``prompt``, ``kind`` (``audit``, ``prompt``: the user's own, ``kept``: sampled at the end alone),
    ``side`` of the clip that the prompt is of, and ``shots``: step, video, whether it is of the weights that are
    kept, and the training clip that the video is nearest to with its video, ``near``.

    Args:
        run: what was read of it.
        addresses: where a browser finds its videos.
        latest: of each prompt the latest video alone, without the clip it is near to.
    """
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    wanted: list[tuple[dict[str, Any], str, Path]] = []
    for step, paths in run.samples.items():
        for path in paths:
            found = _NAME.match(path.stem)
            if found is None or is_pair(path):
                continue
            note = run.note(path)
            key = (found[1] or "kept", int(found[2]))
            row = rows.setdefault(
                key, {"prompt": run.caption(path), "kind": key[0], "side": str(note.get("side", "")), "shots": []}
            )
            shot: dict[str, Any] = {"step": step}
            if latest:
                wanted = [each for each in wanted if not any(each[0] is old for old in row["shots"])]
                row["shots"] = []
            elif nearest := str(note.get("nearest_clip", "")):
                ratio = note.get("distance_ratio")
                known = isinstance(ratio, int | float) and math.isfinite(ratio)
                shot |= {"nearest": nearest, "ratio": ratio if known else None}
                if nearest in run.near_clips:
                    wanted.append((shot, "near", run.near_clips[nearest]))
            wanted.append((shot, "video", path))
            row["shots"].append(shot)
    # What has no room in a page is what is looked at last: neither the latest videos nor the first.
    steps = sorted(run.samples)
    order = {step: place for place, step in enumerate([*steps[-1:], *steps[:1], *steps[-2:0:-1]])}
    for shot, what, path in sorted(wanted, key=lambda each: order[each[0]["step"]]):
        shot[what] = addresses.of_video(path)
    _join_kept(rows)
    order_of_kinds = ("prompt", "audit", "kept")
    return [rows[key] for key in sorted(rows, key=lambda key: (order_of_kinds.index(key[0]), key[1]))]


def _join_kept(rows: dict[tuple[str, int], dict[str, Any]]) -> None:
    """Put samples of the kept weights to the audited ones of the same prompt, behind those of the same step."""
    audited = {row["prompt"]: row for key, row in reversed(rows.items()) if key[0] != "kept"}
    for key in [key for key in rows if key[0] == "kept"]:
        for shot in rows[key]["shots"]:
            shot["kept"] = True
        if row := audited.get(rows[key]["prompt"]):
            row["shots"] = sorted([*row["shots"], *rows.pop(key)["shots"]], key=lambda shot: shot["step"])


def near_copies(run: RunRecord, addresses: Addresses) -> list[Copy]:
    """The nearest sample of each audit that found copies, and of the last one in any case: it shows how far it is."""
    shown: dict[str, Copy] = {}
    verdicts = run.verdicts("copies")
    for verdict in verdicts:
        evidence = verdict.evidence
        if "sample" not in evidence or not (evidence["copies"] or verdict is verdicts[-1]):
            continue
        sample, pair, step = str(evidence["sample"]), evidence.get("pair"), int(evidence["step"])
        path = run.path / str(pair or sample)
        source = addresses.of_video(path) if run.holds(path) else ""
        nearest, ratio, limit = str(evidence["nearest_clip"]), float(evidence["ratio"]), float(evidence["limit"])
        shown[sample] = Copy(source, pair is not None, run.caption(run.path / sample), nearest, ratio, limit, step)
    return list(shown.values())


def is_pair(path: Path) -> bool:
    """Whether a file shows a sample beside its nearest training clip."""
    return path.stem.startswith("audit_pair_")
