"""Models by configuration: one registry."""

from train.config import AnyModelConfig, MAEConfig, TimmConfig
from train.models.autoencoder import Autoencoder
from train.models.mae import MAE
from train.models.model import Model, Output

__all__ = ["Model", "Output", "build"]


def build(config: AnyModelConfig, channels: int, fresh: bool = True) -> Model:
    """The model of a configuration for images of this many channels.

    Args:
        fresh: all weights are random, also where the configuration names pretrained ones.
    """
    if isinstance(config, MAEConfig):
        return MAE(config, channels)
    if fresh and isinstance(config, TimmConfig):
        config = config.model_copy(update={"pretrained": False})
    return Autoencoder(config, channels)
