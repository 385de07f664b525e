"""encoder → features → latent map → (Gaussians or codes) → decoder. The embedding is the mean of the features.

Shapes: images [B, C, Y, X]; features [B, F, Y / stride, X / stride]; latent map [B, D, Y / stride, X / stride];
embedding [B, F], the mean over positions. With `channels: expand` each channel is an image of its own: to the network
B · C images of one channel, and the embedding is [B, C · F], channel after channel.

The embedding is read before the projection onto the latent map, as contrastive learning reads it before its
projection head (Chen et al. 2020, section 4.2): the bottleneck is there for the objective, and what it drops was
worth something to a classifier each time that we compared the two (figures in train/configs/bbbc013_vqvae.yaml).
"""

import torch
from torch import Tensor, nn

from train.config import AEConfig, ContrastConfig, VAEConfig, VQVAEConfig
from train.losses.contrast import contrast
from train.losses.kl import kl_loss, warm
from train.losses.reconstruction import reconstruction
from train.models.channels import contracted, expanded
from train.models.decoder import decoder
from train.models.encoder import encoder
from train.models.gaussian import Gaussian, active_units
from train.models.model import Model, Output, own_part
from train.models.quantise import VectorQuantiser


class Autoencoder(Model):
    """A plain autoencoder, a VAE or a VQ-VAE."""

    def __init__(self, config: AEConfig | VAEConfig | VQVAEConfig, channels: int) -> None:
        super().__init__()
        self.config, self.expands = config, config.channels == "expand"
        channels = 1 if self.expands else channels
        self.encoder, features = encoder(config.encoder, channels, config.stride, config.pretrained)
        self.to_latent = nn.Conv2d(features, config.latent_dim * (2 if config.kind == "vae" else 1), 1)
        self.gaussian = Gaussian()
        if isinstance(config, VQVAEConfig):
            self.quantiser = VectorQuantiser(config.codes, config.latent_dim, config.decay, config.revive_below)
        self.decoder = decoder(config.latent_dim, channels, config.stride, config.decoder_width)

    def forward(self, images: Tensor, step: int | None = None, groups: Tensor | None = None) -> Output:
        channels, config = images.shape[1], self.config
        if self.expands:
            images = expanded(images)
        features = self.features(images)
        latent = self.to_latent(features)
        losses: dict[str, Tensor] = {}
        health: dict[str, Tensor] = {}
        codes: Tensor | None = None
        match config:
            case VAEConfig():
                latent, kl = self.gaussian(latent)
                weight = warm(config.beta, step, config.beta_warmup_steps)
                losses["kl"] = weight * kl_loss(kl, images[0].numel(), config.free_nats)
                health["active_units"] = active_units(kl)
            case VQVAEConfig():
                latent, codes, commitment = self.quantiser(latent)
                losses["commitment"] = config.commitment * commitment
        output = self.decoder(latent).float()
        losses = {"reconstruction": reconstruction(config.reconstruction, output, images), **losses}
        if config.contrast is not None and (self.training or groups is not None):
            losses["contrast"] = self._contrast(config.contrast, features, channels, groups)
        if self.expands:
            output = contracted(output, channels)
            codes = None if codes is None else contracted(codes[:, None], channels).flatten(1, 2)
        return Output(losses, output, self._embedding(features, channels).detach(), codes, health)

    def _contrast(self, config: ContrastConfig, features: Tensor, channels: int, groups: Tensor | None) -> Tensor:
        each = self._embedding(features, channels)
        if config.of == "channels":
            total, own = own_part(len(each))
            groups = torch.arange(total, device=each.device)[own].repeat_interleave(channels)
            each = each.reshape(len(each) * channels, -1)
        assert groups is not None, "the loop gives those of replicates"
        return config.weight * contrast(each, groups, config.similarity, config.temperature)

    def features(self, images: Tensor) -> Tensor:
        """[B, F, y, x]: what the backbone gives."""
        features: Tensor = self.encoder(images)[-1]
        return features

    def latent_map(self, images: Tensor) -> Tensor:
        """[B, D, y, x], before quantisation; of a VAE [B, 2 D, y, x], means and log variances."""
        latent: Tensor = self.to_latent(self.features(images))
        return latent

    def embed(self, images: Tensor) -> Tensor:
        return self._embedding(self.features(expanded(images) if self.expands else images), images.shape[1])

    def _embedding(self, features: Tensor, channels: int) -> Tensor:
        """[B, F], or [B, C · F] of channels that were expanded."""
        of_each = features.float().mean(dim=(2, 3))
        return of_each.reshape(-1, channels * of_each.shape[1]) if self.expands else of_each
