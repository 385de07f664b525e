"""A plain β-VAE (Kingma and Welling 2014): diagonal Gaussians, the divergence in closed form."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.plain.autoencoder import decoder, encoder, to_latent


class VAE(nn.Module):
    """Mean squared error + β · 2 KL / numbers of an image."""

    def __init__(self, channels: int, latent_dim: int, beta: float) -> None:
        super().__init__()
        self.beta = beta
        self.encoder = encoder(channels)
        self.to_latent = to_latent(2 * latent_dim)
        self.decoder = decoder(latent_dim, channels)

    def forward(self, images: Tensor) -> Tensor:
        mean, log_variance = self.to_latent(self.encoder(images)[-1]).chunk(2, dim=1)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        kl = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
        return F.mse_loss(self.decoder(z), images) + self.beta * 2 * kl / images.numel()
