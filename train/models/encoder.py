"""A timm backbone as a spatial encoder: images [B, C, Y, X] → features [B, F, Y / stride, X / stride]."""

import functools

import timm
from torch import nn

from bie_stream.errors import ConfigError
from train.models.norm import over_global_batch


def encoder(name: str, channels: int, stride: int) -> tuple[nn.Module, int]:
    """The backbone up to the stage with this stride, and its number of features.

    Raises:
        ConfigError: timm has no such backbone, or it has no such stage.
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
    return over_global_batch(backbone), backbone.feature_info.channels()[-1]
