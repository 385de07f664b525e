"""encoder → features → latent map → (codes) → decoder. The embedding is the mean of the features over positions.

Shapes: images [B, C, Y, X]; features [B, F, Y / stride, X / stride]; latent map [B, D, Y / stride, X / stride];
embedding [B, F].

The embedding is read before the projection onto the latent map, as contrastive learning reads it before its
projection head (Chen et al. 2020, section 4.2): the bottleneck is there for the objective, and what it drops was
worth something to a classifier each time that we compared the two (figures in train/configs/bbbc013_vqvae.yaml).
"""

from dataclasses import dataclass

from torch import Tensor, nn

from train.config import AEConfig, VQVAEConfig
from train.models.decoder import decoder
from train.models.encoder import encoder
from train.models.quantise import VectorQuantiser


@dataclass
class Output:
    """What a forward pass gives.

    Attributes:
        reconstruction: [B, C, Y, X] float32.
        regularisers: losses of the latent space, weighted, each a scalar.
        codes: [B, y, x] int64; None for a plain autoencoder.
    """

    reconstruction: Tensor
    regularisers: dict[str, Tensor]
    codes: Tensor | None


class Autoencoder(nn.Module):
    """A plain autoencoder, or a VQ-VAE."""

    def __init__(self, config: AEConfig | VQVAEConfig, channels: int) -> None:
        super().__init__()
        self.encoder, features = encoder(config.encoder, channels, config.stride)
        self.to_latent = nn.Conv2d(features, config.latent_dim, 1)
        self.quantiser: VectorQuantiser | None = None
        self.commitment = 0.0
        if isinstance(config, VQVAEConfig):
            self.quantiser = VectorQuantiser(config.codes, config.latent_dim, config.decay, config.revive_below)
            self.commitment = config.commitment
        self.decoder = decoder(config.latent_dim, channels, config.stride, config.decoder_width)

    def forward(self, images: Tensor) -> Output:
        latent = self.latent_map(images)
        if self.quantiser is None:
            return Output(self.decoder(latent).float(), {}, None)
        quantised, codes, commitment = self.quantiser(latent)
        return Output(self.decoder(quantised).float(), {"commitment": self.commitment * commitment}, codes)

    def features(self, images: Tensor) -> Tensor:
        """[B, F, y, x]: what the backbone gives."""
        features: Tensor = self.encoder(images)[-1]
        return features

    def latent_map(self, images: Tensor) -> Tensor:
        """[B, D, y, x], before quantisation."""
        latent: Tensor = self.to_latent(self.features(images))
        return latent

    def embed(self, images: Tensor) -> Tensor:
        """[B, F]: the mean of the features over positions."""
        return self.features(images).float().mean(dim=(2, 3))
