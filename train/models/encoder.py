"""A timm backbone as a spatial encoder: images [B, C, Y, X] → features [B, F, Y / stride, X / stride]."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from bie_stream.errors import ConfigError
from train.config import STANDARD_STEM, TimmConfig
from train.models.norm import over_global_batch


def encoder(config: TimmConfig, channels: int) -> tuple[nn.Module, int]:
    """The backbone up to the stage with the configured stride, giving a list of all stages up to it; and the last's
    number of features.

    Of pretrained weights for one channel the first layer has the sum of those for three; for C others timm repeats the
    three, times 3 / C. A small stem has a first convolution of 3 x 3 of its own, which is never pretrained.

    Raises:
        ConfigError: timm has no such backbone, or it has no such stage, or its weights cannot be had.
    """
    name = config.encoder
    make = functools.partial(timm.create_model, name, features_only=True, in_chans=channels, pretrained=False)
    if not timm.is_model(name):
        raise ConfigError(f"model.encoder {name!r} is no timm model; see timm.list_models()")
    small = config.stem == "small"
    try:
        with torch.device("meta"):
            reductions = make().feature_info.reduction()
        if small:
            reductions = [0, *(each // STANDARD_STEM for each in reductions[1:])]
        stages = tuple(range(1 if small else 0, reductions.index(config.stride) + 1))
        backbone = make(out_indices=stages)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ConfigError(f"model.encoder {name!r} gives no feature maps: {error}") from error
    except ValueError as error:
        raise ConfigError(
            f"model.encoder {name!r} with stem {config.stem} has no stage of stride {config.stride}; "
            f"it has {[each for each in reductions if each]}"
        ) from error
    if config.pretrained:
        backbone = _loaded(make, stages, config.pretrained)
    if small:
        backbone.conv1 = nn.Conv2d(channels, backbone.conv1.out_channels, 3, padding=1, bias=False)
        backbone.maxpool = nn.Identity()
    return over_global_batch(backbone), backbone.feature_info.channels()[-1]


def _loaded(make: Callable[..., Any], stages: tuple[int, ...], pretrained: bool | Path) -> Any:
    own = {"file": str(pretrained)} if isinstance(pretrained, Path) else None
    if isinstance(pretrained, Path) and not pretrained.is_file():
        raise ConfigError(f"model.pretrained: no file {pretrained}")
    try:
        return make(out_indices=stages, pretrained=True, pretrained_cfg_overlay=own)
    except Exception as error:  # of the hub, of the network, of torch: what their libraries raise
        said = " ".join(str(error).split())[:300]
        raise ConfigError(f"model.pretrained: the weights could not be loaded: {said}") from error
