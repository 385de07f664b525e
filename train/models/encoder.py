"""A timm backbone as a spatial encoder: images [B, C, Y, X] → features [B, F, Y / stride, X / stride]."""

import functools
from typing import Any

import timm
from torch import nn

from bie_stream.errors import ConfigError


def group_norm(channels: int, **_: Any) -> nn.GroupNorm:
    """Group normalisation (Wu and He 2018), 8 groups.

    Not batch normalisation: under data parallelism that would see only its own rank's images, so the loss would
    depend on the number of processes, and its running statistics would differ between them.
    """
    return nn.GroupNorm(8, channels)


def encoder(name: str, channels: int, stride: int) -> tuple[nn.Module, int]:
    """The backbone up to the stage with this stride, and its number of features.

    Raises:
        ConfigError: timm has no such backbone, or it has no such stage.
    """
    make = functools.partial(timm.create_model, name, features_only=True, in_chans=channels, pretrained=False)
    if not timm.is_model(name):
        raise ConfigError(f"model.encoder {name!r} is no timm model; see timm.list_models()")
    norm = {"norm_layer": group_norm} if name.startswith(("resnet", "resnext", "wide_resnet")) else {}
    try:
        reductions = make(**norm).feature_info.reduction()
        stage = reductions.index(stride)
        backbone = make(out_indices=(stage,), **norm)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ConfigError(f"model.encoder {name!r} gives no feature maps: {error}") from error
    except ValueError as error:
        raise ConfigError(f"model.encoder {name!r} has no stage of stride {stride}; it has {reductions}") from error
    return backbone, backbone.feature_info.channels()[-1]
