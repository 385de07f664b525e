"""Latent map → image: nearest-neighbour upsampling and 3 x 3 convolutions (Odena et al. 2016: no checkerboards).

The last factor of four is one sub-pixel convolution (Shi et al. 2016): at full resolution a decoder would cost as
much as the encoder it is there to train.
"""

import itertools

from torch import nn

from train.models.norm import BatchNorm

_WIDEST = 128
_SUB_PIXEL = 4


def decoder(latent_dim: int, channels: int, stride: int, width: int) -> nn.Sequential:
    """[B, latent_dim, y, x] → [B, channels, y · stride, x · stride]; no output activation.

    Args:
        stride: 4 or more, a power of two.
        width: channels of the last stage, at a quarter of the resolution; each stage before has twice as many, at
            most 128.
    """
    stages = (stride // _SUB_PIXEL).bit_length() - 1
    widths = [min(_WIDEST, width << (stages - stage)) for stage in range(stages + 1)]
    layers: list[nn.Module] = [nn.Conv2d(latent_dim, widths[0], 3, padding=1, bias=False), *_norm(widths[0])]
    for before, after in itertools.pairwise(widths):
        layers += [nn.Upsample(scale_factor=2, mode="nearest")]
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), *_norm(after)]
    to_pixels = nn.Conv2d(widths[-1], channels * _SUB_PIXEL**2, 3, padding=1)
    return nn.Sequential(*layers, to_pixels, nn.PixelShuffle(_SUB_PIXEL))


def _norm(channels: int) -> tuple[nn.Module, nn.Module]:
    return BatchNorm(channels), nn.ReLU(inplace=True)
