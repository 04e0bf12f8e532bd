"""Prompts to sample: read from files or the command line, encoded, and shared out over ranks."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from vidlit.data.batch_sampler import DataRanks
from vidlit.diffusion.batch import Conditioning, PromptBatch, as_is
from vidlit.diffusion.conditions import REFERENCE, Condition, GivenFrames, are_always_given
from vidlit.errors import UserError, printable
from vidlit.models.device_memory import free_memory
from vidlit.models.encoders import BaseEncoders
from vidlit.video.buckets import Bucket
from vidlit.video.frames import IMAGE_SUFFIXES, ClipRequest, read_clip
from vidlit.video.layouts.delimited import read_delimited
from vidlit.video.layouts.layout import Rejected
from vidlit.video.layouts.source_folder import is_utf8
from vidlit.video.layouts.table_files import read_text_file

if TYPE_CHECKING:
    from vidlit.models.family import Family

_FILES = ("image", "last_image", "reference")
COLUMNS = ("prompt", "seed", "resolution", "num_frames", *_FILES)
_PROMPTS_PER_BATCH = 16
_Row = tuple[str, int, Bucket, Path | None, Path | None, Path | None, str]
_OTHER_FILES = tuple(".csv.gz .htm .html .json .jsonl .md .ods .parquet .tsv .xls .xlsx .yaml .yml".split())


class Prompt(NamedTuple):
    """One video to make."""

    number: int
    """Place in the list: with the seed it keys the start noise."""
    text: str
    seed: int
    size: Bucket
    image: Path | None = None
    """First frame, of image-to-video."""
    last_image: Path | None = None
    """Last frame, of families that take clean ones."""
    reference: Path | None = None
    """Video or image to make it from, of models that were trained with some."""
    place: str = ""
    """File and line that it comes from, for messages."""

    @property
    def num_reference_frames(self) -> int:
        """As long as the video, or one of an image; 0 without a reference."""
        if self.reference is None:
            return 0
        return 1 if self.reference.suffix.lower() in IMAGE_SUFFIXES else self.size.num_frames

    @property
    def pictures(self) -> dict[str, Path]:
        """Those that there are, by their columns."""
        found = {"image": self.image, "last_image": self.last_image}
        return {name: path for name, path in found.items() if path is not None}


def read_prompts(sources: Sequence[str], seed: int, size: Bucket, option: str = "--prompts") -> list[Prompt]:
    """Prompts in order, numbered through.

    Args:
        sources: each a text file (``.txt``, one prompt a line), a CSV file (a column ``prompt``, and ``seed``,
            ``resolution`` as ``HEIGHTxWIDTH`` and ``num_frames`` where rows differ, ``image`` for image-to-video,
            ``last_image`` for its end and ``reference``, seen from the file's folder), or a prompt itself.
        seed: where a row has none.
        size: where a row has none.
        option: that names the sources, for messages.

    Raises:
        UserError: a file is missing or cannot be read, or there is no prompt at all; names file and row.
    """
    rows = [row for source in sources for row in _read(source, seed, size, option)]
    if not rows:
        raise UserError(f"there are no prompts: give {option} a text file, a CSV file or a prompt in quotes.")
    return [Prompt(number, *row) for number, row in enumerate(rows)]


def _read(source: str, seed: int, size: Bucket, option: str) -> Iterator[_Row]:
    path = Path(source)
    if path.suffix.lower() not in (".txt", ".csv"):
        _refuse_file(source, option)
        yield source.strip(), seed, size, None, None, None, ""
        return
    try:
        text = read_text_file(path)
    except UserError as error:
        if not path.exists():
            raise UserError(f"{option} {source}: no such file.") from error
        raise UserError(f"{option}: {error}") from error
    if path.suffix.lower() == ".txt":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield line.strip(), seed, size, None, None, None, f"{path} line {number}"
        return
    for where, row in read_delimited(path, text, COLUMNS[:1]):
        place = f"{path.parent / where}"
        if isinstance(row, Rejected):
            raise UserError(f"{place}: the row {row.reason}.")
        if "prompt" not in row or set(row) - set(COLUMNS):
            raise UserError(
                f"{source}: its columns are {', '.join(row)}; `prompt` is needed, optional are "
                f"{', '.join(COLUMNS[1:])}."
            )
        yield _read_row(row, path, place, seed, size)


def _refuse_file(source: str, option: str) -> None:
    """Refuse a file of another kind: its name would be taken for the prompt."""
    if not is_utf8(source):
        raise UserError(f"{option} {printable(source)} is not UTF-8 text.")
    is_name = not re.search(r"\s", source) and source.lower().endswith(_OTHER_FILES)
    try:
        is_file = Path(source).is_file()
    except OSError:  # a prompt longer than a name may be
        is_file = False
    if is_name or is_file:
        raise UserError(
            f"{option} {source} is a file of a kind that is not read: give a text file (.txt), a CSV file (.csv), or "
            "a prompt in quotes."
        )


def _read_row(row: Mapping[str, Any], path: Path, where: str, seed: int, size: Bucket) -> _Row:
    if None in row.values():
        raise UserError(f"{where}: the row has other columns than the header; put texts with commas in quotes.")
    if not row["prompt"].strip():
        raise UserError(f"{where}: the prompt is empty.")
    files = [path.parent / row[name] if row.get(name) else None for name in _FILES]
    for name, each in zip(_FILES, files, strict=True):
        if each is not None and not each.is_file():
            raise UserError(f"{where}: there is no {name.removeprefix('last_')} {each}.")
    try:
        frames = int(row.get("num_frames") or size.num_frames)
        resolution = row.get("resolution") or f"{size.height}x{size.width}"
        bucket = Bucket.parse(f"{frames}x{resolution}")
        return row["prompt"].strip(), int(row.get("seed") or seed), bucket, *files, where
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except ValueError as error:
        raise UserError(f"{where}: seed and num_frames must be whole numbers ({error}).") from error


def check_prompt(prompt: Prompt, family: Family, conditions: Sequence[Condition], *, with_references: bool) -> None:
    """Make sure that a model can make a prompt's video.

    Args:
        prompt: to make.
        family: of the base.
        conditions: of the model's training: one that was always given some frames needs a picture, as image-to-video
            bases do anyway.
        with_references: whether the model was given references, and every prompt needs one.

    Raises:
        UserError: it cannot make the size, or a picture is missing or too much.
    """
    prompt.size.check(family.frame_multiple, family.pixel_multiple)
    num_frames = family.latent_shape(*prompt.size)[1]
    if prompt.image is None and family.image_extras:
        raise UserError("this model continues a first frame: name one in the column `image` of a CSV file.")
    if not prompt.pictures and are_always_given(conditions):
        raise UserError(
            "this model was always given some frames: name a picture in the column `image` or `last_image` of a "
            "CSV file."
        )
    if with_references and prompt.reference is None:
        raise UserError(
            "this model makes videos from references: name a video or an image in the column `reference` of a CSV file."
        )
    if prompt.reference is not None and not with_references:
        raise UserError(f"{prompt.reference} cannot be a reference: this model was trained without any.")
    if family.takes_clean_frames:
        if len(prompt.pictures) > max(1, num_frames - 1):
            raise UserError(f"with {prompt.size} nothing is left to make between `image` and `last_image`.")
    elif prompt.last_image is not None:
        raise UserError(f"{prompt.last_image} cannot be the last frame: this model is given none.")
    elif prompt.image is not None and not family.image_extras:
        raise UserError(f"{prompt.image} cannot be the first frame: this model makes videos from text alone.")


class EncodedFiles(NamedTuple):
    """A prompt's pictures and reference."""

    extras: dict[str, Tensor]
    """the family's image extras, or the latents of a reference"""
    given: GivenFrames | None
    """(C, F, H, W) and (F,), of families that take latents without noise"""


@torch.no_grad()
def encode_files(prompts: Sequence[Prompt], family: Family, device: Any) -> list[EncodedFiles]:
    """What the model reads of pictures and references; nothing of prompts without.

    Raises:
        UserError: one cannot be read; names the prompt.
    """
    with_files = [bool(prompt.pictures) or prompt.reference is not None for prompt in prompts]
    encode = family.load_video_encoder(device) if any(with_files) else None
    encoded = []
    for prompt, has_files in zip(prompts, with_files, strict=True):
        size = prompt.size
        if not has_files:
            encoded.append(EncodedFiles({}, None))
            continue
        assert encode is not None
        if family.image_extras:
            # Grey after the first frame: what extras are made of it is of the whole length.
            video = torch.zeros(1, 3, size.num_frames, size.height, size.width)
            video[0, :, :1] = _read_file(prompt, prompt.pictures["image"], 1, family.fps)
            tensors = encode(video.to(device))
            encoded.append(EncodedFiles({name: tensors[name][0].float().cpu() for name in family.image_extras}, None))
            continue
        extras = {}
        if prompt.reference is not None:
            video = _read_file(prompt, prompt.reference, prompt.num_reference_frames, family.fps)[None]
            extras[REFERENCE] = encode(video.to(device))["latents"][0].float().cpu()
        latents = torch.zeros(family.latent_shape(*size))
        mask = torch.zeros(latents.shape[1], dtype=torch.bool)
        # A last latent frame is several of the video's, and tells of those before: a still picture is held there.
        for name, place, length in (("image", 0, 1), ("last_image", -1, 1 + family.compression[0])):
            if name in prompt.pictures:
                picture = _read_file(prompt, prompt.pictures[name], 1, family.fps)
                latents[:, place] = (
                    encode(picture.expand(-1, length, -1, -1)[None].to(device))["latents"][0, :, -1].float().cpu()
                )
                mask[place] = True
        encoded.append(EncodedFiles(extras, GivenFrames(latents, mask) if prompt.pictures else None))
    return encoded


def _read_file(prompt: Prompt, path: Path, num_frames: int, fps: float) -> Tensor:
    """One of a prompt's files (3, F, H, W) in [-1, 1], from its beginning on."""
    try:
        request = ClipRequest(path, 0.0, num_frames, fps, prompt.size.height, prompt.size.width)
        pixels = torch.from_numpy(read_clip(request))
    except UserError as error:
        raise UserError(f"prompt {prompt.number}: {path} {error}") from error
    return pixels.permute(3, 0, 1, 2) / 127.5 - 1


class PromptDataModule(LightningDataModule):
    """What ``trainer.predict`` reads: encoded prompts in batches of one size, each on one rank.

    Prompts are encoded when the trainer sets up, before the transformer is loaded, and the encoder is let go.

    Args:
        family: of the base.
        prompts: what to make.
        num_steps: denoising steps.
        guidance_scale: 1 is none.
        negative_prompt: what guidance leads away from.
        batch_size: videos sampled at once.
        conditions: of the model's training: one that was always given some frames needs a picture, as image-to-video
            bases do anyway.
        with_references: whether the model was given references, and every prompt needs one.

    Raises:
        UserError: the model cannot make a size, or a picture is missing or too much; names the prompt.
    """

    def __init__(
        self,
        family: Family,
        prompts: Sequence[Prompt],
        num_steps: int = 30,
        guidance_scale: float = 1.0,
        negative_prompt: str = "",
        batch_size: int = 1,
        conditions: Sequence[Condition] = (),
        with_references: bool = False,
    ) -> None:
        super().__init__()
        self.family = family
        self.prompts = prompts
        self.num_steps = num_steps
        self.guidance_scale = guidance_scale
        self.negative_prompt = negative_prompt
        self._batches: list[PromptBatch] = []
        alike: dict[tuple[Bucket, bool, int], list[int]] = defaultdict(list)
        for prompt in prompts:
            try:
                check_prompt(prompt, family, conditions, with_references=with_references)
            except UserError as error:
                raise UserError(f"prompt {prompt.number} ({prompt.text[:40]!r}): {error}") from error
            alike[prompt.size, bool(prompt.pictures), prompt.num_reference_frames].append(prompt.number)
        self._rows = [
            rows[first : first + batch_size] for rows in alike.values() for first in range(0, len(rows), batch_size)
        ]

    def setup(self, stage: str) -> None:
        """Encode this rank's prompts."""
        trainer = self.trainer
        assert trainer is not None
        # As many batches on every rank: where weights are sharded, all ranks gather them together.
        ranks = DataRanks.of(trainer)
        places = range(ranks.rank, -(-len(self._rows) // ranks.size) * ranks.size, ranks.size)
        batches = [self._rows[place % len(self._rows)] for place in places]
        guided = self.guidance_scale != 1.0
        texts = [self.prompts[row].text for rows in batches for row in rows] + [self.negative_prompt] * guided
        encoded = self._encode(list(dict.fromkeys(texts)), trainer.strategy.root_device)
        own = sorted({row for rows in batches for row in rows})
        files = encode_files([self.prompts[row] for row in own], self.family, trainer.strategy.root_device)
        images = dict(zip(own, files, strict=True))
        length = self.family.prompt_length
        null = Conditioning.of([encoded[self.negative_prompt]], length) if guided else None
        read = {row: encoded[self.prompts[row].text] | image.extras for row, image in images.items()}
        self._batches = [
            PromptBatch(
                conditioning=Conditioning.of([read[row] for row in rows], length),
                given=_stack([images[row].given for row in rows]),
                null_conditioning=null,
                seeds=[self.prompts[row].seed for row in rows],
                numbers=rows,
                size=tuple(self.prompts[rows[0]].size),
                num_steps=self.num_steps,
                guidance_scale=self.guidance_scale,
                is_repeat=place >= len(self._rows) or ranks.peer > 0,
            )
            for place, rows in zip(places, batches, strict=True)
        ]

    def _encode(self, texts: list[str], device: Any) -> dict[str, Any]:
        encoders = BaseEncoders(self.family).to(device)
        encoded = []
        for first in range(0, len(texts), _PROMPTS_PER_BATCH):
            encoded += encoders.encode_captions(texts[first : first + _PROMPTS_PER_BATCH])
        del encoders
        free_memory(device)  # before pictures' encoder, and the transformer
        return dict(zip(texts, encoded, strict=True))

    def predict_dataloader(self) -> DataLoader[PromptBatch]:
        """This rank's batches."""
        return DataLoader(self._batches, batch_size=None, collate_fn=as_is)  # type: ignore[arg-type]  # a list will do


def _stack(given: Sequence[GivenFrames | None]) -> GivenFrames | None:
    """What is given in a batch, of which all have something or none."""
    some = [each for each in given if each is not None]
    return GivenFrames(*map(torch.stack, zip(*some, strict=True))) if some else None
