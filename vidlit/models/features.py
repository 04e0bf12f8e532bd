"""What sets of videos are compared by: vectors of one length.

The default needs no weights and reads latents of any resolution; any vision model of ``transformers`` can take its
place. Both are deterministic and draw from no global generator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidlit.errors import UserError

MAX_FEATURES = 256
GRID = (4, 4, 4)
"""Frames, rows and columns that latents of every resolution are pooled to."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What DINOv2, VideoMAE and V-JEPA 2 expect colours to be normalised by."""


class FeatureExtractor(ABC):
    """Turns videos of one resolution into vectors that can be compared over resolutions, by Euclidean distance."""

    reads: ClassVar[Literal["latents", "frames"]]
    """What :meth:`__call__` takes: latents (B, C, F, H, W), or decoded frames (B, 3, F, H, W) in [-1, 1]."""

    @abstractmethod
    def __call__(self, videos: Tensor) -> Tensor:
        """Features (B, D) float32 of B videos."""


class LatentFeatures(FeatureExtractor):
    """Latents, pooled to a 4 x 4 x 4 grid and projected to 256 dimensions.

    The projection is random but fixed: it keeps distances to about 5 % (Johnson-Lindenstrauss) for any number of
    channels, and noise in the latents is not averaged away before small pictures are compared.

    Example:
        >>> LatentFeatures()(torch.ones(2, 16, 5, 6, 10)).shape
        torch.Size([2, 256])
    """

    reads = "latents"

    @torch.no_grad()
    def __call__(self, videos: Tensor) -> Tensor:
        """Features (B, 256) of latents (B, C, F, H, W)."""
        return _project(F.adaptive_avg_pool3d(videos.float(), GRID).flatten(1))


class VisionFeatures(FeatureExtractor):
    """What a vision model of ``transformers`` sees: its pooled embedding.

    Image models (DINOv2, ViT) look at every frame alone, video models (VideoMAE, V-JEPA 2) at as many frames as they
    were trained on, spread evenly. Training clips are decoded once for it, so it costs more than latents.

    Args:
        model: local folder, or hub name such as ``facebook/dinov2-base`` or ``facebook/vjepa2-vitl-fpc64-256``;
            loaded when first used.

    Raises:
        UserError: when first used, if the model cannot be loaded or is not a vision model.
    """

    reads = "frames"

    def __init__(self, model: str) -> None:
        self.model = model

    @torch.no_grad()
    def __call__(self, videos: Tensor) -> Tensor:
        """Features (B, D) of frames (B, 3, F, H, W) in about [-1, 1]."""
        return self._embed(videos.float()).mean(1)

    @cached_property
    def _network(self) -> Any:
        from transformers import AutoModel

        try:
            network = AutoModel.from_pretrained(
                self.model, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise UserError(f"vision model {self.model} cannot be loaded: {error}") from error
        if network.main_input_name not in ("pixel_values", "pixel_values_videos"):
            raise UserError(f"{self.model} reads {network.main_input_name}, not pictures: name a vision model")
        return network.eval().requires_grad_(False)

    def _embed(self, frames: Tensor) -> Tensor:
        """Embeddings over time (B, T, D)."""
        network = self._network.to(frames.device)
        config = network.config
        size = getattr(config, "crop_size", None) or config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        tubelet = getattr(config, "tubelet_size", None)
        if tubelet is not None:
            count = getattr(config, "frames_per_clip", None) or config.num_frames
            frames = frames[:, :, torch.linspace(0, frames.shape[2] - 1, count).round().long()]
        pictures = F.interpolate(
            frames.transpose(1, 2).flatten(0, 1), (height, width), mode="bilinear", antialias=True, align_corners=False
        )
        mean, std = (pictures.new_tensor(value).view(3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
        pictures = (pictures.clamp(-1, 1) / 2 + 0.5 - mean) / std
        if tubelet is None:
            seen = torch.cat([_pooled(network(pixel_values=part)) for part in torch.split(pictures, 32)])
            return seen.view(len(frames), -1, seen.shape[1])
        # V-JEPA 2 comes with a predictor that is only for its training.
        options = {"skip_predictor": True} if network.main_input_name == "pixel_values_videos" else {}
        video = pictures.view(len(frames), count, 3, height, width)
        tokens: Tensor = network(**{network.main_input_name: video}, **options).last_hidden_state
        return tokens.view(len(frames), count // tubelet, -1, tokens.shape[2]).mean(2)


class FeatureModule(nn.Module):
    """Features as a module: what torchmetrics' FID, KID and MIFID take as ``feature``.

    They need many more videos than an audit samples: hundreds for KID, thousands for FID.

    Args:
        extractor: of features.
        num_features: their number; 256 for latents, the model's width for a vision model.

    Example:
        >>> from torchmetrics.image.kid import KernelInceptionDistance
        >>> metric = KernelInceptionDistance(feature=FeatureModule(LatentFeatures()), subsets=2, subset_size=4)
        >>> metric.update(torch.zeros(4, 16, 5, 6, 10), real=True)
        >>> metric.update(torch.zeros(4, 16, 5, 6, 10), real=False)
        >>> metric.compute()[0].item()
        0.0
    """

    def __init__(self, extractor: FeatureExtractor, num_features: int = MAX_FEATURES) -> None:
        super().__init__()
        self.extractor = extractor
        self.num_features = num_features

    def forward(self, videos: Tensor) -> Tensor:
        """What the extractor reads to (B, num_features)."""
        return self.extractor(videos)


def _project(values: Tensor) -> Tensor:
    """(B, D) to at most ``MAX_FEATURES`` columns, always by the same matrix for the same D."""
    if values.shape[1] <= MAX_FEATURES:
        return values
    generator = torch.Generator().manual_seed(values.shape[1])
    matrix = torch.randn(values.shape[1], MAX_FEATURES, generator=generator) / MAX_FEATURES**0.5
    return torch.mm(values, matrix.to(values.device))


def _pooled(output: Any) -> Tensor:
    pooled: Tensor | None = getattr(output, "pooler_output", None)
    tokens: Tensor = output.last_hidden_state
    return tokens.mean(1) if pooled is None else pooled
