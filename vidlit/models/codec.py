"""A latent codec without learned weights: the embedded default's stand-in for a VAE.

Videos are cut into patches of 4 frames x 16 x 16 pixels; of each patch's orthonormal space-time DCT in YCbCr the lowest
frequencies are kept. It saves, loads and behaves like a diffusers video VAE (1 + 4k frames, the first one alone in its
latent frame), so the quickstart runs the very code that a real VAE runs.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

LUMA_SHARE = 0.75
"""Of the kept coefficients, the share spent on brightness: the eye, and the error, live there."""


class PointDistribution:
    """A codec without noise: the "posterior" is one point, with the two methods pipelines call."""

    def __init__(self, latents: Tensor) -> None:
        self.latents = latents

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """The latents."""
        return self.latents

    def mode(self) -> Tensor:
        """The latents."""
        return self.latents


class PatchDCTCodec(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers has no types
    """Patchwise space-time DCT with the attributes of diffusers' ``AutoencoderKLLTXVideo``.

    Args:
        latent_channels: coefficients kept of each patch's 3072.
        patch_frames: frames in a patch, the temporal compression.
        patch_size: height and width of a patch in pixels, the spatial compression.
        scaling_factor: multiplies normalised latents, as in other VAEs.
        timestep_conditioning: always False; LTX pipelines ask.
    """

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers has no types
    def __init__(
        self,
        latent_channels: int = 64,
        patch_frames: int = 4,
        patch_size: int = 16,
        scaling_factor: float = 1.0,
        timestep_conditioning: bool = False,
    ) -> None:
        super().__init__()
        self.temporal_compression_ratio = patch_frames
        self.spatial_compression_ratio = patch_size
        kernel = _lowest_frequencies(latent_channels, patch_frames, patch_size)
        self.kernel = nn.Parameter(kernel, requires_grad=False)
        self.latents_mean = nn.Parameter(torch.zeros(latent_channels), requires_grad=False)
        self.latents_std = nn.Parameter(torch.ones(latent_channels), requires_grad=False)

    @property
    def _stride(self) -> tuple[int, int, int]:
        return (
            self.temporal_compression_ratio,
            self.spatial_compression_ratio,
            self.spatial_compression_ratio,
        )

    def encode(self, x: Tensor) -> AutoencoderKLOutput:
        """Videos (B, 3, 1 + 4k, H, W) in [-1, 1] to an output whose ``latent_dist`` has (B, C, 1 + k, H/16, W/16)."""
        lead = x[:, :, :1].expand(-1, -1, self.temporal_compression_ratio - 1, -1, -1)
        latents = F.conv3d(torch.cat([lead, x], dim=2), self.kernel, stride=self._stride)
        return AutoencoderKLOutput(latent_dist=PointDistribution(latents))

    def decode(self, z: Tensor, temb: Tensor | None = None, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Latents (B, C, 1 + k, h, w) to videos (B, 3, 1 + 4k, 16h, 16w) in about [-1, 1]."""
        video = F.conv_transpose3d(z, self.kernel, stride=self._stride)[:, :, self.temporal_compression_ratio - 1 :]
        return DecoderOutput(sample=video) if return_dict else (video,)

    @torch.no_grad()
    def fit_statistics(self, videos: list[Tensor]) -> None:
        """Set the normalisation from a pool of videos (B, 3, F, H, W) that is not the training set.

        Statistics of the training clips themselves would make training latents easier than validation ones from the
        first step. Channels are divided by the root of their deviation, not by all of it: high frequencies then
        keep less weight in the loss, as they have in the picture.
        """
        columns = [self.encode(video).latent_dist.latents.transpose(0, 1).flatten(1) for video in videos]
        pool = torch.cat(columns, dim=1)
        deviation = pool.std(dim=1).clamp_min(1e-3)
        self.latents_mean.copy_(pool.mean(dim=1))
        self.latents_std.copy_(deviation.sqrt() * deviation.mean().sqrt())


def _lowest_frequencies(num_kept: int, patch_frames: int, patch_size: int) -> Tensor:
    """Orthonormal basis (num_kept, 3, patch_frames, patch_size, patch_size) of the smoothest patches."""
    time, space = _dct_matrix(patch_frames), _dct_matrix(patch_size)
    # Rows are luma and the two chroma axes of YCbCr, made orthonormal so that the transpose decodes.
    # In float32 whatever the default is: from_pretrained(dtype=bfloat16) sets it, and QR knows no bfloat16.
    axes = torch.tensor([[0.299, 0.587, 0.114], [0.0, -0.5, 1.0], [1.0, -0.5, 0.0]], dtype=torch.float32)
    colour = torch.linalg.qr(axes.T)[0].T
    num_luma = round(num_kept * LUMA_SHARE)
    num_chroma = (num_kept - num_luma) // 2
    wanted = [num_luma, num_chroma, num_kept - num_luma - num_chroma]
    frequencies = sorted(
        ((t, y, x) for t in range(patch_frames) for y in range(patch_size) for x in range(patch_size)),
        # Motion between the frames of one patch is slow next to detail within a frame: time costs more.
        key=lambda f: (math.hypot(2.0 * f[0], f[1], f[2]), f),
    )
    basis = [
        torch.einsum("c,t,y,x->ctyx", colour[channel], time[t], space[y], space[x])
        for channel, count in enumerate(wanted)
        for t, y, x in frequencies[:count]
    ]
    return torch.stack(basis)


def _dct_matrix(size: int) -> Tensor:
    """Orthonormal DCT-II, (frequency, position)."""
    frequency = torch.arange(size, dtype=torch.float32)
    matrix = torch.cos(math.pi / size * frequency[:, None] * (frequency + 0.5)[None])
    matrix[0] /= math.sqrt(2)
    return matrix * math.sqrt(2 / size)
