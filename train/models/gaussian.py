"""A Gaussian at each position of a latent map (Kingma and Welling 2014), by the reparametrisation z = μ + σ ε."""

import torch
from torch import Tensor, nn

from train.losses.kl import divergence
from train.models.model import own_part

_LOG_VARIANCE = (-30.0, 20.0)  # beyond which exp would leave nothing, or overflow
_ACTIVE = 0.01  # nats


class Gaussian(nn.Module):
    """[B, 2 D, y, x], means and log variances → [B, D, y, x]: a draw in training, the means otherwise."""

    def forward(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """The latent map; and KL(q || N(0, 1)) [B, D, y, x] in nats."""
        with torch.autocast(parameters.device.type, enabled=False):
            mean, log_variance = parameters.float().chunk(2, dim=1)
            log_variance = log_variance.clamp(*_LOG_VARIANCE)
            kl = divergence(mean, log_variance)
            if not self.training:
                return mean, kl
            total, own = own_part(len(mean))
            noise = torch.randn(total, *mean.shape[1:])[own].to(mean.device)  # on the CPU: the same on any accelerator
            return mean + torch.exp(0.5 * log_variance) * noise, kl


def active_units(kl: Tensor) -> Tensor:
    """How many of the D channels of a latent map say anything: more than 0.01 nats a position, on average."""
    return (kl.detach().mean(dim=(0, 2, 3)) > _ACTIVE).sum().float()
