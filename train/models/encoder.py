"""A timm backbone as a spatial encoder: images [B, C, Y, X] → features [B, F, Y / stride, X / stride]."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
from torch import nn

from bie_stream.errors import ConfigError
from train.models.norm import over_global_batch


def encoder(name: str, channels: int, stride: int, pretrained: bool | Path = False) -> tuple[nn.Module, int]:
    """The backbone up to the stage with this stride, and its number of features.

    Args:
        pretrained: see `AutoencoderConfig`. Of one channel the first layer has the sum of its weights for three; of
            C others timm repeats the three, times 3 / C.

    Raises:
        ConfigError: timm has no such backbone, or it has no such stage, or its weights cannot be had.
    """
    make = functools.partial(timm.create_model, name, features_only=True, in_chans=channels, pretrained=False)
    if not timm.is_model(name):
        raise ConfigError(f"model.encoder {name!r} is no timm model; see timm.list_models()")
    try:
        reductions = make().feature_info.reduction()
        stage = reductions.index(stride)
        backbone = make(out_indices=(stage,))
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ConfigError(f"model.encoder {name!r} gives no feature maps: {error}") from error
    except ValueError as error:
        raise ConfigError(f"model.encoder {name!r} has no stage of stride {stride}; it has {reductions}") from error
    if pretrained:
        backbone = _loaded(make, stage, pretrained)
    return over_global_batch(backbone), backbone.feature_info.channels()[-1]


def _loaded(make: Callable[..., Any], stage: int, pretrained: bool | Path) -> Any:
    own = {"file": str(pretrained)} if isinstance(pretrained, Path) else None
    if isinstance(pretrained, Path) and not pretrained.is_file():
        raise ConfigError(f"model.pretrained: no file {pretrained}")
    try:
        return make(out_indices=(stage,), pretrained=True, pretrained_cfg_overlay=own)
    except Exception as error:  # of the hub, of the network, of torch: what their libraries raise
        said = " ".join(str(error).split())[:300]
        raise ConfigError(f"model.pretrained: the weights could not be loaded: {said}") from error
