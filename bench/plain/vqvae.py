"""A plain VQ-VAE (van den Oord et al. 2017), its codebook a moving average (appendix A.1) by one-hot products."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.plain.autoencoder import decoder, encoder, to_latent

OURS = {"quantiser.codebook": "quantiser.books.0.placed", "quantiser.": "quantiser.books.0."}


class Quantiser(nn.Module):
    """[B, D, y, x] → the same shape of nearest codes, and the commitment loss."""

    codebook: Tensor  # [K, D]
    uses: Tensor  # [K]
    sums: Tensor  # [K, D]

    def __init__(self, codes: int, dim: int, decay: float, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.codes, self.decay, self.epsilon = codes, decay, epsilon
        self.register_buffer("codebook", torch.randn(codes, dim))
        self.register_buffer("uses", torch.ones(codes))
        self.register_buffer("sums", self.codebook.clone())

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.permute(0, 2, 3, 1).contiguous()
        vectors = z.view(-1, z.shape[3])
        distances = vectors.pow(2).sum(1, keepdim=True) + self.codebook.pow(2).sum(1) - 2 * vectors @ self.codebook.t()
        one_hot = F.one_hot(distances.argmin(1), self.codes).to(z.dtype)
        quantised = (one_hot @ self.codebook).view(z.shape)
        if self.training:
            with torch.no_grad():
                self.uses.mul_(self.decay).add_(one_hot.sum(0), alpha=1 - self.decay)
                self.sums.mul_(self.decay).add_(one_hot.t() @ vectors, alpha=1 - self.decay)
                total = self.uses.sum()
                smoothed = (self.uses + self.epsilon) / (total + self.codes * self.epsilon) * total
                self.codebook.copy_(self.sums / smoothed.unsqueeze(1))
        commitment = F.mse_loss(z, quantised.detach())
        quantised = z + (quantised - z).detach()
        return quantised.permute(0, 3, 1, 2).contiguous(), commitment


class VQVAE(nn.Module):
    """Mean squared error + weighted commitment loss."""

    def __init__(self, channels: int, latent_dim: int, codes: int, decay: float, commitment: float) -> None:
        super().__init__()
        self.commitment = commitment
        self.encoder = encoder(channels)
        self.to_latent = to_latent(latent_dim)
        self.quantiser = Quantiser(codes, latent_dim, decay)
        self.decoder = decoder(latent_dim, channels)

    def forward(self, images: Tensor) -> Tensor:
        quantised, commitment = self.quantiser(self.to_latent(self.encoder(images)[-1]))
        loss: Tensor = F.mse_loss(self.decoder(quantised), images) + self.commitment * commitment
        return loss
