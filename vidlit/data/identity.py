"""Which clips a run was made with: what is compared before one goes on, is scored, tested or trained again."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vidlit.errors import UserError
from vidlit.latents.encoding import first_three

if TYPE_CHECKING:
    from vidlit.latents.recipe import LatentRecipe, PromptRecipe
    from vidlit.video.sources import Clip

SIDES = ("train", "val", "test")
TABLE = "clips.csv"
"""Its name in a run directory."""
_DIGITS = 12  # 48 bits: one changed clip in 3e14 would pass for the same


class ClipIdentity(NamedTuple):
    """What makes a clip the one it was, beside its name; all but the side as the first digits of a hash."""

    side: str
    """``train``, ``val`` or ``test``."""
    content: str
    """Of the file's bytes."""
    caption: str
    prepared: str
    """Of everything else that decides latents and prompt embeddings: span, resolution, VAE, text encoder, ..."""


@dataclass(frozen=True)
class DataIdentity:
    """Every clip of a run with its side, content, caption and preparation.

    Args:
        clips: by the clip's name, as :attr:`vidlit.video.sources.Clip.clip_id`.
    """

    clips: Mapping[str, ClipIdentity]

    @classmethod
    def of(cls, rows: Iterable[tuple[str, Clip, Sequence[LatentRecipe | PromptRecipe]]]) -> DataIdentity:
        """Of clips with their sides, and the recipes of all that is stored of them."""
        return cls(
            {
                clip.clip_id: ClipIdentity(
                    side,
                    clip.content[:_DIGITS],
                    _digest([clip.source.caption]),
                    _digest([recipe.key for recipe in recipes]),
                )
                for side, clip, recipes in rows
            }
        )

    @cached_property
    def digests(self) -> dict[str, str]:
        """One hash for each side, of all of its clips in order of their names: what a checkpoint holds."""
        lines: dict[str, list[str]] = {side: [] for side in SIDES}
        for name, clip in sorted(self.clips.items()):
            lines[clip.side] += [name, *clip]
        return {side: _digest(words, 32) for side, words in lines.items()}

    # -- beside a run

    def as_table(self) -> str:
        """A CSV file with a row for each clip."""
        table = io.StringIO()
        rows = csv.writer(table)  # whose line ends have names with a carriage return quoted
        rows.writerow(("clip_id", *ClipIdentity._fields))
        rows.writerows((name, *clip) for name, clip in sorted(self.clips.items()))
        return table.getvalue()

    @classmethod
    def read(cls, path: Path) -> DataIdentity | None:
        """What :meth:`as_table` wrote; ``None`` where there is no such file, or one of another kind."""
        try:
            with path.open(newline="", encoding="utf-8") as file:
                return cls({row.pop("clip_id"): ClipIdentity(**row) for row in csv.DictReader(file)})
        except (OSError, ValueError, KeyError, TypeError, csv.Error):
            return None

    # -- comparing

    def differences(self, earlier: DataIdentity, *, sides: bool = True) -> list[str]:
        """What became of the clips of an earlier run, in words; nothing where all are as they were.

        Args:
            earlier: of the other run.
            sides: whether a clip must be on the same side of the split.
        """
        here, there = self.clips, earlier.clips
        both = [name for name in there if name in here]
        kinds = {
            "gone": [name for name in there if name not in here],
            "new": [name for name in here if name not in there],
            "of another file": _changed(both, here, there, lambda clip: clip.content),
            "of another caption": _changed(both, here, there, lambda clip: clip.caption),
            "on another side of the split": _changed(both, here, there, lambda clip: clip.side) if sides else [],
        }
        told = {name for names in kinds.values() for name in names}
        rest = [name for name in both if name not in told]
        kinds["prepared otherwise"] = _changed(rest, here, there, lambda clip: clip.prepared)
        return [_count(names, what) for what, names in kinds.items() if names]

    def of_side(self, side: str) -> DataIdentity:
        """The clips of one side."""
        return DataIdentity({name: clip for name, clip in self.clips.items() if clip.side == side})

    def seen_on(self, earlier_sides: Iterable[str], sides: Iterable[str], earlier: DataIdentity) -> list[str]:
        """Clips of some sides whose file an earlier run had on others.

        Args:
            earlier_sides: there.
            sides: here.
            earlier: of the other run.
        """
        seen = {clip.content for clip in earlier.clips.values() if clip.side in earlier_sides}
        return [name for name, clip in self.clips.items() if clip.side in sides and clip.content in seen]


_COMPARED = {"fit": (SIDES, ()), "validate": (("val",), ("train",)), "test": (("test",), ("train", "val"))}
"""Of each command the sides that must be the same, and those of the run that must not hold what it scores."""


def check_clips(here: DataIdentity, digests: Mapping[str, str] | None, command: str, table: Path) -> None:
    """Compare the clips of a command with those that its checkpoint was made with.

    A run goes on with the same clips on the same sides. Its validation clips are scored again with the same ones, as
    their losses are compared with those of the base model; the test sees none that the run has seen.

    Args:
        here: the clips of the command.
        digests: of the checkpoint; ``None`` in one of an earlier version.
        command: ``fit``, ``validate`` or ``test``; any other uses no clips.
        table: the run's :data:`TABLE`, which knows the clips by name.

    Raises:
        UserError: they differ; names what differs, and what to do.
    """
    if digests is None or command not in _COMPARED:
        return
    found = DataIdentity.read(table)
    there = found if found is not None and found.digests == dict(digests) else None
    compared, may_not_have = _COMPARED[command]
    asked = [side for side in compared if command == "fit" or digests[side] != _NONE]
    if wrong := [side for side in asked if here.digests[side] != digests[side]]:
        if there is None:
            what = f"{' and '.join(wrong)} clips (which, only a {TABLE} beside the checkpoint's folder could tell)"
        else:
            pairs = [(here, there)] if command == "fit" else [(here.of_side(s), there.of_side(s)) for s in wrong]
            what = f"clips: {'; '.join(line for pair in pairs for line in pair[0].differences(pair[1]))}"
        raise UserError(
            f"The checkpoint was made with other {what}. Use the same files, captions and options of data as then, or "
            "start a new run, without --ckpt_path."
        )
    seen = here.seen_on(may_not_have, compared, there) if there is not None else []
    if seen:
        raise UserError(
            f"{len(seen)} of the clips to {command} on are of files that the run has seen on its "
            f"{' or '.join(may_not_have)} side ({first_three(seen)}): what they show says nothing about new videos. "
            "Use the options of data.split that the run was made with."
        )


def _count(names: list[str], what: str) -> str:
    return f"{len(names)} clip{'s are' if len(names) > 1 else ' is'} {what} ({first_three(names)})"


def _changed(
    names: Iterable[str],
    here: Mapping[str, ClipIdentity],
    there: Mapping[str, ClipIdentity],
    of: Callable[[ClipIdentity], str],
) -> list[str]:
    return [name for name in names if of(here[name]) != of(there[name])]


def _digest(words: Iterable[str], digits: int = _DIGITS) -> str:
    made = hashlib.blake2b(digest_size=16)
    for word in words:
        encoded = word.encode("utf-8", "surrogateescape")
        made.update(len(encoded).to_bytes(8, "little") + encoded)  # so that no two lists run into one
    return made.hexdigest()[:digits]


_NONE = _digest((), 32)
"""Of a side without clips."""
