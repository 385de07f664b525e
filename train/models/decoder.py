"""Latent map → image: nearest-neighbour upsampling and 3 x 3 convolutions (Odena et al. 2016: no checkerboards).

`light`   one convolution for each doubling
`mirror`  the residual blocks of a ResNet, as many and as wide, from the deepest stage to the first

Behind a standard stem the last factor of four is one sub-pixel convolution (Shi et al. 2016): at full resolution a
decoder would cost as much as the encoder it is there to train.
"""

import itertools
from typing import Any

from torch import nn

from train.models.norm import BatchNorm, over_global_batch

_WIDEST = 128


def light_decoder(latent_dim: int, channels: int, stride: int, stem_stride: int, width: int) -> nn.Sequential:
    """[B, latent_dim, y, x] → [B, channels, y · stride, x · stride]; no output activation.

    Args:
        stride: a power of two, `stem_stride` or more.
        stem_stride: 4, or 1 for a small stem.
        width: channels of the last stage, at the resolution behind the stem; each stage before has twice as many, at
            most 128.
    """
    stages = (stride // stem_stride).bit_length() - 1
    widths = [min(_WIDEST, width << (stages - stage)) for stage in range(stages + 1)]
    layers: list[nn.Module] = [nn.Conv2d(latent_dim, widths[0], 3, padding=1, bias=False), *_norm(widths[0])]
    for before, after in itertools.pairwise(widths):
        layers += [nn.Upsample(scale_factor=2, mode="nearest")]
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), *_norm(after)]
    return nn.Sequential(*layers, *_to_pixels(widths[-1], channels, stem_stride))


def mirror_decoder(latent_dim: int, channels: int, stem_stride: int, encoder: Any) -> nn.Sequential:
    """As `light_decoder`, of timm's blocks.

    Args:
        encoder: of `train.models.encoder`, a ResNet up to some stage.
    """
    stages = [stage for name, stage in encoder.named_children() if name.startswith("layer")]
    if not stages:
        return nn.Sequential(*_to_pixels(latent_dim, channels, stem_stride))
    width = _width(stages[-1])
    layers: list[nn.Module] = [nn.Conv2d(latent_dim, width, 3, padding=1, bias=False), *_norm(width)]
    for number, stage in reversed(list(enumerate(stages))):
        if number < len(stages) - 1:  # behind each stage but the first the encoder has halved
            layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
        for _ in stage:
            layers.append(_block(stage[0], width, _width(stage)))
            width = _width(stage)
    return nn.Sequential(*layers, *_to_pixels(width, channels, stem_stride))


def _block(like: Any, before: int, after: int) -> nn.Module:
    """A residual block as the encoder's, from and to so many channels."""
    skip = nn.Sequential(nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after)) if before != after else None
    block = type(like)(before, after // like.expansion, downsample=skip)
    block.zero_init_last()
    return over_global_batch(block)


def _width(stage: Any) -> int:
    """Channels that a stage of a ResNet gives."""
    last = stage[-1]
    return int((last.conv3 if hasattr(last, "conv3") else last.conv2).out_channels)


def _to_pixels(width: int, channels: int, factor: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(width, channels * factor**2, 3, padding=1)
    return (convolution, nn.PixelShuffle(factor)) if factor > 1 else (convolution,)


def _norm(channels: int) -> tuple[nn.Module, nn.Module]:
    return BatchNorm(channels), nn.ReLU(inplace=True)
