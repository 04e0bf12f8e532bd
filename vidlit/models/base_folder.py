"""A base on disk: a folder as diffusers' ``save_pretrained`` writes it, or a hub name that is fetched once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from vidlit.errors import UserError

_EDGE_BYTES = 1 << 20


def read_config(base: Path, part: str, file: str = "config.json") -> dict[str, Any]:
    """``config.json`` of one part of a base; schedulers name theirs otherwise, and so does the whole (part ``""``).

    Raises:
        UserError: it is missing or no JSON.
    """
    name = f"{part}/{file}" if part else file
    try:
        config: dict[str, Any] = json.loads((base / name).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{base} is not a complete diffusers folder: cannot read {name} ({error}). A base holds "
            "transformer, vae, text_encoder, tokenizer and scheduler, as save_pretrained writes them."
        ) from error
    return config


def fingerprint(folder: Path) -> str:
    """A short hash of a model folder: its small files whole, of its weights the size and both ends.

    Weights of several gigabytes would take longer to hash than a small dataset takes to encode; a fine-tuned or
    converted file differs at its ends (safetensors keep the header there) or in size.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}:{size}:".encode())
        with path.open("rb") as file:
            digest.update(file.read(_EDGE_BYTES))
            if size > _EDGE_BYTES:
                file.seek(max(_EDGE_BYTES, size - _EDGE_BYTES))
                digest.update(file.read())
    return digest.hexdigest()[:16]


def local_folder(base: str) -> Path:
    """Where a base lies: the folder itself, or what is fetched of a hub name.

    Raises:
        UserError: no such folder, or the hub name cannot be fetched.
    """
    folder = Path(base)
    if folder.is_dir():
        return folder
    if base.count("/") != 1 or base.startswith((".", "/", "~")):
        raise UserError(
            f"Base model folder {base} does not exist. Give a diffusers folder or a hub name (owner/model)."
        )
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(base))
    except (OSError, ValueError) as error:
        raise UserError(
            f"Base model {base} is not a local folder, and could not be fetched from the hub: {error}"
        ) from error


def load_part(model_class: Any, base: Path, part: str, **kwargs: Any) -> Any:
    """One part of a base by its class's ``from_pretrained``, given ``kwargs``.

    Raises:
        UserError: it cannot be loaded.
    """
    try:
        return model_class.from_pretrained(base, subfolder=part, **kwargs)
    except (OSError, ValueError) as error:
        raise UserError(f"{base}/{part} could not be loaded as {model_class.__name__}: {error}") from error
