"""A plain autoencoder: timm's ResNet-18 to stride 16, and a decoder as one nn.Sequential."""

import timm
import torch.nn.functional as F
from torch import Tensor, nn

_FEATURES = 256  # of a ResNet-18 at stride 16


def encoder(channels: int) -> nn.Module:
    """[B, C, Y, X] → a list with one tensor [B, 256, Y / 16, X / 16]."""
    backbone: nn.Module = timm.create_model("resnet18", features_only=True, in_chans=channels, out_indices=(3,))
    return backbone


def to_latent(numbers: int) -> nn.Conv2d:
    """[B, 256, y, x] → [B, numbers, y, x]."""
    return nn.Conv2d(_FEATURES, numbers, 1)


def decoder(latent_dim: int, channels: int) -> nn.Sequential:
    """[B, D, y, x] → [B, C, 16 y, 16 x]."""
    return nn.Sequential(
        nn.Conv2d(latent_dim, 128, 3, padding=1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(inplace=True),
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.Conv2d(128, 128, 3, padding=1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(inplace=True),
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.Conv2d(128, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.Conv2d(64, channels * 16, 3, padding=1),
        nn.PixelShuffle(4),
    )


class AE(nn.Module):
    """Mean squared error of an image from its own latent map."""

    def __init__(self, channels: int, latent_dim: int) -> None:
        super().__init__()
        self.encoder = encoder(channels)
        self.to_latent = to_latent(latent_dim)
        self.decoder = decoder(latent_dim, channels)

    def forward(self, images: Tensor) -> Tensor:
        return F.mse_loss(self.decoder(self.to_latent(self.encoder(images)[-1])), images)
