"""What a stored item was made of: its key, and how two recipes differ in words."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from vidlit.latents.encoding import Encoding
from vidlit.video.frames import BLACK, Color

if TYPE_CHECKING:
    from vidlit.video.sources import Clip

PREPROCESSING = "cover-crop-1"
"""How pixels are made from a file. Goes up whenever :func:`vidlit.video.frames.read_clip` gives other pixels."""

MASK = "mask"
"""Name of the tensor (1, F, H, W) that is stored with the latents of a clip with a mask."""


_TEXT = json.JSONEncoder(sort_keys=True, separators=(",", ":"))  # made once: keys of a million clips are computed


class _Recipe:
    __slots__ = ()
    kind: ClassVar[str]
    words: ClassVar[dict[str, str]]  # field -> what people call it
    implied: ClassVar[dict[str, str]] = {}  # field that came later -> what it was before, which keys leave out

    @property
    def ingredients(self) -> dict[str, str | float]:
        values = {field: getattr(self, field) for field in self.words}
        return {field: value for field, value in values.items() if value != self.implied.get(field)}

    @property
    def key(self) -> str:
        """128-bit hash over kind and ingredients as 32 hex digits: one changed ingredient is another item."""
        known: str = self._key  # type: ignore[attr-defined]  # a field of those that derive from it
        if not known:
            text = _TEXT.encode([self.kind, self.ingredients])
            known = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
            object.__setattr__(self, "_key", known)  # once: a run asks for it many times
        return known

    def differences(self, stored: Mapping[str, str | float | None]) -> list[str]:
        """What separates a stored item from this recipe, e.g. ``["fps: stored 8.0, wanted 24.0"]``."""
        return [
            f"{word}: stored {had}, wanted {wanted}"
            for field, word in self.words.items()
            if (had := stored[field] or self.implied.get(field, stored[field])) != (wanted := getattr(self, field))
        ]


@dataclass(frozen=True, slots=True)
class LatentRecipe(_Recipe):
    """Everything that decides the latents of a clip.

    Args:
        content: sha256 of the video file.
        start: first frame in seconds, rounded to a microsecond.
        fps: frames a second after resampling.
        bucket: ``"17x48x80"``, frames x height x width in pixels.
        encoder: identity of the video autoencoder.
        dtype: what is stored, e.g. ``"bfloat16"``.
        preprocessing: how the file's frames became pixels.
        posterior: what is stored of the VAE's posterior: its ``mode``, or ``mode and std``; and whether ``in tiles``.
        mask: sha256 of the mask's file, which is stored with the latents; ``none`` where the clip has none.
    """

    kind: ClassVar[str] = "latent"
    words: ClassVar[dict[str, str]] = {
        "content": "file content",
        "start": "start in seconds",
        "fps": "fps",
        "bucket": "bucket (frames x height x width)",
        "preprocessing": "preprocessing",
        "encoder": "VAE",
        "dtype": "dtype",
        "posterior": "latents",
        "mask": "mask",
    }
    implied: ClassVar[dict[str, str]] = {"posterior": "mode", "mask": "none"}

    content: str
    start: float
    fps: float
    bucket: str
    encoder: str
    dtype: str
    preprocessing: str
    posterior: str = "mode"
    mask: str = "none"
    _key: str = field(default="", init=False, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        clip: Clip,
        identity: Mapping[str, str],
        dtype: str = "bfloat16",
        background: Color = BLACK,
        with_std: bool = False,
        tiled: bool = False,
    ) -> LatentRecipe:
        """The recipe of a clip under the encoders named by ``identity["vae"]``."""
        return cls(
            content=clip.content,
            start=round(float(clip.start), 6),
            fps=round(float(clip.fps), 6),
            bucket=str(clip.bucket),
            encoder=identity["vae"],
            dtype=dtype,
            preprocessing=_preprocessing(tuple(background)),
            posterior=("mode and std" if with_std else "mode") + (" in tiles" if tiled else ""),
            mask=clip.source.mask.content if clip.source.mask is not None else "none",
        )


@functools.cache
def _preprocessing(background: tuple[int, ...]) -> str:
    return f"{PREPROCESSING} on rgb {','.join(map(str, background))}"


@dataclass(frozen=True, slots=True)
class PromptRecipe(_Recipe):
    """Everything that decides the embeddings of a caption; ``encoder`` is the identity of the text encoder."""

    kind: ClassVar[str] = "prompt"
    words: ClassVar[dict[str, str]] = {"caption": "caption", "encoder": "text encoder", "dtype": "dtype"}

    caption: str
    encoder: str
    dtype: str
    _key: str = field(default="", init=False, repr=False, compare=False)

    @classmethod
    def of(cls, caption: str, identity: Mapping[str, str], dtype: str = "bfloat16") -> PromptRecipe:
        """The recipe of a caption under the encoders named by ``identity["text"]``."""
        return cls(caption=caption, encoder=identity["text"], dtype=dtype)


class Recipes:
    """What clips and captions are made of under some encoders: each recipe is made, and its key computed, once.

    Args:
        identity: of the encoders, ``vae`` and ``text``.
        encoding: how they are used.
    """

    def __init__(self, identity: Mapping[str, str], encoding: Encoding = Encoding()) -> None:  # noqa: B008 - frozen
        self.identity, self.encoding = dict(identity), encoding
        self._latents: dict[tuple[str, str, str], LatentRecipe] = {}
        self._prompts: dict[str, PromptRecipe] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For a process of its own, which makes those that it needs."""
        return self.__dict__ | {"_latents": {}, "_prompts": {}}

    def latent(self, clip: Clip) -> LatentRecipe:
        """Of a clip; its name and its files tell it from the others of one folder."""
        name = clip.clip_id, clip.content, clip.source.mask.content if clip.source.mask is not None else ""
        if name not in self._latents:
            how = self.encoding
            recipe = LatentRecipe.of(clip, self.identity, how.dtype, how.background, how.with_std, how.tiled)
            self._latents[name] = recipe
        return self._latents[name]

    def prompt(self, caption: str) -> PromptRecipe:
        """Of a caption."""
        if caption not in self._prompts:
            self._prompts[caption] = PromptRecipe.of(caption, self.identity, self.encoding.dtype)
        return self._prompts[caption]


Recipe = LatentRecipe | PromptRecipe
RecipeT = TypeVar("RecipeT", bound=Recipe)

INGREDIENTS: dict[str, type] = {
    each.name: float if each.type == "float" else str
    for recipe in (LatentRecipe, PromptRecipe)
    for each in dataclasses.fields(recipe)
    if each.init
}
