"""What a store lacks of clips and captions, encoded on one of the engines."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from vidlit.latents.damage import Damage
from vidlit.latents.encode.decode import ClipReader, Decoding
from vidlit.latents.encode.lightning_engine import LightningEngine
from vidlit.latents.encode.ray_engine import RayEngine
from vidlit.latents.encode.work import Encoders, Job, Retried, Work
from vidlit.latents.encoding import CutCaptions, EncodeReport
from vidlit.latents.quiet_lightning import quiet_lightning
from vidlit.latents.recipe import Recipes
from vidlit.latents.store import LatentStore
from vidlit.video.isolation import IsolatedReader

if TYPE_CHECKING:
    from vidlit.video.sources import Clip

EngineName = Literal["lightning", "ray"]


def encode(
    clips: Sequence[Clip],
    store: LatentStore,
    recipes: Recipes,
    load_encoders: Callable[[], Encoders],
    *,
    further_captions: Sequence[str] = (),
    sample_rate: int | None = None,
    retry_quarantined: bool = False,
    retry_transient: bool = True,
    repair: bool = False,
    open_reader: Callable[[], ClipReader] = IsolatedReader,
    engine: EngineName = "lightning",
    trainer_options: Mapping[str, Any] | None = None,
) -> EncodeReport:
    """Encode what the store lacks: each clip once, each distinct caption once, over all ranks.

    Killed at any instant, the next call goes on from what was committed: of each rank at most two shards are redone,
    the one that was filling and the one that was being written.
    A clip that cannot be read is quarantined in the store with its reason. Where that is one of time, memory or the
    system, the next call tries it again; else it is tried again when its file changes, or with ``retry_quarantined``.
    Of several processes that fill one store, each waits for the one before. Where nothing is missing, nothing is
    written: the store may be on a disk that is read-only.

    Args:
        clips: what to encode, the same on all ranks.
        store: where to.
        recipes: of clips and captions: by which encoders, and how. The encoders give ``latents_std``, too, where it is
            with a standard deviation.
        load_encoders: called on each rank, only if something is missing.
        further_captions: to encode beside those of the clips.
        sample_rate: samples a second of the sound that the encoders are given; ``None`` for none.
        retry_quarantined: try clips again that failed before, whatever the reason.
        retry_transient: try clips again that failed for a reason of time, memory or the system. A run that goes on
            does not: it would go on with other clips.
        repair: compare all that is stored with its checksums first, and forget what is damaged or gone: of what
            this call needs, it is encoded again, and nothing else is.
        open_reader: called in each worker for what reads its clips.
        engine: what runs it: Lightning's ranks, or a Ray cluster.
        trainer_options: ``accelerator``, ``devices``, ``num_nodes``, ``strategy`` ... of Lightning's Trainer.

    Raises:
        UserError: the store cannot be written, or the encoders are not those that recipes name.
    """
    began = time.monotonic()
    captions = dict.fromkeys([*(caption for clip in clips for caption in clip.source.captions), *further_captions])
    work = Work(clips, list(captions), recipes)
    decoding = Decoding(open_reader, recipes.encoding.background, sample_rate)
    job = Job(store, recipes.encoding, decoding, load_encoders, recipes.identity)
    damaged: list[Damage] = []
    with contextlib.ExitStack() as held:
        held.enter_context(quiet_lightning())
        chosen = RayEngine() if engine == "ray" else LightningEngine(trainer_options)
        if chosen.is_first:
            retried = Retried(retry_quarantined, retry_transient or retry_quarantined)
            if repair or work.look(store, retried):
                held.enter_context(store.encoding())
                damaged = store.repair() if repair else []
                work.look(store, retried)  # another process may have encoded it all meanwhile
        chosen.run(work, job)
        if chosen.is_first and work.is_missing:
            store.compact()
    if work.is_missing:  # other processes wrote, too
        store.storage.refresh()
    report = _report(work, store, len(damaged), time.monotonic() - began) if chosen.is_first else None
    return chosen.shared(report)


def _report(work: Work, store: LatentStore, damaged: int, seconds: float) -> EncodeReport:
    after, quarantined = store.keys("latent"), store.quarantined()
    failed = [row for row in range(len(work.clips) if quarantined else 0) if work.latent(row).key in quarantined]
    return EncodeReport(
        encoded=sum(work.latent(row).key in after for row in work.todo),
        captions=len(work.todo_prompts),
        stored=work.num_stored,
        damaged=damaged,
        quarantined=[
            quarantined[work.latent(row).key]._replace(clip_id=clip.clip_id, video=clip.source.video)
            for row in failed
            if work.latent(row).key not in after
            for clip in (work.clips[row],)
        ],
        cut=_cut_captions(work, store),
        seconds=seconds,
    )


def _cut_captions(work: Work, store: LatentStore) -> CutCaptions:
    """Which captions the text encoder did not read to their ends, as the store remembers it."""
    # The first clip of each.
    clip_of = {caption: clip.clip_id for clip in reversed(work.clips) for caption in clip.source.captions}
    read = store.read_tokens()
    prompts = [work.prompt(row) for row in range(len(work.captions))]
    known = [(prompt.caption, *read[prompt.key]) for prompt in prompts if prompt.key in read]
    names = {caption: clip_of.get(caption, repr(caption[:60])) for caption, _, _ in known}
    alike: dict[str, list[str]] = {}
    for caption, _, kept in known:
        alike.setdefault(kept, []).append(names[caption])
    cut = [(names[caption], num_cut) for caption, num_cut, _ in known if num_cut]
    kept_of_cut = dict.fromkeys(kept for _, num_cut, kept in known if num_cut and kept)
    return CutCaptions(cut, len(prompts), [alike[kept] for kept in kept_of_cut if len(alike[kept]) > 1])
