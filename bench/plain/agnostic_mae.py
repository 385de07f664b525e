"""A plain channel-agnostic masked autoencoder (Kraus et al., CVPR 2024): each channel is embedded as a grey image."""

import torch
from torch import Tensor, nn

from bench.plain.mae import MAE, OURS, Transformer

__all__ = ["OURS", "AgnosticMAE"]


class AgnosticMAE(MAE):
    """A token is a patch of one channel; the decoder is told which channel it is."""

    def __init__(
        self, crop: int, channels: int, patch: int, encoder: Transformer, decoder: Transformer, mask_ratio: float
    ) -> None:
        super().__init__(crop, 1, patch, encoder, decoder, mask_ratio)
        self.channel_embed = nn.Parameter(torch.zeros(channels, decoder.width))

    def tokens(self, images: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        x = self.patch_embed(images.reshape(batch * channels, 1, height, width)) + self.pos_embed
        return x.reshape(batch, -1, x.shape[2])

    def decoder_positions(self, images: Tensor) -> Tensor:
        each = self.decoder_pos_embed + self.channel_embed.unsqueeze(1)  # [C, L, width]
        return each.flatten(0, 1).unsqueeze(0)

    def patchify(self, images: Tensor) -> Tensor:
        """[B, C, Y, X] → [B, C · L, 1, p²]."""
        return super().patchify(images).transpose(1, 2).flatten(1, 2).unsqueeze(2)
