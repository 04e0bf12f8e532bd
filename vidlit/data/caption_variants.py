"""Rows with several captions: training reads another one at each visit of a clip, all else the first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch.utils.data import Sampler

from vidlit.data.batch_sampler import ResolutionBatchSampler
from vidlit.diffusion.batch import clip_key
from vidlit.video.sources import Clip


def with_variants(clips: Sequence[Clip]) -> tuple[list[Clip], list[int]]:
    """Clips, and after them each once more for every further caption of its row.

    Args:
        clips: of each row of a clip table.

    Returns:
        The longer list, and the row of the clip table that each of it belongs to.
    """
    longer, rows = list(clips), list(range(len(clips)))
    for row, clip in enumerate(clips):
        for caption in clip.source.further_captions:
            longer.append(replace(clip, source=replace(clip.source, caption=caption)))
            rows.append(row)
    return longer, rows


class CaptionsInTurn(Sampler[list[int]]):
    """Batches of places in the list of :func:`with_variants`: each clip with its next caption.

    Which one is a function of (seed, clip, number of its visit), and the latter one of the position: a run that is
    resumed, on any number of ranks, reads the captions that an uninterrupted one reads. A clip's captions take turns,
    from one that depends on the clip, so each is read equally often.

    Args:
        sampler: of the batches.
        clips: of each row.
        seed: of the run.
    """

    def __init__(self, sampler: ResolutionBatchSampler, clips: Sequence[Clip], seed: int) -> None:
        self.sampler = sampler
        self._places: dict[int, list[int]] = {}
        for place, row in enumerate(with_variants(clips)[1]):
            if clips[row].source.further_captions:
                self._places.setdefault(row, []).append(place)
        self._first = {row: seed + clip_key(clips[row].clip_id) for row in self._places}

    def __iter__(self) -> Iterator[list[int]]:
        """This rank's batches from the sampler's start on, without end."""
        for position, rows in enumerate(self.sampler, self.sampler.start):
            visits = self.sampler.visits_at(position)
            yield [self._place(row, visit) for row, visit in zip(rows, visits, strict=True)]

    def _place(self, row: int, visit: int) -> int:
        places = self._places.get(row)
        return places[(self._first[row] + visit) % len(places)] if places else row
