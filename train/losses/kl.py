"""How far the latent space of a VAE is from its prior.

    KL(N(μ, σ²) || N(0, 1)) = ½ (μ² + σ² − 1 − log σ²)                              Kingma and Welling 2014, appendix B
    L = 2 · Σ_d max(λ, k_d) · positions / numbers of an image                         Kingma et al. 2016, equation 15

k_d is the mean of channel d over batch and positions, in nats: λ nats of each channel are free. The factor makes β what
it should be: mean squared error + β · L is, up to constants, the negative evidence lower bound (times 2 / numbers) of
pixels with Gaussian noise of variance β. It depends neither on the batch nor on the size of the image.
"""

import torch
from torch import Tensor


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Of each latent number, in nats; the shape of its arguments."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


def kl_loss(kl: Tensor, numbers: int, free_nats: float = 0.0) -> Tensor:
    """A scalar, unweighted.

    Args:
        kl: [B, D, y, x] nats, of `divergence`.
        numbers: C · Y · X of an image.
        free_nats: λ.
    """
    of_channel = kl.mean(dim=(0, 2, 3))
    positions = kl.shape[2] * kl.shape[3]
    return 2 * torch.clamp(of_channel, min=free_nats).sum() * positions / numbers


def warm(weight: float, step: int | None, warmup_steps: int) -> float:
    """A weight that grows from 0 in the first step to itself (Bowman et al. 2016); itself where step is None."""
    return weight if step is None or step >= warmup_steps else weight * step / warmup_steps
