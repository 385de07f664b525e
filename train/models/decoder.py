"""Latent map → image: nearest-neighbour upsampling and 3 x 3 convolutions (Odena et al. 2016: no checkerboards)."""

from torch import nn

from train.models.encoder import group_norm

_WIDEST = 128


def decoder(latent_dim: int, channels: int, stride: int, width: int) -> nn.Sequential:
    """[B, latent_dim, y, x] → [B, channels, y · stride, x · stride]; no output activation.

    Args:
        width: channels of the last stage, at full resolution; each stage before has twice as many, at most 128.
    """
    stages = stride.bit_length() - 1
    widths = [min(_WIDEST, width << (stages - 1 - stage)) for stage in range(stages)]
    layers: list[nn.Module] = [nn.Conv2d(latent_dim, widths[0], 3, padding=1)]
    for before, after in zip([widths[0], *widths], widths, strict=False):
        layers += [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(before, after, 3, padding=1, bias=False)]
        layers += [group_norm(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], channels, 3, padding=1))
