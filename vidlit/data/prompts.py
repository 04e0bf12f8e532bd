"""Prompts to sample: read from files or the command line, encoded, and shared out over ranks."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from vidlit.data.batch import Conditioning, PromptBatch
from vidlit.data.buckets import Bucket
from vidlit.errors import UserError
from vidlit.models.encoders import Encoders

if TYPE_CHECKING:
    from vidlit.models.family import Family

COLUMNS = ("prompt", "seed", "resolution", "num_frames")
_PROMPTS_PER_BATCH = 16


class Prompt(NamedTuple):
    """One video to make."""

    number: int
    """Place in the list: with the seed it keys the start noise."""
    text: str
    seed: int
    size: Bucket


def read_prompts(sources: Sequence[str], seed: int, size: Bucket) -> list[Prompt]:
    """Prompts in order, numbered through.

    Args:
        sources: each a text file (``.txt``, one prompt a line), a CSV file (a column ``prompt``, and ``seed``,
            ``resolution`` as ``HEIGHTxWIDTH`` and ``num_frames`` where rows differ), or a prompt itself.
        seed: where a row has none.
        size: where a row has none.

    Raises:
        UserError: a file is missing or cannot be read, or there is no prompt at all; names file and row.
    """
    rows = [row for source in sources for row in _read(source, seed, size)]
    if not rows:
        raise UserError("there are no prompts: give --prompts a text file, a CSV file or a prompt in quotes.")
    return [Prompt(number, *row) for number, row in enumerate(rows)]


def _read(source: str, seed: int, size: Bucket) -> Iterator[tuple[str, int, Bucket]]:
    path = Path(source)
    if path.suffix.lower() not in (".txt", ".csv"):
        yield source.strip(), seed, size
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"--prompts {source}: no such file.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts {source} cannot be read as UTF-8 text: {error}") from error
    if path.suffix.lower() == ".txt":
        yield from ((line.strip(), seed, size) for line in text.splitlines() if line.strip())
        return
    table = csv.DictReader(text.splitlines())
    names = table.fieldnames or []
    if "prompt" not in names or set(names) - set(COLUMNS):
        raise UserError(
            f"{source}: its columns are {', '.join(names) or 'none'}; there must be `prompt`, and there may be "
            f"{', '.join(COLUMNS[1:])}."
        )
    for row in table:
        yield _read_row(row, f"{source}, line {table.line_num}", seed, size)


def _read_row(row: dict[str, Any], where: str, seed: int, size: Bucket) -> tuple[str, int, Bucket]:
    if None in row or None in row.values():
        raise UserError(f"{where}: the row has other columns than the header; put texts with commas in quotes.")
    if not row["prompt"].strip():
        raise UserError(f"{where}: the prompt is empty.")
    try:
        frames = int(row.get("num_frames") or size.num_frames)
        resolution = row.get("resolution") or f"{size.height}x{size.width}"
        return row["prompt"].strip(), int(row.get("seed") or seed), Bucket.parse(f"{frames}x{resolution}")
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except ValueError as error:
        raise UserError(f"{where}: seed and num_frames must be whole numbers ({error}).") from error


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

    Raises:
        UserError: the model cannot make a size; names the prompt.
    """

    def __init__(
        self,
        family: Family,
        prompts: Sequence[Prompt],
        num_steps: int = 30,
        guidance_scale: float = 1.0,
        negative_prompt: str = "",
        batch_size: int = 1,
    ) -> None:
        super().__init__()
        self.family = family
        self.prompts = prompts
        self.num_steps = num_steps
        self.guidance_scale = guidance_scale
        self.negative_prompt = negative_prompt
        self._batches: list[PromptBatch] = []
        by_size: dict[Bucket, list[int]] = defaultdict(list)
        for prompt in prompts:
            try:
                prompt.size.check(family.compression[0], family.pixel_multiple)
            except UserError as error:
                raise UserError(f"prompt {prompt.number} ({prompt.text[:40]!r}): {error}") from error
            by_size[prompt.size].append(prompt.number)
        self._rows = [
            rows[first : first + batch_size] for rows in by_size.values() for first in range(0, len(rows), batch_size)
        ]

    def setup(self, stage: str) -> None:
        """Encode this rank's prompts."""
        trainer = self.trainer
        assert trainer is not None
        # As many batches on every rank: where weights are sharded, all ranks gather them together.
        each = -(-len(self._rows) // trainer.world_size)
        places = range(trainer.global_rank, each * trainer.world_size, trainer.world_size)
        batches = [self._rows[place % len(self._rows)] for place in places]
        guided = self.guidance_scale != 1.0
        texts = [self.prompts[row].text for rows in batches for row in rows] + [self.negative_prompt] * guided
        encoded = self._encode(list(dict.fromkeys(texts)), trainer.strategy.root_device)
        length = self.family.prompt_length
        null = Conditioning.of([encoded[self.negative_prompt]], length) if guided else None
        self._batches = [
            PromptBatch(
                conditioning=Conditioning.of([encoded[self.prompts[row].text] for row in rows], length),
                null_conditioning=null,
                seeds=[self.prompts[row].seed for row in rows],
                numbers=rows,
                size=tuple(self.prompts[rows[0]].size),
                num_steps=self.num_steps,
                guidance_scale=self.guidance_scale,
                is_repeat=place >= len(self._rows),
            )
            for place, rows in zip(places, batches, strict=True)
        ]

    def _encode(self, texts: list[str], device: Any) -> dict[str, Any]:
        encoders = Encoders(self.family).to(device)
        encoded = []
        for first in range(0, len(texts), _PROMPTS_PER_BATCH):
            encoded += encoders.encode_captions(texts[first : first + _PROMPTS_PER_BATCH])
        return dict(zip(texts, encoded, strict=True))

    def predict_dataloader(self) -> DataLoader[PromptBatch]:
        """This rank's batches."""
        return DataLoader(self._batches, batch_size=None, collate_fn=_as_is)  # type: ignore[arg-type]


def _as_is(batch: PromptBatch) -> PromptBatch:
    return batch
