"""encoder → features → latent map → (Gaussians or codes) → decoder. The embedding is the mean of the features.

Shapes: images [B, C, Y, X]; features [B, F, Y / stride, X / stride]; latent map [B, D, Y / stride, X / stride];
embedding [B, F], the mean over positions. With `channels: expand` each channel is an image of its own: to the network
B · C images of one channel, and the embedding is [B, C · F], channel after channel.

The embedding is read before the projection onto the latent map, as contrastive learning reads it before its
projection head (Chen et al. 2020, section 4.2): the bottleneck is there for the objective, and what it drops was
worth something to a classifier each time that we compared the two (figures in train/configs/bbbc013_vqvae.yaml).
"""

from torch import Tensor, nn

from train.config import (
    LAST,
    STANDARD_STEM,
    ContrastConfig,
    LatentConfig,
    Readout,
    TimmConfig,
    VAEConfig,
    VQVAEConfig,
    ZalandoConfig,
)
from train.losses.fourier import spectrum_distance
from train.losses.kl import kl_loss, warm
from train.losses.reconstruction import reconstruction
from train.losses.ssim import ssim
from train.models.channels import contracted, expanded
from train.models.contrasted import contrasted
from train.models.decoder import light_decoder, mirror_decoder
from train.models.encoder import encoder
from train.models.gaussian import Gaussian, active_units
from train.models.model import Model, Output
from train.models.pooling import pooled
from train.models.quantise import quantiser
from train.models.zalando import ZalandoEncoder, zalando_decoder


class Autoencoder(Model):
    """A plain autoencoder, a VAE or a VQ-VAE."""

    def __init__(self, config: LatentConfig, channels: int) -> None:
        super().__init__()
        self.config, self.expands = config, config.channels == "expand"
        channels = 1 if self.expands else channels
        self.encoder, features, self.decoder = _around(config, channels)
        self.to_latent = nn.Conv2d(features, config.latent_dim * (2 if config.kind == "vae" else 1), 1)
        self.gaussian = Gaussian()
        if isinstance(config, VQVAEConfig | ZalandoConfig):
            self.quantiser = quantiser(config.quantiser, config.latent_dim)

    def forward(
        self, images: Tensor, step: int | None = None, groups: Tensor | None = None, present: Tensor | None = None
    ) -> Output:
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
                weight = warm(config.beta, step, int(config.beta_warmup_steps))
                losses["kl"] = weight * kl_loss(kl, images[0].numel(), config.free_nats)
                health["active_units"] = active_units(kl)
            case VQVAEConfig() | ZalandoConfig():
                quantised = self.quantiser(latent)
                latent, codes, losses = quantised.latent, quantised.codes, quantised.losses
        output = self.decoder(latent).float()
        losses = {**self._reconstruction(output, images), **losses}
        if config.contrast is not None and (self.training or groups is not None):
            losses["contrast"] = self._contrast(config.contrast, features, channels, groups)
        output = output.detach()
        if self.expands:
            output = contracted(output, channels)
            codes = None if codes is None else _beneath(codes, channels)
        return Output(losses, self._embedding(features, channels, LAST).detach(), lambda: output, codes, health)

    def _reconstruction(self, output: Tensor, images: Tensor) -> dict[str, Tensor]:
        config, losses = self.config, {}
        if (rest := 1 - config.ssim - config.fourier) > 0:
            losses["reconstruction"] = rest * reconstruction(config.reconstruction, output, images)
        if config.ssim:
            losses["ssim"] = config.ssim * (1 - ssim(output, images))
        if config.fourier:
            losses["fourier"] = config.fourier * spectrum_distance(output, images).mean()
        return losses

    def _contrast(self, config: ContrastConfig, features: Tensor, channels: int, groups: Tensor | None) -> Tensor:
        embedding = self._embedding(features, channels, LAST)
        of_channels = embedding.reshape(len(embedding), channels, -1) if self.expands else None
        return contrasted(config, embedding, of_channels, groups)

    def features(self, images: Tensor, layer: int | None = None) -> Tensor:
        """[B, F, y, x]: what a stage of the backbone gives; None for the last."""
        features: Tensor = self.encoder(images)[-1 if layer is None else layer - 1]
        return features

    def latent_map(self, images: Tensor) -> Tensor:
        """[B, D, y, x], before quantisation; of a VAE [B, 2 D, y, x], means and log variances."""
        latent: Tensor = self.to_latent(self.features(images))
        return latent

    def embed(self, images: Tensor, readout: Readout = LAST, present: Tensor | None = None) -> Tensor:
        channels = images.shape[1]
        features = self.features(expanded(images) if self.expands else images, readout.layer)
        return self._embedding(features, channels, readout)

    @property
    def layers(self) -> int:
        if isinstance(self.encoder, ZalandoEncoder):
            return len(self.encoder.stages)
        return len(self.encoder.feature_info.channels())  # type: ignore[operator, union-attr]  # timm's

    def _embedding(self, features: Tensor, channels: int, readout: Readout) -> Tensor:
        """[B, F], or [B, C · F] of channels that were expanded."""
        of_each = pooled(features.flatten(2).transpose(1, 2), readout.pooling)
        return of_each.reshape(-1, channels * of_each.shape[1]) if self.expands else of_each


def _around(config: LatentConfig, channels: int) -> tuple[nn.Module, int, nn.Module]:
    """Encoder, its number of features, and decoder."""
    if isinstance(config, ZalandoConfig):
        return ZalandoEncoder(config, channels), config.num_hiddens, zalando_decoder(config, channels)
    return _of_timm(config, channels)


def _of_timm(config: TimmConfig, channels: int) -> tuple[nn.Module, int, nn.Module]:
    backbone, features = encoder(config, channels)
    stem_stride = 1 if config.stem == "small" else STANDARD_STEM
    if config.decoder == "mirror":
        return backbone, features, mirror_decoder(config.latent_dim, channels, stem_stride, backbone)
    width = config.decoder_width
    return backbone, features, light_decoder(config.latent_dim, channels, config.stride, stem_stride, width)


def _beneath(codes: Tensor, channels: int) -> Tensor:
    """[B · C, K, y, x] → [B, K, C · y, x]: the maps of an image's channels beneath each other."""
    _, books, height, width = codes.shape
    return (
        codes.reshape(-1, channels, books, height, width).transpose(1, 2).reshape(-1, books, channels * height, width)
    )
